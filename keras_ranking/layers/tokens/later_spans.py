"""LaterSpans: which events the later events of a cache see."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.tokens.event_spans import EventSpans
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_most, int32


@keras.saving.register_keras_serializable(package="keras_ranking")
class LaterSpans(EventSpans):
    """Spans of events that follow those of a cache: what `EventSpans` of the row of both gives for the later ones.

    The row holds one history, without padding before or between its events. Each later event is compared with all L events of the row,
    M L numbers: for few events behind many that is less work than the spans of the whole row.

    Args:
        mask, delay, session_gap, own, by_column: see `EventSpans`.

    Call arguments:
        times: int32 (B, L) of all events, the later ones directly after those of the cache; beyond the last one any values.
        new: (B, M, ...), any tensor of the M later events.
        first: int32 (B,), how many events the cache has: the place of the first later one.
        count: int32 (B,), how many of the M are real.
        sessions: int32 (B, L), as in `EventSpans`; with `by_column`, and only then.

    Output:
        `Spans` of (B, M), in places of the row.

    Raises:
        ValueError: as `EventSpans`.

    Example:
        >>> times, new = np.array([[0, 5, 60, 0]], "int32"), np.array([[60, 0]], "int32")
        >>> counts = {"first": np.array([2], "int32"), "count": np.array([1], "int32")}
        >>> keras.ops.convert_to_numpy(kr.layers.LaterSpans("delay", delay=60)(times, new=new, **counts).end)
        array([[1, 3]], dtype=int32)
    """

    whole = ("times", "first", "count", "sessions")

    def call(self, times: Any, new: Any, first: Any, count: Any, sessions: Any = None) -> Any:  # type: ignore[override]
        self._check_sessions(sessions)
        order = ops.arange(ops.shape(new)[1], dtype="int32")[None, :]
        place = first[:, None] + order
        at, itself = ops.arange(ops.shape(times)[1], dtype="int32")[None, None, :], place[:, :, None]
        if self.mask == "delay":
            end = self._known(times, place)
        elif self.by_column:
            ids = ops.take_along_axis(sessions, place, axis=1)
            same = ops.logical_and(ops.equal(sessions[:, None, :], ids[:, :, None]), at <= itself)
            end = at_most(ops.min(ops.where(same, at, itself), axis=2), self._known(times, place))
        else:
            pause = times[:, 1:] - times[:, :-1]
            begins = ops.not_equal(pause, 0) if self.mask == "causal" else pause >= self.session_gap
            begins = ops.concatenate([ops.zeros_like(times[:, :1], dtype="bool"), begins], axis=1)[:, None, :]
            end = ops.max(ops.where(ops.logical_and(begins, at <= itself), at, int32(0)), axis=2)
        padding = order >= count[:, None]
        own = ops.where(padding, place + 1, place) if self.own else place + 1
        return Spans(ops.where(padding, place, int32(0)), ops.where(padding, place, end), own)

    def _known(self, times: Any, place: Any) -> Any:
        """int32 (B, M): how many of the events before each one are at least `delay` seconds older, which are the first ones."""
        horizon = (ops.take_along_axis(times, place, axis=1) - self.delay)[:, :, None]
        before = ops.arange(ops.shape(times)[1], dtype="int32")[None, None, :] < place[:, :, None]
        known = ops.logical_and(before, times[:, None, :] <= horizon)
        return ops.cast(ops.sum(ops.cast(known, "int32"), axis=2), "int32")  # torch sums int32 as int64

    def compute_output_spec(self, times: Any, new: Any, first: Any, count: Any, sessions: Any = None) -> Any:  # type: ignore[override]
        return Spans(*(keras.KerasTensor((times.shape[0], new.shape[1]), dtype="int32") for _ in Spans._fields))
