"""One head for each range of positions, so that position is never an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ranking")
class PositionTowers(keras.layers.Layer):
    """K separate MLPs over one trunk state: `s_k = f_k([h ; late context])`, k = 1..K, logits.

    Ranking needs the click probability before it fixes the position, so the position cannot be an input: each tower answers
    "if shown in this range". Only the tower of the position seen is trained (see `ObservedTowerLoss`). K heads by position
    bucket, with 1, 2-4 and 5+ as an example, are stated second-hand for CADET (2602.11410); depth and width are our choice.

    Args:
        num_towers: K.
        hidden: widths of each tower's hidden layers.
        activation: of the hidden layers.
        dropout: rate after each hidden layer, in training.

    Call arguments:
        inputs: (B, T, C).

    Output:
        float32 (B, T, K).

    Example:
        >>> PositionTowers(3)(np.ones((2, 5, 8), "float32")).shape
        (2, 5, 3)
    """

    def __init__(
        self, num_towers: int, hidden: Sequence[int] = (64,), activation: str = "silu", dropout: float = 0.0, **settings: Any
    ) -> None:
        super().__init__(**settings)
        if num_towers < 1:
            raise ValueError(f"`num_towers` must be a positive integer. Received: num_towers={num_towers}")
        if any(width < 1 for width in hidden):
            raise ValueError(f"`hidden` must be positive widths. Received: hidden={tuple(hidden)}")
        self.num_towers, self.hidden = num_towers, tuple(int(width) for width in hidden)
        self.activation, self.dropout_rate = activation, float(dropout)
        policy = self.dtype_policy
        self.towers = [
            [keras.layers.Dense(width, activation=activation, dtype=policy, name=f"tower_{k}_{i}") for i, width in enumerate(self.hidden)]
            + [keras.layers.Dense(1, dtype=policy, name=f"tower_{k}_logit")]
            for k in range(num_towers)
        ]
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for tower in self.towers:
            width = input_shape[-1]
            for layer in tower:
                layer.build((None, None, width))
                width = layer.units
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        logits = []
        for tower in self.towers:
            x = inputs
            for layer in tower[:-1]:
                x = self.dropout(layer(x), training=training)
            logits.append(tower[-1](x))
        # Probabilities feed an auction or a sum over tasks: logits stay in float32 under every dtype policy.
        return ops.cast(ops.concatenate(logits, axis=-1), "float32")

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
        }
