"""The action token: what the member did with an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ranking.layers.tokens.event_embedding import EventEmbedding


@keras.saving.register_keras_serializable(package="keras_ranking")
class ActionEmbedding(EventEmbedding):
    """Token of what a member did with an item: an MLP over the action values (multi-hot, dwell and the like).

        out = Dense(dim)(silu(Dense(hidden)([a_1 ; a_2 ; ...])))

    Only tokens that later events see may depend on it; the spans of a model guarantee this. The MLP is inferred for Feed-SR; related
    public code has two hidden layers of 64 with SiLU and a last ReLU. One hidden layer is our choice; its width is an argument.

    Args:
        features: `schema.actions`.
        dim: D, width of the token.
        hidden: width of the hidden layer, or None.
        id_dim: width of the embedding of an action that is an id or a category.
        settings: `numbers`, initializers and regularizers of `EventEmbedding`, and settings of every Keras layer.

    Call arguments:
        inputs: dict of tensors by action name, (B, T).

    Output:
        (B, T, D).

    Example:
        >>> layer = kr.layers.ActionEmbedding([kr.Number("click", known="after")], dim=8)
        >>> layer({"click": np.zeros((2, 3), "float32")}).shape
        (2, 3, 8)
    """

    def __init__(self, features: Sequence[Any], dim: int, hidden: int | None = 64, id_dim: int = 16, **settings: Any) -> None:
        super().__init__(features, dim=dim, hidden=hidden, id_dim=id_dim, **settings)

    def _check(self, features: Sequence[Any]) -> None:
        for feature in features:
            if feature.known != "after":
                raise ValueError(f"column '{feature.name}' is known='{feature.known}'; an action is known only after scoring.")
