"""RescaleAndAdd: the residual of Feed-SR, a branch with a learned scale."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules

RESIDUALS: dict[str, float | None] = {"plain": None, "scalar": 0.1, "layer_scale": 0.1, "rezero": 0.0, "dense_gate": 0.0}
"""Kinds, and the default initial value of each: of alpha, or of the gate's bias."""


@keras.saving.register_keras_serializable(package="keras_ranking")
class RescaleAndAdd(PassesMask, WeightRules, keras.layers.Layer):
    """Adds a branch to the residual stream after scaling it.

    | `kind`          | y                              | learned                  | starts at               |
    |-----------------|--------------------------------|--------------------------|-------------------------|
    | `'plain'`       | x + f                          | nothing                  |                         |
    | `'scalar'`      | x + alpha f                    | alpha, one number        | 0.1                     |
    | `'layer_scale'` | x + alpha * f                  | alpha (D,)               | 0.1                     |
    | `'rezero'`      | x + alpha f                    | alpha, one number        | 0: y = x, to the bit    |
    | `'dense_gate'`  | x + f * sigmoid(x W + b)       | W (D, D), b (D,)         | b = 0: about half of f  |

    Feed-SR (2602.12354) states a "learnable scalar residual rescaling" next to pre-norm, and that LayerScale, ReZero and dense gating
    also stabilise training, dense gating and ReZero at a lower learning rate. Its formula is not known: x + alpha f is our choice, and
    0.1 is the constant of related public code. With alpha = 0 the block is the identity.

    Args:
        kind: see the table.
        initial: initial value of alpha, or of the gate's b; None: as in the table.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of W and b of 'dense_gate'.

    Call arguments:
        inputs: x (B, ..., D), the stream.
        branch: f, of the same shape.

    Output:
        Shape of `inputs`.

    Raises:
        ValueError: an unknown `kind`, an `initial` for 'plain', an `initial` other than 0 for 'rezero', or an unknown last axis.

    Example:
        >>> layer = kr.layers.RescaleAndAdd("scalar")
        >>> keras.ops.convert_to_numpy(layer(np.ones((1, 2), "float32"), np.full((1, 2), 10.0, "float32")))
        array([[2., 2.]], dtype=float32)
    """

    weight_rules = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")

    def __init__(self, kind: str = "scalar", initial: float | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if kind not in RESIDUALS:
            raise ValueError(f"`kind` must be one of {tuple(RESIDUALS)}. Received: kind={kind!r}")
        if initial is not None and (kind == "plain" or (kind == "rezero" and initial != 0)):
            raise ValueError(
                f"`initial` has no meaning for kind='plain' and is 0 for kind='rezero'. Received: kind={kind!r}, initial={initial}"
            )
        self.kind, self.initial = kind, RESIDUALS[kind] if initial is None else float(initial)

    def build(self, inputs_shape: tuple[int | None, ...], branch_shape: Any = None) -> None:
        width = inputs_shape[-1]
        if width is None:
            raise ValueError(f"the last axis of the inputs must be known. Received: shape={tuple(inputs_shape)}")
        self.alpha = self.gate_map = None
        if self.kind == "dense_gate":
            start = keras.initializers.Constant(self.initial)
            self.gate_map = self.dense(width, bias_initializer=start, name="gate")
            self.gate_map.build(tuple(inputs_shape))
        elif self.kind != "plain":
            shape = (width,) if self.kind == "layer_scale" else ()
            self.alpha = self.add_weight(name="alpha", shape=shape, initializer=keras.initializers.Constant(self.initial))
        self.built = True

    def call(self, inputs: Any, branch: Any) -> Any:
        if self.gate_map is not None:
            branch = branch * ops.sigmoid(self.gate_map(inputs))
        elif self.alpha is not None:
            branch = branch * self.alpha
        return inputs + branch

    def compute_output_spec(self, inputs: Any, branch: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind, "initial": self.initial}
