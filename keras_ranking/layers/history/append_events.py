"""AppendEvents: what a cache holds of events, and directly after it the same of later events."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops.sequences import gather_rows


@keras.saving.register_keras_serializable(package="keras_ranking")
class AppendEvents(WholeInputs, RefusesMask, keras.layers.Layer):
    """Later events directly after the last real one of a cache.

    Call arguments:
        inputs: (B, S, ...), what a cache holds of events.
        new: (B, M, ...), the same of later ones.
        length: int32 (B,), how many of the S are real.

    Output:
        (B, S + M, ...); beyond `length` and the real ones of `new` any values.

    Example:
        >>> held, new = np.array([[5, 6, 0]], "int32"), np.array([[7]], "int32")
        >>> out = kr.layers.AppendEvents()(held, new=new, length=np.array([2], "int32"))
        >>> keras.ops.convert_to_numpy(out)[:, :3]
        array([[5, 6, 7]], dtype=int32)
    """

    whole = ("length",)
    mask_instead = "`length`"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, new: Any, length: Any) -> Any:
        return gather_rows(ops.concatenate([inputs, new], axis=1), length, ops.shape(inputs)[1])

    def compute_output_spec(self, inputs: Any, new: Any, length: Any) -> Any:
        slots = None if None in (inputs.shape[1], new.shape[1]) else inputs.shape[1] + new.shape[1]
        return keras.KerasTensor((inputs.shape[0], slots, *inputs.shape[2:]), dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
