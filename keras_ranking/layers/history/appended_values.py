"""AppendedValues: the values of the events that were appended to a cache."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs


@keras.saving.register_keras_serializable(package="keras_ranking")
class AppendedValues(WholeInputs, RefusesMask, keras.layers.Layer):
    """What a row of kept and appended events has of the appended ones: the reverse of `AppendEvents`.

    Call arguments:
        inputs: (B, S + M, ...), something of all events.
        new: (B, M, ...), any tensor with the M appended events.
        length: int32 (B,), how many events were kept.

    Output:
        (B, M, ...).

    Example:
        >>> both, new = np.array([[5, 6, 7, 0]], "int32"), np.array([[7]], "int32")
        >>> keras.ops.convert_to_numpy(kr.layers.AppendedValues()(both, new=new, length=np.array([2], "int32")))
        array([[7]], dtype=int32)
    """

    whole = ("length",)
    mask_instead = "`length`"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, new: Any, length: Any) -> Any:
        place = length[:, None] + ops.arange(ops.shape(new)[1], dtype="int32")[None, :]
        for _ in range(len(inputs.shape) - 2):
            place = ops.expand_dims(place, -1)
        return ops.take_along_axis(inputs, place, axis=1)

    def compute_output_spec(self, inputs: Any, new: Any, length: Any) -> Any:
        return keras.KerasTensor((inputs.shape[0], new.shape[1], *inputs.shape[2:]), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
