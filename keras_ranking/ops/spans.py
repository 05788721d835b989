"""Spans: which keys each query may attend to, as three integers per token.

A query i sees the keys

    start[i] <= j < end[i]      union      own[i] <= j <= i

so `own[i] = i + 1` means that the second interval is empty. Every mask of a ranking model has this form, so no T x T mask is
ever stored, and the work of a kernel is proportional to the visible pairs. A token that sees nothing (padding) has a zero
output and zero gradients.

| constructor     | start                     | end                               | own                      |
|-----------------|---------------------------|-----------------------------------|--------------------------|
| `causal`        | first token of the member | i                                 | i                        |
| `window`        | max(first, i - w)         | i                                 | i                        |
| `delayed`       | first                     | first token with t > t_i - delay  | first token of the event |
| `sessions`      | first                     | first token of the session        | first token of the event |
| `setwise`       | first of the session      | end of the session                | none                     |
| ... `history`   | first of the member       | end of the session                | none                     |
| `candidates`    | first                     | end of the history                | i                        |
| `history_only`  | first                     | end of the history                | none                     |
| `bidirectional` | first                     | end of the member                 | none                     |

All constructors use only `keras.ops`, cost O(T log T), and run eagerly, in graph mode with unknown B and T, and under jit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_ranking.ops.integers import as_tensor, at_least
from keras_ranking.ops.search import search
from keras_ranking.ops.whole import whole_numbers

Tensor = Any


class Spans(NamedTuple):
    """Which keys each query may attend to: `start[i] <= j < end[i]` union `own[i] <= j <= i`.

    Args:
        start: int32 (B, T), first key of the first interval.
        end: int32 (B, T), one past the last key of the first interval; `end <= start` is an empty interval.
        own: int32 (B, T), first key of the second interval, which ends with the token itself; `own = i + 1` means no second
            interval (`stride i + 1` if `span_attention` has a stride).

    A segment, session or event is a *run* of equal ids in neighbouring tokens; padding (segment 0) may be left of, right of or
    between segments, and a segment that is interrupted by padding counts as two. Times of padding may have any value.

    Example:
        >>> segments = np.array([[1, 1, 1, 2, 2, 0]], "int32")
        >>> spans = kr.ops.Spans.causal(segments)
        >>> keras.ops.convert_to_numpy(spans.dense(6))[0].astype(int)
        array([[1, 0, 0, 0, 0, 0],
               [1, 1, 0, 0, 0, 0],
               [1, 1, 1, 0, 0, 0],
               [0, 0, 0, 1, 0, 0],
               [0, 0, 0, 1, 1, 0],
               [0, 0, 0, 0, 0, 0]])
    """

    start: Tensor
    end: Tensor
    own: Tensor

    # -- training rows: segment ids of packed members ------------------------------------------------------------------

    @classmethod
    def causal(cls, segments: Tensor, own: bool = True) -> Spans:
        """Each token sees the tokens of its segment before it and, with `own`, itself.

        Args:
            segments: int32 (B, T), 0 = padding.
            own: whether a token sees itself. False gives the strictly causal mask.
        """
        segments = _ids(segments, "segments")
        index, first, _ = _runs(segments)
        return _finish(segments, first, index, index if own else None)

    @classmethod
    def window(cls, window: int, segments: Tensor, own: bool = True) -> Spans:
        """Each token sees the `window` tokens of its segment before it and, with `own`, itself.

        Args:
            window: how many earlier tokens are seen, at least 1.
            segments: int32 (B, T), 0 = padding.
            own: whether a token sees itself.

        Raises:
            ValueError: `window` below 1.
        """
        _at_least_one(window, "window")
        segments = _ids(segments, "segments")
        index, first, _ = _runs(segments)
        return _finish(segments, at_least(first, index - window), index, index if own else None)

    @classmethod
    def delayed(cls, times: Tensor, delay: int | Tensor, segments: Tensor, events: Tensor | None = None, own: bool = True) -> Spans:
        """Each token sees the tokens at least `delay` seconds before its time, and its own event up to itself.

            j is seen  iff  segment_j = segment_i and (t_j <= t_i - delay  or  (event_j = event_i and j <= i))

        Source: CADET's session mask; the form with the own event is our choice. `delay` must be at least one second: at 0,
        events of one request, which have equal times, would see each other's actions.

        Args:
            times: int32 (B, T), non-negative seconds, non-decreasing inside a segment.
            delay: how late actions become visible, in seconds, at least 1; or int32 (B, T), a delay for each token; a value below 1
                counts as 1.
            segments: int32 (B, T), 0 = padding.
            events: int32 (B, T), ids equal for the tokens of one event, which are neighbours. None: every token is an event.
            own: whether a token sees its own event.

        Raises:
            ValueError: `delay` below 1.
        """
        if len(getattr(delay, "shape", ())) == 2:
            delay = at_least(_ids(delay, "delay"), 1)
        else:
            _at_least_one(delay, "delay")
        segments, times = _ids(segments, "segments"), _ids(times, "times")
        index, first, _ = _runs(segments)
        horizon = times - delay
        end = search(times, first, index, horizon)
        return _finish(segments, first, end, _event_starts(events, segments, index) if own else None)

    @classmethod
    def sessions(cls, sessions: Tensor, segments: Tensor, events: Tensor | None = None, own: bool = True, apart: bool = False) -> Spans:
        """Each token sees the earlier sessions of its segment, and its own event up to itself.

            j is seen  iff  segment_j = segment_i and (j is before the first token of the session of i  or  (event_j = event_i and j <= i))

        Source: the same-session mask of Feed-SR, history of LiGR.

        Args:
            sessions: int32 (B, T), ids equal for the tokens of one session, which are neighbours, or `apart`.
            segments: int32 (B, T), 0 = padding.
            events: int32 (B, T), ids equal for the tokens of one event, which are neighbours. None: every token is an event.
            own: whether a token sees its own event.
            apart: whether tokens of other sessions may stand between those of one: none of its own session is seen then either.
        """
        segments, sessions = _ids(segments, "segments"), _ids(sessions, "sessions")
        index, first, _ = _runs(segments)
        session_first = _first_of_equals(sessions, segments) if apart else _runs(segments, sessions)[1]
        return _finish(segments, first, session_first, _event_starts(events, segments, index) if own else None)

    @classmethod
    def setwise(cls, sessions: Tensor, segments: Tensor, history: bool = False) -> Spans:
        """Each token sees every token of its session, later ones too; with `history`, also all earlier sessions.

        Source: in-session set-wise attention of LiGR.

        Args:
            sessions: int32 (B, T), ids equal for the tokens of one session, which are neighbours.
            segments: int32 (B, T), 0 = padding.
            history: whether the tokens of earlier sessions of the segment are seen as well.
        """
        segments = _ids(segments, "segments")
        _, session_first, session_end = _runs(segments, _ids(sessions, "sessions"))
        first = _runs(segments)[1] if history else session_first
        return _finish(segments, first, session_end, None)

    @classmethod
    def bidirectional(cls, segments: Tensor) -> Spans:
        """Each token sees every token of its segment.

        Args:
            segments: int32 (B, T), 0 = padding.
        """
        segments = _ids(segments, "segments")
        _, first, end = _runs(segments)
        return _finish(segments, first, end, None)

    # -- requests: left-aligned history of a known length, then candidates -----------------------------------------------

    @classmethod
    def candidates(
        cls,
        history_length: Tensor,
        num_history: int | Tensor,
        num_candidates: int | Tensor,
        candidate_count: Tensor | None = None,
        history: Spans | None = None,
        visible: Tensor | None = None,
    ) -> Spans:
        """One row = L history slots, then N candidates: a candidate sees the history and itself, never another candidate.

        Source: M-FALCON, Feed-SR.

        Args:
            history_length: int32 (B,), how many of the L slots are used; they are left-aligned.
            num_history: L, the number of history slots.
            num_candidates: N.
            candidate_count: int32 (B,), how many candidates are used. None: all of them.
            history: `Spans` (B, L) of the history tokens among themselves. None: causal.
            visible: int32 (B,) or (B, N), how many history slots a candidate sees, if fewer than
                `history_length` (for example because of a delay). None: `history_length`.

        Returns:
            Spans (B, L + N).
        """
        length = ops.expand_dims(ops.cast(whole_numbers(history_length, "history_length"), "int32"), 1)
        slots = ops.expand_dims(ops.arange(num_history, dtype="int32"), 0)
        if history is None:
            index = slots + ops.zeros_like(length)
            history = _finish(ops.cast(slots < length, "int32"), ops.zeros_like(index), index, index)
        else:
            history = Spans(*history)
            padding = slots >= length
            index = slots + ops.zeros_like(length)
            history = Spans(
                ops.where(padding, index, history.start),
                ops.where(padding, index, ops.minimum(history.end, length)),
                ops.where(padding, index + 1, history.own),
            )
        tail = cls.history_only(history_length, num_candidates, candidate_count, visible)
        order = ops.expand_dims(ops.arange(num_candidates, dtype="int32"), 0)
        own = num_history + order + ops.cast(_beyond(order, candidate_count), "int32") + ops.zeros_like(length)
        return Spans(
            ops.concatenate([history.start, tail.start], axis=1),
            ops.concatenate([history.end, tail.end], axis=1),
            ops.concatenate([history.own, own], axis=1),
        )

    @classmethod
    def history_only(
        cls,
        history_length: Tensor,
        num_candidates: int | Tensor,
        candidate_count: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Spans:
        """Candidates as queries over the history as keys (the cross form, S = L keys for T = N queries).

        Source: append + cross-attention of amortized history (2412.06924); late candidates of LiGR.

        Args:
            history_length: int32 (B,), how many of the history slots are used; they are left-aligned.
            num_candidates: N.
            candidate_count: int32 (B,), how many candidates are used. None: all of them.
            visible: int32 (B,) or (B, N), how many history slots a candidate sees, if fewer than `history_length`.

        Returns:
            Spans (B, N).
        """
        length = ops.expand_dims(ops.cast(whole_numbers(history_length, "history_length"), "int32"), 1)
        order = ops.expand_dims(ops.arange(num_candidates, dtype="int32"), 0)
        end = length
        if visible is not None:
            visible = ops.cast(whole_numbers(visible, "visible"), "int32")
            end = ops.minimum(length, visible if len(visible.shape) == 2 else ops.expand_dims(visible, 1))
        end = ops.where(_beyond(order, candidate_count), 0, end + ops.zeros_like(order))
        return Spans(ops.zeros_like(end), end, order + 1 + ops.zeros_like(end))

    # -- changes and views -------------------------------------------------------------------------------------------------

    def interleave(self, first: Tensor | None = None) -> Spans:
        """From T events to 2T tokens: the item is token 2e, its action token 2e + 1.

        Both tokens of an event see both tokens of every event in `start <= j < end`. The item token also sees itself; the
        action token sees its item and itself. Events that see nothing (padding) give two tokens that see nothing. Needs spans
        whose own interval is the event itself (`causal`, `delayed`, `sessions`, `window`, one token an event).

        Args:
            first: int32 (B,), the place of the first of the T events in its row, where the spans are those of later events. None: 0.
        """
        start, end, own = self
        index = _index_like(start)
        index = index if first is None else index + first[:, None]
        empty = ops.logical_and(end <= start, own > index)
        nothing = ops.where(empty, 2 * index, 0)

        def tokens(item: Tensor, action: Tensor) -> Tensor:
            shape = ops.shape(item)
            return ops.reshape(ops.stack([item, action], axis=2), (shape[0], 2 * shape[1]))

        first, last = ops.where(empty, nothing, 2 * start), ops.where(empty, nothing, 2 * end)
        item_own = ops.where(empty, 2 * index + 1, 2 * index)
        action_own = ops.where(empty, 2 * index + 2, 2 * index)
        return Spans(tokens(first, first), tokens(last, last), tokens(item_own, action_own))

    def dense(self, num_keys: int | Tensor, stride: int = 1) -> Tensor:
        """The boolean mask (B, T, num_keys); query i has the place of key `stride i`.

        For tests and plots only: this is the buffer that spans avoid.
        """
        keys = ops.reshape(ops.arange(num_keys, dtype="int32"), (1, 1, -1))
        start, end, own = (ops.expand_dims(ops.cast(part, "int32"), 2) for part in self)
        index = stride * ops.expand_dims(_index_like(self.start), 2)
        interval = ops.logical_and(keys >= start, keys < end)
        return ops.logical_or(interval, ops.logical_and(keys >= own, keys <= index))


def _at_least_one(value: int, name: str) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value}")


def _ids(values: Tensor, name: str) -> Tensor:
    values = as_tensor(whole_numbers(values, name))
    if len(values.shape) != 2:
        raise ValueError(f"`{name}` must have shape (B, T). Received: {name}.shape={tuple(values.shape)}")
    return ops.cast(values, "int32")


def _index_like(values: Tensor) -> Tensor:
    """int32 (B, T): the index of each token in its row."""
    # A symbolic tensor first: an array of JAX would not take it.
    return ops.zeros_like(values, dtype="int32") + ops.expand_dims(ops.arange(ops.shape(values)[1], dtype="int32"), 0)


def _runs(*ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(index, first, end) of each token's run: the neighbours with equal values in all of `ids`. int32 (B, T) each."""
    changes = None
    for values in ids:
        differs = ops.not_equal(values[:, 1:], values[:, :-1])
        changes = differs if changes is None else ops.logical_or(changes, differs)
    zero = ops.zeros_like(ids[0][:, :1], dtype="int32")
    runs = ops.concatenate([zero, ops.cumsum(ops.cast(changes, "int32"), axis=1)], axis=1)
    runs = ops.cast(runs, "int32")  # torch sums int32 as int64
    index = _index_like(runs)
    first = search(runs, ops.zeros_like(index), index, runs - 1)
    end = search(runs, index + 1, ops.zeros_like(index) + ops.shape(runs)[1], runs)
    return index, first, end


def _first_of_equals(ids: Tensor, segments: Tensor) -> Tensor:
    """int32 (B, T): the first token with the id and the segment of each token, wherever the others stand; segments are runs."""
    order = ops.cast(ops.argsort(ids, axis=1), "int32")  # stable: those of one id stay in order, so that their segments are runs
    sorted_ids, sorted_segments = (ops.take_along_axis(x, order, axis=1) for x in (ids, segments))
    begin = _runs(sorted_ids, sorted_segments)[1]
    first = ops.take_along_axis(order, begin, axis=1)
    return ops.take_along_axis(first, ops.cast(ops.argsort(order, axis=1), "int32"), axis=1)


def _event_starts(events: Tensor | None, segments: Tensor, index: Tensor) -> Tensor:
    return index if events is None else _runs(segments, _ids(events, "events"))[1]


def _beyond(order: Tensor, count: Tensor | None) -> Tensor:
    """Boolean (1 or B, N): the candidates that are not used."""
    if count is None:
        return ops.zeros_like(order, dtype="bool")
    return order >= ops.expand_dims(ops.cast(count, "int32"), 1)


def _finish(segments: Tensor, start: Tensor, end: Tensor, own: Tensor | None) -> Spans:
    """Spans whose padding tokens (segment 0) see nothing; `own=None` means no second interval."""
    index = _index_like(segments)
    padding = ops.equal(segments, 0)
    # Empty spans are placed at the token itself, not at 0, so that a block of queries does not reach back to the start of the row.
    start = ops.where(padding, index, start)
    end = ops.where(padding, index, end)
    own = index + 1 if own is None else ops.where(padding, index + 1, own)
    return Spans(start, end, own)
