"""Small layers that turn times, lengths and slots into what attention needs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.ops import Spans


@keras.saving.register_keras_serializable(package="keras_ranking")
class KeepFirst(keras.layers.Layer):
    """The first `length` entries of each row, zeros beyond: whatever stood there (padding, NaN, wild ids) is gone.

    Call arguments:
        inputs: (B, T, ...).
        length: int32 (B,).

    Output:
        Shape and type of `inputs`.

    Example:
        >>> keras.ops.convert_to_numpy(KeepFirst()(np.array([[7, 8, 9]], "int32"), length=np.array([2], "int32")))
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
        >>> keras.ops.convert_to_numpy(Segments()(np.zeros((1, 3), "int32"), length=np.array([2], "int32")))
        array([[1, 1, 0]], dtype=int32)
    """

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, times: Any, length: Any) -> Any:
        return ops.cast(ops.arange(ops.shape(times)[1], dtype="int32")[None, :] < length[:, None], "int32")


@keras.saving.register_keras_serializable(package="keras_ranking")
class TokenTimes(keras.layers.Layer):
    """One time (or place) a token, from one an event; see `TokenSpans` for the layouts.

    Args:
        layout: 'interleaved': item and action of an event share its number; 'fused': event and query do.
        distinct: with 'interleaved', 2 t for the item and 2 t + 1 for the action, so that they differ.

    Call arguments:
        times: int32 (B, T).

    Output:
        int32 (B, 2T).

    Raises:
        ValueError: another layout, or `distinct` with 'fused'.

    Example:
        >>> keras.ops.convert_to_numpy(TokenTimes()(np.array([[3, 9]], "int32")))
        array([[3, 3, 9, 9]], dtype=int32)
    """

    def __init__(self, layout: str = "interleaved", distinct: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if layout not in ("interleaved", "fused") or (distinct and layout == "fused"):
            received = f"layout={layout!r}, distinct={distinct}"
            raise ValueError(f"`layout` must be 'interleaved' or 'fused', and `distinct` goes with the first. Received: {received}")
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
class RequestTimes(keras.layers.Layer):
    """The request's time for every candidate: all candidates share one, so nothing depends on a candidate's slot.

    Call arguments:
        candidates: (B, N, D), for its shape alone.
        request_time: int32 (B,).

    Output:
        int32 (B, N).

    Example:
        >>> RequestTimes()(np.zeros((2, 5, 4), "float32"), request_time=np.array([7, 8], "int32")).shape
        (2, 5)
    """

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
        return {**super().get_config()}  # see `KeepFirst`


@keras.saving.register_keras_serializable(package="keras_ranking")
class FlattenRows(keras.layers.Layer):
    """The first two axes as one: rows of slots as a batch of slots.

    Call arguments:
        inputs: (B, T, ...).

    Output:
        (B T, ...).

    Example:
        >>> FlattenRows()(np.zeros((2, 3, 4), "float32")).shape
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
        return {**super().get_config()}  # see `KeepFirst`


@keras.saving.register_keras_serializable(package="keras_ranking")
class SlotOwners(keras.layers.Layer):
    """For each slot of packed rows, the request it belongs to, counted over the whole batch.

    Call arguments:
        slots: int32 (B, S), the request of the row from 1 on, 0 = empty.
        requests: (B, Q), for its shape alone.

    Output:
        int32 (B S,), in 0 .. B Q - 1; an empty slot belongs to the first request of its row.

    Example:
        >>> owners = SlotOwners()(np.array([[1, 1, 2], [1, 0, 0]], "int32"), requests=np.zeros((2, 4), "int32"))
        >>> keras.ops.convert_to_numpy(owners).tolist()
        [0, 0, 1, 4, 4, 4]
    """

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, slots: Any, requests: Any) -> Any:
        rows, count = ops.shape(requests)
        owner = ops.arange(rows, dtype="int32")[:, None] * count + ops.maximum(slots - 1, 0)
        return ops.reshape(owner, (-1,))

    def compute_output_spec(self, slots: Any, requests: Any) -> Any:
        rows, size = slots.shape
        return keras.KerasTensor((None if None in (rows, size) else rows * size,), dtype="int32")


@keras.saving.register_keras_serializable(package="keras_ranking")
class UnflattenRows(keras.layers.Layer):
    """What `FlattenRows` made one axis, as two again.

    Call arguments:
        inputs: (B T, ...).
        like: (B, T), for its shape alone.

    Output:
        (B, T, ...).

    Example:
        >>> UnflattenRows()(np.zeros((6, 4), "float32"), like=np.zeros((2, 3), "int32")).shape
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
        return {**super().get_config()}  # see `KeepFirst`


@keras.saving.register_keras_serializable(package="keras_ranking")
class OneSet(keras.layers.Layer):
    """The first `count` items of each row as one set: 1 for these, 0 beyond, as `SetwiseAttention` takes it.

    Call arguments:
        inputs: (B, N, ...), for its shape alone.
        count: int32 (B,).

    Output:
        int32 (B, N).

    Example:
        >>> keras.ops.convert_to_numpy(OneSet()(np.zeros((1, 3, 4)), count=np.array([2], "int32")))
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


@keras.saving.register_keras_serializable(package="keras_ranking")
class AloneSpans(keras.layers.Layer):
    """Spans in which every token sees itself alone.

    Call arguments:
        inputs: (B, T, ...), for its shape alone.

    Output:
        `Spans` of (B, T).

    Example:
        >>> spans = AloneSpans()(np.zeros((1, 3, 4), "float32"))
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
        return {**super().get_config()}  # see `KeepFirst`
