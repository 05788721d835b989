"""Spans in which every token sees only itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask
from keras_ranking.ops import Spans


@keras.saving.register_keras_serializable(package="keras_ranking")
class AloneSpans(RefusesMask, keras.layers.Layer):
    """Spans in which every token sees only itself.

    Call arguments:
        inputs: (B, T, ...), used for its shape only.

    Output:
        `Spans` of (B, T).

    Example:
        >>> spans = kr.layers.AloneSpans()(np.zeros((1, 3, 4), "float32"))
        >>> keras.ops.convert_to_numpy(spans.dense(3))[0].astype(int)
        array([[1, 0, 0],
               [0, 1, 0],
               [0, 0, 1]])
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any) -> Any:
        shape = ops.shape(inputs)
        index = ops.arange(shape[1], dtype="int32")[None, :] + ops.zeros((shape[0], 1), dtype="int32")
        return Spans(ops.zeros_like(index), ops.zeros_like(index), index)

    def compute_output_spec(self, inputs: Any) -> Any:
        return Spans(*(keras.KerasTensor(inputs.shape[:2], dtype="int32") for _ in Spans._fields))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
