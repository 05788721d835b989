"""The item token: which item was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_ranking.layers.base import KERNELS, TABLES, PassesMask, WeightRules, WholeInputs
from keras_ranking.layers.tokens.feature_concat import FeatureConcat, whole_numbers_in


@keras.saving.register_keras_serializable(package="keras_ranking")
class EventEmbedding(WholeInputs, PassesMask, WeightRules, keras.layers.Layer):
    """Token of an event (or a candidate) from its features: `Dense(dim)(silu(Dense(hidden)(concat(features))))`.

    The papers do not give the projection. Concatenation and a projection to the model's width are inferred from summaries of
    Feed-SR; the hidden layer is our choice (`hidden=None`: one linear map).

    Args:
        features: columns of a schema that are known when the event is scored, usually `schema.inputs()`.
        dim: D, width of the token.
        hidden: width of the hidden layer, or None.
        id_dim: width of each id's embedding.
        numbers: which numbers have vectors, see `FeatureConcat`; None: none.
        id_dropout: rate at which numbers of the embeddings of ids are dropped in training.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of the dense layers.
        embeddings_initializer, embeddings_regularizer, embeddings_constraint: of the tables.

    Call arguments:
        inputs: dict of tensors by column name, (B, T) or (B, T, size).

    Output:
        (B, T, D).

    Raises:
        ValueError: no features, one that is known only after scoring, or a width below 1.

    Example:
        >>> layer = kr.layers.EventEmbedding([kr.Number("age")], dim=8)
        >>> layer({"age": np.zeros((2, 3), "float32")}).shape
        (2, 3, 8)
    """

    weight_rules = (*KERNELS, *TABLES)

    def __init__(
        self,
        features: Sequence[Any],
        dim: int,
        hidden: int | None = None,
        id_dim: int = 16,
        numbers: Mapping[str, Any] | None = None,
        id_dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**whole_numbers_in(numbers, settings))
        if not features:
            raise ValueError("`features` must have at least one column. Received: none")
        options: dict[str, Any] = {"id_dim": id_dim, "numbers": numbers, "id_dropout": id_dropout, **self.rules(FeatureConcat)}
        self.concat = FeatureConcat(features, **options, dtype=self.dtype_policy, name="concat")
        self._check(self.concat.features)
        if dim < 1 or (hidden is not None and hidden < 1):
            raise ValueError(f"`dim` and `hidden` must be positive integers (`hidden` may be None). Received: dim={dim}, hidden={hidden}")
        self.dim, self.hidden, self.id_dim = dim, hidden, id_dim
        self.inner = self.dense(hidden, activation="silu", name="inner") if hidden is not None else None
        self.projection = self.dense(dim, name="projection")

    def _check(self, features: Sequence[Any]) -> None:
        for feature in features:
            if feature.known == "after":
                raise ValueError(f"column '{feature.name}' is known only after scoring and cannot be in the token of an event.")

    def _whole(self) -> tuple[str, ...]:
        return self.concat._whole()

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        self.concat.build(input_shape)
        shape = self.concat.compute_output_shape(input_shape)
        if self.inner is not None:
            self.inner.build(shape)
            shape = (*shape[:-1], self.hidden)
        self.projection.build(shape)
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        x = self.concat(inputs, training=training)
        if self.inner is not None:
            x = self.inner(x)
        return self.projection(x)

    def compute_output_shape(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> tuple[int | None, ...]:
        return (*self.concat.compute_output_shape(input_shape)[:-1], self.dim)

    def get_config(self) -> dict[str, Any]:
        concat = self.concat.get_config()
        made = {"features": concat["features"], "dim": self.dim, "hidden": self.hidden, "id_dim": self.id_dim}
        return {**super().get_config(), **made, **{name: concat[name] for name in ("numbers", "id_dropout") if name in concat}}
