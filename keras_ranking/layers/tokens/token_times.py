"""Times repeated: one for each token of an event, one for each candidate of a request."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs


@keras.saving.register_keras_serializable(package="keras_ranking")
class TokenTimes(WholeInputs, RefusesMask, keras.layers.Layer):
    """Times (or indices) of tokens from those of events; see `TokenSpans` for the layouts.

    Args:
        layout: 'interleaved': item and action have the time of their event; 'fused': event and query have it.
        distinct: with 'interleaved', 2 t for the item and 2 t + 1 for the action, so that they differ.

    Call arguments:
        times: int32 (B, T).

    Output:
        int32 (B, 2T).

    Raises:
        ValueError: another layout, or `distinct` with 'fused'.

    Example:
        >>> keras.ops.convert_to_numpy(kr.layers.TokenTimes()(np.array([[3, 9]], "int32")))
        array([[3, 3, 9, 9]], dtype=int32)
    """

    whole = ("times",)

    def __init__(self, layout: str = "interleaved", distinct: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if layout not in ("interleaved", "fused") or (distinct and layout == "fused"):
            received = f"layout={layout!r}, distinct={distinct}"
            raise ValueError(f"`layout` must be 'interleaved' or 'fused', and `distinct` needs 'interleaved'. Received: {received}")
        self.layout, self.distinct = layout, bool(distinct)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, times: Any) -> Any:
        if self.layout == "fused":
            return ops.concatenate([times, times], axis=1)
        if not self.distinct:
            return ops.repeat(times, 2, axis=1)
        shape = ops.shape(times)
        return ops.reshape(ops.stack([2 * times, 2 * times + 1], axis=2), (shape[0], 2 * shape[1]))

    def compute_output_spec(self, times: Any) -> Any:
        length = times.shape[1]
        return keras.KerasTensor((times.shape[0], None if length is None else 2 * length), dtype=times.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layout": self.layout, "distinct": self.distinct}


@keras.saving.register_keras_serializable(package="keras_ranking")
class RequestTimes(WholeInputs, RefusesMask, keras.layers.Layer):
    """The request time for every candidate: all candidates share it, so no score depends on a candidate's slot.

    Call arguments:
        candidates: (B, N, D), used for its shape only.
        request_time: int32 (B,).

    Output:
        int32 (B, N).

    Example:
        >>> kr.layers.RequestTimes()(np.zeros((2, 5, 4), "float32"), request_time=np.array([7, 8], "int32")).shape
        (2, 5)
    """

    whole = ("request_time",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "autocast": False})

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, candidates: Any, request_time: Any) -> Any:
        shape = ops.shape(candidates)
        return ops.broadcast_to(request_time[:, None], (shape[0], shape[1]))

    def compute_output_spec(self, candidates: Any, request_time: Any) -> Any:
        return keras.KerasTensor(tuple(candidates.shape[:2]), dtype="int32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}  # Keras loses name and dtype of a class with `__init__` but without this
