"""Packed rows of slots as a batch of slots, and back."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops.integers import at_least


@keras.saving.register_keras_serializable(package="keras_ranking")
class FlattenRows(RefusesMask, keras.layers.Layer):
    """Merges the first two axes: rows of slots become a batch of slots.

    Call arguments:
        inputs: (B, T, ...).

    Output:
        (B T, ...).

    Example:
        >>> kr.layers.FlattenRows()(np.zeros((2, 3, 4), "float32")).shape
        (6, 4)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any) -> Any:
        shape = ops.shape(inputs)
        return ops.reshape(inputs, (shape[0] * shape[1], *shape[2:]))

    def compute_output_spec(self, inputs: Any) -> Any:
        rows, slots, *rest = inputs.shape
        return keras.KerasTensor((None if None in (rows, slots) else rows * slots, *rest), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this


@keras.saving.register_keras_serializable(package="keras_ranking")
class SlotOwners(WholeInputs, RefusesMask, keras.layers.Layer):
    """The request to which each slot of packed rows belongs, numbered over the whole batch.

    Call arguments:
        slots: int32 (B, S), the request within the row, from 1 on; 0 = empty.
        requests: (B, Q), used for its shape only.

    Output:
        int32 (B S,), in 0 .. B Q - 1; an empty slot belongs to the first request of its row.

    Example:
        >>> owners = kr.layers.SlotOwners()(np.array([[1, 1, 2], [1, 0, 0]], "int32"), requests=np.zeros((2, 4), "int32"))
        >>> keras.ops.convert_to_numpy(owners).tolist()
        [0, 0, 1, 4, 4, 4]
    """

    whole = ("slots",)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, slots: Any, requests: Any) -> Any:
        rows, count = ops.shape(requests)
        owner = ops.arange(rows, dtype="int32")[:, None] * count + at_least(slots - 1, 0)
        return ops.reshape(owner, (-1,))

    def compute_output_spec(self, slots: Any, requests: Any) -> Any:
        rows, size = slots.shape
        return keras.KerasTensor((None if None in (rows, size) else rows * size,), dtype="int32")


@keras.saving.register_keras_serializable(package="keras_ranking")
class UnflattenRows(RefusesMask, keras.layers.Layer):
    """The inverse of `FlattenRows`: splits the first axis into two.

    Call arguments:
        inputs: (B T, ...).
        like: (B, T), used for its shape only.

    Output:
        (B, T, ...).

    Example:
        >>> kr.layers.UnflattenRows()(np.zeros((6, 4), "float32"), like=np.zeros((2, 3), "int32")).shape
        (2, 3, 4)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, like: Any) -> Any:
        return ops.reshape(inputs, (*ops.shape(like), *ops.shape(inputs)[1:]))

    def compute_output_spec(self, inputs: Any, like: Any) -> Any:
        return keras.KerasTensor((*like.shape, *inputs.shape[1:]), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
