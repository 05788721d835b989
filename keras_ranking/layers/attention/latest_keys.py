"""The latest cached keys: a window that ends at the last valid key."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops.integers import at_least, at_most


@keras.saving.register_keras_serializable(package="keras_ranking")
class LatestKeys(WholeInputs, RefusesMask, keras.layers.Layer):
    """The latest `size` of the first `length` keys of a cache, oldest first.

        out[b, :, w] = in[b, :, max(length_b - size, 0) + w],    w < W = min(size, S), at least 1

    Args:
        size: number of keys, at least 0; with 0 no key is valid.

    Call arguments:
        inputs: (B, M, S, ...): keys or values of M blocks.
        length: int32 (B,), how many of the S keys are valid.

    Output:
        (B, M, W, ...). The first min(length, size) of them are valid; the rest must be ignored.

    Raises:
        ValueError: `size` below 0.

    Example:
        >>> keys = np.arange(4.0).reshape(1, 1, 4)
        >>> keras.ops.convert_to_numpy(kr.layers.LatestKeys(2)(keys, length=np.array([3], "int32"))).tolist()
        [[[1.0, 2.0]]]
    """

    whole = ("length",)

    def __init__(self, size: int, **settings: Any) -> None:
        super().__init__(**settings)
        if size < 0:
            raise ValueError(f"`size` must be 0 or more. Received: size={size}")
        self.size = int(size)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, length: Any) -> Any:
        slots, wanted = ops.shape(inputs)[2], max(self.size, 1)
        if isinstance(slots, int) and slots <= wanted and self.size:
            return inputs
        window = min(slots, wanted) if isinstance(slots, int) else at_most(slots, wanted)
        first = at_least(ops.cast(length, "int32") - self.size, 0)
        index = at_most(first[:, None] + ops.arange(window, dtype="int32")[None, :], slots - 1)[:, None]
        for _ in range(len(inputs.shape) - 3):
            index = ops.expand_dims(index, -1)
        return ops.take_along_axis(inputs, index, axis=2)

    def compute_output_spec(self, inputs: Any, length: Any) -> Any:
        shape = list(inputs.shape)
        shape[2] = None if shape[2] is None else min(shape[2], max(self.size, 1))
        return keras.KerasTensor(tuple(shape), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}
