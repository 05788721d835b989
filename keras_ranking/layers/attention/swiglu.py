"""SwiGLU: a gated feed-forward layer."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.layers.base import PassesMask, WeightRules


@keras.saving.register_keras_serializable(package="keras_ranking")
class SwiGLU(PassesMask, WeightRules, keras.layers.Layer):
    """Gated feed-forward layer, by default without biases:

        y = drop(silu(x W_1) * (x W_3)) W_2             W_1, W_3: (D, H), W_2: (H, D)

    Source: Shazeer 2020; the feed-forward layer of public LiGR code, with H = 4 D.

    Args:
        hidden: H.
        activation: in place of silu.
        dropout: rate on the hidden units, in training.
        use_bias: whether the three linear maps have biases.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of the linear maps.

    Call arguments:
        inputs: x (..., D).

    Output:
        Shape of `inputs`.

    Example:
        >>> kr.layers.SwiGLU(hidden=16)(np.ones((2, 3, 8), "float32")).shape
        (2, 3, 8)
    """

    weight_rules = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")

    def __init__(self, hidden: int, activation: str = "silu", dropout: float = 0.0, use_bias: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if hidden < 1:
            raise ValueError(f"`hidden` must be a positive integer. Received: hidden={hidden}")
        self.hidden, self.activation, self.dropout_rate, self.use_bias = int(hidden), activation, float(dropout), bool(use_bias)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        lead, width = tuple(input_shape[:-1]), int(input_shape[-1] or 0)

        def dense(units: int, name: str, activation: str | None = None) -> Any:
            return self.dense(units, activation=activation, use_bias=self.use_bias, name=name)

        self.gate = dense(self.hidden, "gate", self.activation)
        self.up = dense(self.hidden, "up")
        self.down = dense(width, "down")
        for layer in (self.gate, self.up):
            layer.build((*lead, width))
        self.down.build((*lead, self.hidden))
        self.dropout.build((*lead, self.hidden))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.down(self.dropout(self.gate(inputs) * self.up(inputs), training=training))

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"hidden": self.hidden, "activation": self.activation, "dropout": self.dropout_rate, "use_bias": self.use_bias}
        return {**super().get_config(), **own}
