"""Session ids of a stream of events, and moved rows; pure functions of tensors."""

from __future__ import annotations

from typing import Any

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


def session_ids(times: Any, gap: int) -> Any:
    """Session numbers of events in order of time, from 1 on; a session ends after `gap` seconds without an event. times (B, T)."""
    times = whole_numbers(times, "times")
    pause = ops.cast(times[:, 1:] - times[:, :-1] >= gap, "int32")
    return 1 + ops.concatenate([ops.zeros_like(times[:, :1], dtype="int32"), ops.cumsum(pause, axis=1)], axis=1)
