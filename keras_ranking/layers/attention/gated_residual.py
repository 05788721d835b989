"""GatedResidual: a residual branch scaled by a gate computed from the residual stream."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import ReadsMask, WeightRules, WholeInputs, mask_of_all
from keras_ranking.ops.masks import set_mask

# The bias of a gate starts at `gate_bias`.
GATE = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")


@keras.saving.register_keras_serializable(package="keras_ranking")
class GatedResidual(WholeInputs, ReadsMask, WeightRules, keras.layers.Layer):
    """A sublayer F in a residual stream, with an element-wise gate computed from the stream before its normalisation.

        y = x + drop(F(LN(x))) * sigmoid(x W + b)                 W: (D, D), for this sublayer only

    LiGR calls this gate on the un-normalised stream "learned normalization".

    Source: LiGR (2502.03417; formula stated second-hand, by equation 1 of 2508.06450 and two public re-implementations that agree).
    LN before F: as in these re-implementations, and our choice (Feed-SR, 2602.12354: without pre-norm the AUC collapses to 0.5).
    Whether the original has a bias, and its initial value, are unknown. With bias 0, gates start near one half.

    Args:
        sublayer: F, a layer that keeps the shape; or its serialised dict.
        use_bias: whether the gate has b.
        gate_bias: initial value of b; a positive one opens the gate, a negative one starts near the identity.
        gate: False for the plain pre-norm block, y = x + drop(F(LN(x))), for comparison.
        dropout: rate on the branch, in training.
        epsilon: of the normalisation.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of the gate; the sublayer has its own.

    Call arguments:
        inputs: x (B, T, D), or any (..., D).
        times, spans: passed to the sublayer if given; see `SelfGatedAttention`.
        mask: boolean (B, T), real tokens. The sublayer's input has it as its Keras mask, together with that of `inputs`.

    Output:
        Shape of `inputs`.

    Raises:
        ValueError: the last axis is unknown, or `sublayer` is not a layer.

    Example:
        >>> layer = kr.layers.GatedResidual(keras.layers.Dense(8, activation="silu"))
        >>> layer(np.ones((2, 3, 8), "float32")).shape
        (2, 3, 8)
    """

    whole = ("times",)
    weight_rules = GATE

    def __init__(
        self,
        sublayer: Any,
        use_bias: bool = True,
        gate_bias: float = 0.0,
        gate: bool = True,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if isinstance(sublayer, dict):
            sublayer = keras.saving.deserialize_keras_object(sublayer)
        if not isinstance(sublayer, keras.layers.Layer):
            raise ValueError(f"`sublayer` must be a Keras layer. Received: {sublayer!r}")
        self.sublayer = sublayer
        self.use_bias, self.gate_bias, self.gate = bool(use_bias), float(gate_bias), bool(gate)
        self.dropout_rate, self.epsilon = float(dropout), float(epsilon)
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name="norm")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = input_shape[-1]
        if width is None:
            raise ValueError(f"the last axis of the inputs must be known. Received: input_shape={tuple(input_shape)}")
        self.norm.build(input_shape)
        self.dropout.build(input_shape)
        if not self.sublayer.built:
            self.sublayer.build(input_shape)
        self.gate_map = None
        if self.gate:
            initial = keras.initializers.Constant(self.gate_bias) if self.use_bias else None
            options = {"bias_initializer": initial} if self.use_bias else {}
            self.gate_map = self.dense(width, use_bias=self.use_bias, name="gate", **options)
            self.gate_map.build(input_shape)
        self.built = True

    def merge(self, inputs: Any, branch: Any, training: bool | None = None) -> Any:
        """x and F(LN(x)) -> y, for a caller that runs the sublayer itself: `layer.merge(x, layer.sublayer(layer.norm(x), ...))`."""
        branch = self.dropout(branch, training=training)
        if self.gate_map is not None:
            branch = branch * ops.sigmoid(self.gate_map(inputs))
        return inputs + branch

    def call(self, inputs: Any, times: Any = None, spans: Any = None, mask: Any = None, training: bool | None = None) -> Any:
        given = {name: value for name, value in (("times", times), ("spans", spans)) if value is not None}
        normed = self.norm(inputs)
        if (real := mask_of_all(inputs, mask=mask)) is not None:
            set_mask(normed, real)
        return self.merge(inputs, self.sublayer(normed, **given), training=training)

    def compute_output_spec(self, inputs: Any, times: Any = None, spans: Any = None, mask: Any = None, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        sublayer = keras.saving.serialize_keras_object(self.sublayer)
        sublayer.pop("build_config", None)  # it is built with this layer
        return {
            **super().get_config(),
            "sublayer": sublayer,
            "use_bias": self.use_bias,
            "gate_bias": self.gate_bias,
            "gate": self.gate,
            "dropout": self.dropout_rate,
            "epsilon": self.epsilon,
        }
