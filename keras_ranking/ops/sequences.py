"""Session ids of a stream of events, and moved rows; pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_ranking.ops.integers import at_most
from keras_ranking.ops.whole import whole_numbers

# Input of a training row -> d: the slots with a history of at most L / d events, rounded up, and of more than the next input's.
SLOTS_BY_LENGTH = {"slots_whole": 1, "slots_half": 2, "slots_quarter": 4}
# Inputs of a training row that say which tokens are of one stream: whether requests share those of a longer history that theirs begins.
STREAMS = {"stream_prefix": True, "stream_window": False}


def gather_rows(held_and_new: Any, length: Any, slots: Any) -> Any:
    """Moves the M last rows of (B, slots + M, ...) directly after the first `length` of the `slots` rows.

    Rows beyond `length + M` may have any value.
    """
    shape = ops.shape(held_and_new)
    batch, total, rest = shape[0], shape[1], tuple(shape[2:])
    index = ops.arange(total, dtype="int32")[None, :]
    behind = at_most(index + slots - length[:, None], total - 1)
    index = ops.where(index < length[:, None], index, behind) + total * ops.arange(batch, dtype="int32")[:, None]
    # Whole rows of one long tensor: an index for each number would cost more than the numbers.
    rows = ops.take(ops.reshape(held_and_new, (batch * total, *rest)), ops.reshape(index, (-1,)), axis=0)
    return ops.reshape(rows, (batch, total, *rest))


def append_rows(held: Any, new: Any, length: Any, axis: int = 1) -> tuple[Any, ...]:
    """Each of `held`, (.., S, ...) with S at `axis`, with the rows of `new`, (.., M, ...), directly after the first `length` (B,) of it.

    Rows beyond `length + M` may have any value. Usually all S are real, and nothing has to be moved.
    """
    both = [ops.concatenate([old, ops.cast(x, old.dtype)], axis=axis) for old, x in zip(held, new, strict=True)]
    slots = ops.shape(held[0])[axis]

    def moved() -> tuple[Any, ...]:
        found = []
        for x in both:
            shape = ops.shape(x)
            inner = math.prod(shape[1:axis])
            rows = ops.reshape(x, (shape[0] * inner, *shape[axis:]))
            found.append(ops.reshape(gather_rows(rows, ops.repeat(length, inner), slots), shape))
        return tuple(found)

    longer: tuple[Any, ...] = _unless_full(length, slots, lambda: tuple(both), moved)
    return longer


def real_rows(values: Any, length: Any, axis: int) -> Any:
    """Values (B, .., S, ...), S at `axis`, with zeros beyond the first `length` (B,) of the S. Usually all are real: no copy then."""
    slots = ops.shape(values)[axis]

    def cleaned() -> Any:
        real = ops.arange(slots, dtype="int32")[None, :] < length[:, None]
        real = ops.reshape(real, (-1, *[1] * (axis - 1), slots, *[1] * (len(values.shape) - axis - 1)))
        return ops.where(real, values, ops.zeros((), dtype=values.dtype))

    return _unless_full(length, slots, lambda: values, cleaned)


def _unless_full(length: Any, slots: Any, whole: Callable[[], Any], moved: Callable[[], Any]) -> Any:
    """`whole()` if all slots of all rows are real, else `moved()`. A compiled program of JAX does both in one pass over the memory."""
    return moved() if keras.backend.backend() == "jax" else ops.cond(ops.all(length >= slots), whole, moved)


def session_ids(times: Any, gap: int) -> Any:
    """Session numbers of events in order of time, from 1 on; a session ends after `gap` seconds without an event. times (B, T)."""
    times = whole_numbers(times, "times")
    pause = ops.cast(times[:, 1:] - times[:, :-1] >= gap, "int32")
    return 1 + ops.concatenate([ops.zeros_like(times[:, :1], dtype="int32"), ops.cumsum(pause, axis=1)], axis=1)
