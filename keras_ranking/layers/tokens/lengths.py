"""Layers that apply a length: entries beyond it become zero, segment 0, or outside the set."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs


@keras.saving.register_keras_serializable(package="keras_ranking")
class KeepFirst(WholeInputs, RefusesMask, keras.layers.Layer):
    """The first `length` entries of each row, and zeros beyond; padding, NaN and invalid ids there are removed.

    Call arguments:
        inputs: (B, T, ...).
        length: int32 (B,).

    Output:
        Shape and type of `inputs`.

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.KeepFirst()(np.array([[7, 8, 9]], "int32"), length=np.array([2], "int32")))
        array([[7, 8, 0]], dtype=int32)
    """

    whole = ("length",)

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
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this


@keras.saving.register_keras_serializable(package="keras_ranking")
class Segments(WholeInputs, RefusesMask, keras.layers.Layer):
    """Segment ids of a left-aligned history: 1 for the first `length` slots, 0 beyond.

    Call arguments:
        times: int32 (B, L), used for its shape only.
        length: int32 (B,).

    Output:
        int32 (B, L).

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.Segments()(np.zeros((1, 3), "int32"), length=np.array([2], "int32")))
        array([[1, 1, 0]], dtype=int32)
    """

    whole = ("length",)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, times: Any, length: Any) -> Any:
        return ops.cast(ops.arange(ops.shape(times)[1], dtype="int32")[None, :] < length[:, None], "int32")


@keras.saving.register_keras_serializable(package="keras_ranking")
class OneSet(WholeInputs, RefusesMask, keras.layers.Layer):
    """The first `count` items of each row as one set: 1 for these, 0 beyond; the `slot` argument of `SetwiseAttention`.

    Call arguments:
        inputs: (B, N, ...), used for its shape only.
        count: int32 (B,).

    Output:
        int32 (B, N).

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.OneSet()(np.zeros((1, 3, 4)), count=np.array([2], "int32")))
        array([[1, 1, 0]], dtype=int32)
    """

    whole = ("count",)

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
