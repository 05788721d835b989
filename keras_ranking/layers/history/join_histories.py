"""JoinHistories: the histories of the requests of a row as one row of events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs


@keras.saving.register_keras_serializable(package="keras_ranking")
class JoinHistories(WholeInputs, RefusesMask, keras.layers.Layer):
    """The histories of the Q requests of each row one after another, and the events of each request in it.

    Call arguments:
        inputs: dict of tensors (B Q, L, ...), what is known of the events.
        visible: int32 (B Q,), how many of the first events each request sees.
        like: (B, Q), used for its shape only.

    Output:
        dict of the tensors, (B, Q L, ...), and `begin` and `end`, int32 (B, Q): request q sees the events begin, ..., end - 1.

    Example:
        >>> x = {"time": np.arange(6, dtype="int32").reshape(2, 3)}
        >>> out = kr.layers.JoinHistories()(x, visible=np.array([3, 1], "int32"), like=np.zeros((1, 2)))
        >>> keras.ops.convert_to_numpy(out["time"]), keras.ops.convert_to_numpy(out["begin"]), keras.ops.convert_to_numpy(out["end"])
        (array([[0, 1, 2, 3, 4, 5]], dtype=int32), array([[0, 3]], dtype=int32), array([[3, 4]], dtype=int32))
    """

    whole = ("visible",)
    mask_instead = "`visible`"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Mapping[str, Any], visible: Any, like: Any) -> dict[str, Any]:
        rows, requests = ops.shape(like)
        joined, length = {}, 0
        for name, x in inputs.items():
            length = ops.shape(x)[1]
            joined[name] = ops.reshape(x, (rows, requests * length, *ops.shape(x)[2:]))
        begin = (ops.arange(requests, dtype="int32") * length)[None, :] + ops.zeros((rows, 1), dtype="int32")
        return {**joined, "begin": begin, "end": begin + ops.reshape(visible, (rows, requests))}

    def compute_output_spec(self, inputs: Mapping[str, Any], visible: Any, like: Any) -> dict[str, Any]:
        rows, requests = like.shape
        found = {}
        for name, x in inputs.items():
            length = None if None in (requests, x.shape[1]) else requests * x.shape[1]
            found[name] = keras.KerasTensor((rows, length, *x.shape[2:]), dtype=x.dtype)
        return {**found, **{name: keras.KerasTensor((rows, requests), dtype="int32") for name in ("begin", "end")}}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
