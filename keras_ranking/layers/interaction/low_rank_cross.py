"""Cross layers of DCNv2, with low-rank or with full matrices."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules


@keras.saving.register_keras_serializable(package="keras_ranking")
class LowRankCross(PassesMask, WeightRules, keras.layers.Layer):
    """A stack of cross layers; each multiplies by the input of the stack once more.

        x_{l+1} = x_0 * a(x_l V_l U_l + b_l) + x_l        V_l (D, r), U_l (r, D), b_l (D,); x_0 the input, l = 0..L-1

    DCNv2 (2008.13535). LiRank (2402.06859) replaces the D x D matrix by two low-rank ones and finds two layers sufficient (both
    stated). Its rank is not stated: D / 4 is usual, and from D / 2 on the full matrix is as cheap. By default there is no activation
    a, as in the papers; one such as 'tanh' bounds the products.

    Args:
        rank: r; None: one full matrix (D, D) per layer, the original DCNv2.
        num_layers: L.
        activation: a, before the multiplication by x_0; None: none.
        kernel_initializer: of U and V, each drawn separately.
        bias_initializer: of b.
        kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of U and V, and of b.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        (B, ..., D).

    Raises:
        ValueError: `rank` or `num_layers` below 1, inputs of rank below 2, or an unknown last axis.

    Example:
        >>> kr.layers.LowRankCross(rank=2)(np.ones((3, 8), "float32")).shape
        (3, 8)
    """

    def __init__(
        self,
        rank: int | None,
        num_layers: int = 2,
        activation: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **settings: Any,
    ) -> None:
        super().__init__(kernel_initializer=kernel_initializer, bias_initializer=bias_initializer, **settings)
        if rank is not None and rank < 1:
            raise ValueError(f"`rank` must be a positive integer, or None for full matrices. Received: rank={rank}")
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be a positive integer. Received: num_layers={num_layers}")
        self.rank, self.num_layers = None if rank is None else int(rank), int(num_layers)
        self.activation = keras.activations.get(activation)

    def _kernels(self, name: str, shape: tuple[int, ...]) -> list[Any]:
        """One kernel per layer of the stack."""
        return [self.add_kernel(f"{name}_{layer}", shape) for layer in range(self.num_layers)]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(f"`inputs` must be (B, ..., D) with D known. Received: shape={tuple(input_shape)}")
        width = int(input_shape[-1])
        self.downs = [] if self.rank is None else self._kernels("down", (width, self.rank))
        self.ups = self._kernels("up", (width if self.rank is None else self.rank, width))
        self.biases = [self.add_bias(f"bias_{layer}", (width,)) for layer in range(self.num_layers)]
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: width})
        self.built = True

    def _low(self, layer: int, x: Any) -> Any:
        """The input of U_l: x_l V_l, or x_l for a full matrix."""
        return x if self.rank is None else ops.matmul(x, self.downs[layer])

    def call(self, inputs: Any) -> Any:
        x = inputs
        for layer in range(self.num_layers):
            crossed = self.activation(ops.matmul(self._low(layer, x), self.ups[layer]) + self.biases[layer])
            x = inputs * crossed + x
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rank": self.rank,
            "num_layers": self.num_layers,
            "activation": keras.activations.serialize(self.activation),
        }
