"""A gate on a hidden layer, computed from the same layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules

ACTIVATIONS = ("tanh", "sigmoid")


@keras.saving.register_keras_serializable(package="keras_ranking")
class DenseGate(PassesMask, WeightRules, keras.layers.Layer):
    """Multiplies each number of a hidden layer by a gate that depends on all of them.

        h' = h * a(h W_g + b)            W_g (n, n), or two factors (n, r), (r, n); a = tanh or sigmoid
        h' = h * (1 + tanh(.))  or  h * 2 sigmoid(.)              with `identity_at_start`, W_g = 0 at first

    LiRank (2402.06859) states a gate in the style of GateNet on hidden layers, +1.00 % in feed and no gain in jobs, with
    "negligible extra matrix computation", but gives no formula. The first line with tanh, a full matrix and no bias is the
    hidden gate of GateNet's public code; the rest is our choice. A full matrix on a layer of 3500 doubles its cost, so the paper must
    mean the low-rank form there: r = 70 adds 4 %.

    The plain product must not start at W_g = 0: with tanh the output and the gradients of all weights below would be 0. The form with
    `identity_at_start` can, and then starts as the layer without a gate. Of two factors only the second is zero: if both were, neither
    would have a gradient.

    Args:
        rank: r; None: a full matrix; 'auto': max(64, n / 50) if two such factors are smaller than a full matrix (n > 128), else None.
        activation: a, 'tanh' or 'sigmoid'.
        identity_at_start: as above.
        use_bias: add b, which starts at 0.
        kernel_initializer: of the factors that do not start at zero.
        kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of the factors, and of b.

    Call arguments:
        inputs: h (B, ..., n).

    Output:
        (B, ..., n).

    Raises:
        ValueError: `rank` or `activation` not as above, inputs of rank below 2, or an unknown last axis.

    Example:
        >>> kr.layers.DenseGate(rank=2)(np.ones((3, 8), "float32")).shape
        (3, 8)
    """

    weight_rules = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")

    def __init__(
        self,
        rank: int | str | None = None,
        activation: str = "tanh",
        identity_at_start: bool = False,
        use_bias: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **settings: Any,
    ) -> None:
        super().__init__(kernel_initializer=kernel_initializer, **settings)
        if rank is not None and (rank != "auto" if isinstance(rank, str) else rank < 1):
            raise ValueError(f"`rank` must be a positive integer, None or 'auto'. Received: rank={rank!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be of {ACTIVATIONS}. Received: activation={activation!r}")
        self.rank, self.activation, self.identity_at_start, self.use_bias = rank, activation, bool(identity_at_start), bool(use_bias)

    def _rank(self, width: int) -> int | None:
        if isinstance(self.rank, str):
            rank = max(64, round(width / 50))
            return rank if 2 * rank < width else None
        return self.rank

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(f"`inputs` must be (B, ..., n) with n known. Received: shape={tuple(input_shape)}")
        width = int(input_shape[-1])
        rank = self._rank(width)
        shapes = [(width, width)] if rank is None else [(width, rank), (rank, width)]
        self.kernels = []
        for i, shape in enumerate(shapes):
            zero = self.identity_at_start and i == len(shapes) - 1
            self.kernels.append(self.add_kernel(f"kernel_{i}", shape, "zeros" if zero else "glorot_uniform", fixed=zero))
        self.bias = self.add_bias("bias", (width,)) if self.use_bias else None
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: width})
        self.built = True

    def call(self, inputs: Any) -> Any:
        gate = inputs
        for kernel in self.kernels:
            gate = ops.matmul(gate, kernel)
        if self.bias is not None:
            gate = gate + self.bias
        gate = ops.tanh(gate) if self.activation == "tanh" else ops.sigmoid(gate)
        if self.identity_at_start:
            gate = 1 + gate if self.activation == "tanh" else 2 * gate
        return inputs * gate

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rank": self.rank,
            "activation": self.activation,
            "identity_at_start": self.identity_at_start,
            "use_bias": self.use_bias,
        }
