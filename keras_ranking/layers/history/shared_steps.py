"""Steps that the fusions of a `HistoryEncoder` share: which events are read, what they see, how states become an output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_least, at_most
from keras_ranking.ops.masks import RealFirst
from keras_ranking.ops.maxima import largest
from keras_ranking.ops.sequences import session_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def latest_window(history: Any, times: Any, visible: Any, size: int, sessions: Any = None) -> tuple[Any, Any, Any, Any]:
    """The `size` latest visible events, left-aligned: history (B, W, E), times and sessions (B, W) or None, and how many are real, (B,).

    W is the smaller of `size` and L.
    """
    slots = ops.shape(history)[1]
    if isinstance(slots, int) and slots <= size:
        return history, times, sessions, ops.cast(visible, "int32")
    window = min(slots, size) if isinstance(slots, int) else at_most(slots, size)
    visible = ops.cast(visible, "int32")
    length = at_most(visible, window)
    index = (visible - length)[:, None] + ops.arange(window, dtype="int32")[None, :]
    index = at_most(index, slots - 1)
    history = ops.take_along_axis(history, index[:, :, None], axis=1)
    times, sessions = (None if x is None else ops.take_along_axis(x, index, axis=1) for x in (times, sessions))
    return history, times, sessions, length


def latest_events(encoder: HistoryEncoder, inputs: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
    """Tokens (B, W, E) of the latest visible events, whether each is real (B, W), their times and sessions, and their number (B,)."""
    inputs = real_events_first(inputs, "visible")
    read = inputs["history"], inputs.get("times"), inputs["visible"], encoder.max_history, inputs.get("sessions")
    history, times, sessions, length = latest_window(*read)
    real = ops.arange(ops.shape(history)[1], dtype="int32")[None, :] < length[:, None]
    history = ops.where(real[:, :, None], history, ops.zeros_like(history))
    return history, real, times, sessions, length


def real_events_first(inputs: Mapping[str, Any], count: str) -> Mapping[str, Any]:
    """Inputs without `history_real`: real events first, in their order, and `count` is how many of those that it counted are real.

    Args:
        inputs: of a step, with `history` and, where needed, `times`.
        count: 'visible' or 'count': how many of the first events there are; where it is missing, all that are real.
    """
    if inputs.get("history_real") is None:
        return inputs
    real = ops.cast(inputs["history_real"], "bool")
    if inputs.get(count) is not None:
        real = ops.logical_and(real, ops.arange(ops.shape(real)[1], dtype="int32")[None, :] < ops.cast(inputs[count], "int32")[:, None])
    first = RealFirst.of(real)
    moved = {name: first.rows(inputs[name]) for name in ("history", "times", "sessions") if inputs.get(name) is not None}
    return {**{name: x for name, x in inputs.items() if name != "history_real"}, **moved, count: first.count}


def rotated_by(encoder: HistoryEncoder, times: Any, like: Any, first: Any = 0) -> Any:
    """Numbers by which the tokens `like` (B, T, ..) are rotated: their times, or their index from `first` on; None: no rotation."""
    if encoder.rotary is None:
        return None
    if encoder.rotate_by == "time":
        return times
    return first + ops.arange(ops.shape(like)[1], dtype="int32")[None, :] + ops.zeros_like(like[:, :, 0], dtype="int32")


def history_spans(encoder: HistoryEncoder, real: Any, times: Any, sessions: Any = None) -> Spans:
    """Spans of the events among themselves, by the encoder's `history_mask`."""
    segments = ops.cast(real, "int32")
    if encoder.history_mask == "bidirectional":
        return Spans.bidirectional(segments)
    if encoder.history_mask == "causal":
        return Spans.causal(segments)
    if encoder.session_ids:
        return Spans.sessions(sessions, segments, apart=True)
    return Spans.sessions(session_ids(times, encoder.session_gap), segments)


def history_summary(encoder: HistoryEncoder, x: Any, real: Any, length: Any) -> Any:
    """[max over real events ; the k latest, most recent first] of x (B, W, D) -> (B, (pool + k) D)."""
    parts = []
    if encoder.pool:
        parts.append(largest(x, real[:, :, None], axis=1))
    for k in range(encoder.latest):
        at = length - 1 - k
        row = ops.take_along_axis(x, at_least(at, 0)[:, None, None], axis=1)[:, 0]
        parts.append(ops.where(at[:, None] >= 0, row, ops.zeros_like(row)))
    return ops.concatenate(parts, axis=-1)


def candidate_output(encoder: HistoryEncoder, x: Any, summary: Any, owner: Any = None) -> Any:
    """States of candidates (B, N, D) -> output: normalised, with the summary of the history appended, and projected.

    Args:
        encoder: the layer.
        x: (B, N, D).
        summary: (B, (pool + k) D), or None if there is none.
        owner: function of the summary that returns it for each candidate; None: all candidates of a row have the same.
    """
    out = encoder.norm(x)
    if summary is not None:
        wide = summary[:, None] + ops.zeros_like(x[:, :, :1]) if owner is None else owner(summary)
        out = ops.concatenate([out, wide], axis=-1)
    return out if encoder.out is None else encoder.out(out)
