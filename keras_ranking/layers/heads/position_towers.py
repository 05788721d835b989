"""One head for each range of positions, so that position is never an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules


@keras.saving.register_keras_serializable(package="keras_ranking")
class PositionTowers(PassesMask, WeightRules, keras.layers.Layer):
    """K separate MLPs over one trunk state: `s_k = f_k([h ; late context])`, k = 1..K, logits.

    Ranking needs the click probability before the position is decided, so the position cannot be an input: each tower predicts
    for "shown in this range". Only the tower of the observed position is trained (see `ObservedTowerLoss`). K heads by position
    bucket, with 1, 2-4 and 5+ as an example, are stated second-hand for CADET (2602.11410); depth and width are our choice.

    With `shared`, there is one MLP with the range as an input, s_k = f([h ; late context ; e_k]): position as a feature, for comparison.
    All K logits are outputs here too, and the loss selects that of the position shown: the same training as with position as an input.

    Args:
        num_towers: K.
        hidden: widths of each tower's hidden layers.
        activation: of the hidden layers.
        dropout: rate after each hidden layer, in training.
        shared: one tower for all ranges, with an embedding e_k as an additional input.
        embedding_dim: width of e_k.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of the towers.

    Call arguments:
        inputs: (B, T, C).

    Output:
        float32 (B, T, K).

    Example:
        >>> kr.layers.PositionTowers(3)(np.ones((2, 5, 8), "float32")).shape
        (2, 5, 3)
    """

    def __init__(
        self,
        num_towers: int,
        hidden: Sequence[int] = (64,),
        activation: str = "silu",
        dropout: float = 0.0,
        shared: bool = False,
        embedding_dim: int = 8,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if num_towers < 1:
            raise ValueError(f"`num_towers` must be a positive integer. Received: num_towers={num_towers}")
        if any(width < 1 for width in hidden):
            raise ValueError(f"`hidden` must be positive widths. Received: hidden={tuple(hidden)}")
        if embedding_dim < 1:
            raise ValueError(f"`embedding_dim` must be a positive integer. Received: embedding_dim={embedding_dim}")
        self.shared, self.embedding_dim = bool(shared), int(embedding_dim)
        self.num_towers, self.hidden = num_towers, tuple(int(width) for width in hidden)
        self.activation, self.dropout_rate = activation, float(dropout)
        policy = self.dtype_policy
        # An auction or a sum over tasks uses the probabilities: logits are computed in float32 under every dtype policy.
        self.towers = [
            [self.dense(width, activation=activation, name=f"tower_{k}_{i}") for i, width in enumerate(self.hidden)]
            + [self.dense(1, dtype="float32", name=f"tower_{k}_logit")]
            for k in range(1 if self.shared else num_towers)
        ]
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for tower in self.towers:
            width = input_shape[-1] if not self.shared or input_shape[-1] is None else input_shape[-1] + self.embedding_dim
            for layer in tower:
                layer.build((None, None, width))
                width = layer.units
        self.ranges = None
        if self.shared:
            start = keras.initializers.RandomNormal(stddev=0.02)
            self.ranges = self.add_weight(name="ranges", shape=(self.num_towers, self.embedding_dim), initializer=start)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        logits = []
        for k in range(self.num_towers):
            tower = self.towers[0 if self.shared else k]
            x = inputs if self.ranges is None else self._in_range(inputs, k)
            for layer in tower[:-1]:
                x = self.dropout(layer(x), training=training)
            logits.append(tower[-1](x))
        return ops.cast(ops.concatenate(logits, axis=-1), "float32")

    def _in_range(self, inputs: Any, k: int) -> Any:
        e = ops.cast(ops.convert_to_tensor(self.ranges)[k], inputs.dtype)
        wide = ops.broadcast_to(e, (*ops.shape(inputs)[:-1], self.embedding_dim))
        return ops.concatenate([inputs, wide], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.num_towers)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_towers": self.num_towers,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "shared": self.shared,
            "embedding_dim": self.embedding_dim,
        }
