"""AppendKeys: the keys and values of later tokens directly after those that a cache holds."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops.sequences import append_rows


@keras.saving.register_keras_serializable(package="keras_ranking")
class AppendKeys(WholeInputs, RefusesMask, keras.layers.Layer):
    """Keys and values of later tokens directly after the last valid ones of a cache, in all blocks at once.

    Call arguments:
        inputs: the cached keys (B, blocks, S, ...).
        values: the cached values, of the same shape.
        new: tuple of keys and values of later tokens, each (B, blocks, M, ...).
        length: int32 (B,), how many of the S are valid.

    Output:
        Tuple of keys and values, each (B, blocks, S + M, ...) in the dtype of those cached; beyond `length` and the real ones of `new` any
        values.

    Example:
        >>> held, new = np.array([[[5.0, 6.0, 0.0]]]), np.array([[[7.0]]])
        >>> key, value = kr.layers.AppendKeys()(held, values=held, new=(new, new), length=np.array([2], "int32"))
        >>> keras.ops.convert_to_numpy(key)[:, :, :3].tolist()
        [[[5.0, 6.0, 7.0]]]
    """

    whole = ("length",)
    mask_instead = "`length`"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, values: Any, new: Any, length: Any) -> Any:
        return append_rows((inputs, values), new, length, axis=2)

    def compute_output_spec(self, inputs: Any, values: Any, new: Any, length: Any) -> Any:
        longer = []
        for held, later in zip((inputs, values), new, strict=True):
            slots = None if None in (held.shape[2], later.shape[2]) else held.shape[2] + later.shape[2]
            longer.append(keras.KerasTensor((*held.shape[:2], slots, *held.shape[3:]), dtype=held.dtype))
        return tuple(longer)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
