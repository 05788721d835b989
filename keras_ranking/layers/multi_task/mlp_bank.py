"""Several MLPs of the same shape in one layer: experts, bottoms, gates and towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules


@keras.saving.register_keras_serializable(package="keras_ranking")
class MLPBank(PassesMask, WeightRules, keras.layers.Layer):
    """M separate MLPs, computed as one batched product per layer: `h_m^{i+1} = a(h_m^i W_m^i + b_m^i)`, m = 1..M.

    Used by the multi-task layers for experts, gates and towers. Kernels are (M, in, out), so an accelerator runs one product instead of
    the M products of M `Dense` layers. Each of the M kernels is drawn separately.

    Args:
        count: M.
        widths: output widths of the layers, at least one.
        activation: after each layer.
        last_activation: after the last layer; None: the same as `activation`.
        use_bias: add b.
        dropout: rate after each layer but the last, in training. Our choice.
        zeros: start all kernels at zero.
        kernel_initializer, bias_initializer: of each of the M kernels, drawn separately, and of the biases.
        kernel_regularizer, bias_regularizer: of each layer's kernels (M, in, out) and biases (M, out), of all M together.
        kernel_constraint, bias_constraint: of each of the M kernels (in, out) and biases (out,).

    Call arguments:
        inputs: (N, D), one input for all M, or (N, M, D), one for each.
        return_hidden: also return the input of the last layer.

    Output:
        (N, M, widths[-1]); with `return_hidden`, a tuple of this and (N, M, widths[-2]), or of this and the inputs if there is one layer.

    Raises:
        ValueError: `count` or a width below 1, no widths, an unknown last axis, or an input of the wrong rank.

    Example:
        >>> kr.layers.MLPBank(3, widths=[8, 4])(np.ones((2, 5), "float32")).shape
        (2, 3, 4)
    """

    def __init__(
        self,
        count: int,
        widths: Sequence[int],
        activation: str = "silu",
        last_activation: str | None = None,
        use_bias: bool = True,
        dropout: float = 0.0,
        zeros: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if count < 1:
            raise ValueError(f"`count` must be a positive integer. Received: count={count}")
        if not widths or any(width < 1 for width in widths):
            raise ValueError(f"`widths` must be one or more positive integers. Received: widths={tuple(widths)}")
        self.count, self.widths = int(count), tuple(int(width) for width in widths)
        self.activation, self.last_activation = activation, last_activation
        self.use_bias, self.dropout_rate, self.zeros = use_bias, float(dropout), zeros
        self.functions = [keras.activations.get(activation)] * (len(self.widths) - 1)
        self.functions.append(keras.activations.get(activation if last_activation is None else last_activation))
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def _draw(self, shape: Sequence[int], dtype: Any = None) -> Any:
        # One initializer for each: Glorot on the whole (M, in, out) would take M for a receptive field, with too small values, and
        # one initializer called M times returns M equal kernels.
        rule = self.kernel_initializer
        drawn = [keras.initializers.GlorotUniform() if rule is None else self._drawn(rule) for _ in range(shape[0])]
        return ops.stack([one(tuple(shape[1:]), dtype=dtype) for one in drawn])

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = input_shape[-1]
        if width is None or len(input_shape) not in (2, 3):
            raise ValueError(f"`inputs` must be (N, D) or (N, {self.count}, D) with D known. Received: shape={tuple(input_shape)}")
        initializer = "zeros" if self.zeros else self._draw
        self.kernels, self.biases = [], []
        for i, out in enumerate(self.widths):
            self.kernels.append(self.add_kernel(f"kernel_{i}", (self.count, width, out), initializer, fixed=True, stacked=True))
            if self.use_bias:
                self.biases.append(self.add_bias(f"bias_{i}", (self.count, out), stacked=True))
            width = out
        self.dropout.build((None, self.count, width))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, return_hidden: bool = False) -> Any:
        # (M, N, D) until the end: a product for each m. `ops.matmul`, because on a CPU without bfloat16 instructions TensorFlow's kernel
        # of `ops.einsum` also sums in bfloat16.
        x = hidden = ops.expand_dims(inputs, 0) if len(inputs.shape) == 2 else ops.swapaxes(inputs, 0, 1)
        for i, (kernel, function) in enumerate(zip(self.kernels, self.functions)):
            if i:
                x = self.dropout(x, training=training)
            hidden = x
            x = ops.matmul(x, kernel)
            x = function(x + self.biases[i][:, None] if self.use_bias else x)
        x = ops.swapaxes(x, 0, 1)
        if not return_hidden:
            return x
        return x, inputs if len(self.widths) == 1 else ops.swapaxes(hidden, 0, 1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.count, self.widths[-1])

    def compute_output_spec(self, inputs: Any, training: bool | None = None, return_hidden: bool = False) -> Any:
        shape = tuple(inputs.shape)
        out = keras.KerasTensor(self.compute_output_shape(shape), dtype=self.compute_dtype)
        before = (shape[0], self.count, self.widths[-2]) if len(self.widths) > 1 else shape
        return (out, keras.KerasTensor(before, dtype=self.compute_dtype)) if return_hidden else out

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "count": self.count,
            "widths": list(self.widths),
            "activation": self.activation,
            "last_activation": self.last_activation,
            "use_bias": self.use_bias,
            "dropout": self.dropout_rate,
            "zeros": self.zeros,
        }
