"""Values that a request has once, at each of its candidates and slots."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops.integers import at_least
from keras_ranking.ops.rows import take_in_rows


@keras.saving.register_keras_serializable(package="keras_ranking")
class AtCandidates(RefusesMask, keras.layers.Layer):
    """One value a request, repeated for each of its candidates.

        out[b, n] = inputs[b]

    A column of the member (known='member') is sent once a request, and is a column of candidates from here on. Our choice.

    Call arguments:
        inputs: (B, ...), of any type.
        like: (B, N, ...), used for its shape only.

    Output:
        (B, N, ...), of the type of `inputs`.

    Example:
        >>> kr.layers.AtCandidates()(np.zeros((2, 256), "float32"), like=np.zeros((2, 5), "int32")).shape
        (2, 5, 256)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, like: Any) -> Any:
        rows, count = ops.shape(like)[:2]
        return ops.broadcast_to(ops.expand_dims(inputs, 1), (rows, count, *inputs.shape[1:]))

    def compute_output_spec(self, inputs: Any, like: Any) -> Any:
        return keras.KerasTensor((*like.shape[:2], *inputs.shape[1:]), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this


@keras.saving.register_keras_serializable(package="keras_ranking")
class AtSlots(WholeInputs, RefusesMask, keras.layers.Layer):
    """Values that a packed row holds once, at each of its slots.

        out[b, t] = inputs[b, slot[b, t] - 1],   0 where slot[b, t] = 0

    Our choice.

    Call arguments:
        inputs: (B, M, ...), of any type.
        slot: int32 (B, T), the value of each slot, from 1 on; 0 = empty.

    Output:
        (B, T, ...), of the type of `inputs`.

    Example:
        >>> held = np.array([[[1.0, 2.0], [3.0, 4.0]]], "float32")
        >>> keras.ops.convert_to_numpy(kr.layers.AtSlots()(held, slot=np.array([[2, 1, 0]], "int32"))).tolist()
        [[[3.0, 4.0], [1.0, 2.0], [0.0, 0.0]]]
    """

    whole = ("slot",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, slot: Any) -> Any:
        rows, count = ops.shape(inputs)[:2]
        place = ops.arange(rows, dtype="int32")[:, None] * count + at_least(slot - 1, 0)
        found = take_in_rows(ops.reshape(inputs, (rows * count, *inputs.shape[2:])), place, rows)
        there = slot > 0
        for _ in range(len(inputs.shape) - 2):
            there = ops.expand_dims(there, -1)
        return ops.where(there, found, ops.zeros_like(found))

    def compute_output_spec(self, inputs: Any, slot: Any) -> Any:
        return keras.KerasTensor((*slot.shape, *inputs.shape[2:]), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
