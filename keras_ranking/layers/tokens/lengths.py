"""What a length cuts off: entries beyond it as zeros, as segment 0, as outside the set."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ranking")
class KeepFirst(keras.layers.Layer):
    """The first `length` entries of each row, zeros beyond: whatever stood there (padding, NaN, wild ids) is gone.

    Call arguments:
        inputs: (B, T, ...).
        length: int32 (B,).

    Output:
        Shape and type of `inputs`.

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.KeepFirst()(np.array([[7, 8, 9]], "int32"), length=np.array([2], "int32")))
        array([[7, 8, 0]], dtype=int32)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, length: Any) -> Any:
        keep = ops.arange(ops.shape(inputs)[1], dtype="int32")[None, :] < length[:, None]
        for _ in range(len(inputs.shape) - 2):
            keep = ops.expand_dims(keep, -1)
        return ops.where(keep, inputs, ops.zeros_like(inputs))

    def compute_output_spec(self, inputs: Any, length: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # an own `__init__` without an own `get_config` would lose name and dtype


@keras.saving.register_keras_serializable(package="keras_ranking")
class Segments(keras.layers.Layer):
    """Segment ids of a left-aligned history: 1 for the first `length` slots, 0 beyond.

    Call arguments:
        times: int32 (B, L), for its shape alone.
        length: int32 (B,).

    Output:
        int32 (B, L).

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.Segments()(np.zeros((1, 3), "int32"), length=np.array([2], "int32")))
        array([[1, 1, 0]], dtype=int32)
    """

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, times: Any, length: Any) -> Any:
        return ops.cast(ops.arange(ops.shape(times)[1], dtype="int32")[None, :] < length[:, None], "int32")


@keras.saving.register_keras_serializable(package="keras_ranking")
class OneSet(keras.layers.Layer):
    """The first `count` items of each row as one set: 1 for these, 0 beyond, as `SetwiseAttention` takes it.

    Call arguments:
        inputs: (B, N, ...), for its shape alone.
        count: int32 (B,).

    Output:
        int32 (B, N).

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.OneSet()(np.zeros((1, 3, 4)), count=np.array([2], "int32")))
        array([[1, 1, 0]], dtype=int32)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, count: Any) -> Any:
        return ops.cast(ops.arange(ops.shape(inputs)[1], dtype="int32")[None, :] < count[:, None], "int32")

    def compute_output_spec(self, inputs: Any, count: Any) -> Any:
        return keras.KerasTensor(inputs.shape[:2], dtype="int32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # see `KeepFirst`
