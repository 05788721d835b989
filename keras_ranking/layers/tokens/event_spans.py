"""Which events of a row see which, by one of three rules."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_most
from keras_ranking.ops.sequences import session_ids

MASKS = ("delay", "session", "causal")


def check_mask(mask: str, delay: int, session_gap: int, by_column: bool = False) -> None:
    """Raises a ValueError for arguments that `EventSpans` and `VisibleLength` do not accept.

    Args:
        mask, delay, session_gap: theirs.
        by_column: whether sessions are told by ids, so that the gap is not read.
    """
    if mask not in MASKS:
        raise ValueError(f"`mask` must be one of {MASKS}. Received: mask={mask!r}")
    if delay < 1:
        raise ValueError(f"`delay` must be at least 1 second. Received: delay={delay}")
    if mask == "session" and not by_column and session_gap < delay:
        raise ValueError(
            "`session_gap` must be at least `delay`, or an earlier session would be seen before its actions are known. "
            f"Received: session_gap={session_gap}, delay={delay}"
        )


@keras.saving.register_keras_serializable(package="keras_ranking")
class EventSpans(WholeInputs, RefusesMask, keras.layers.Layer):
    """Spans of a row of events: which earlier events of the same member each event sees.

    | `mask`      | event i sees event j, apart from itself, iff                                                         |
    |-------------|------------------------------------------------------------------------------------------------------|
    | `'delay'`   | t_j <= t_i - delay: the actions of j were known at t_i                                               |
    | `'session'` | j belongs to an earlier session; a session ends after `session_gap` seconds without an event         |
    | ... by ids  | j comes before the first event of the session of i, and t_j <= t_i - delay                           |
    | `'causal'`  | j comes before i and before all neighbours of i that have the same time                              |

    Tracking events arrive late, so the latest actions of a member are not known when a request is scored; training must not use them
    either (CADET, 2602.11410, stated second-hand; the size of the delay is unknown). Feedback inside a session is strongly
    correlated, and a request is scored before any of it is known. A mask that removes it is one of the two remedies of Feed-SR
    (2602.12354, stated; the definition of a session is unknown); the other is random order inside sessions. 'causal' does neither:
    with it a model learns from actions that serving may not have yet. It is here to measure how much this inflates metrics.

    Under every rule, impressions of one request do not see each other. 'causal' and 'session' depend on the order of events and the
    pauses between neighbours, so events may be in any order inside a session shorter than `session_gap`. 'delay' needs times that
    do not decrease.

    Args:
        mask: see the table.
        delay: seconds (ticks of `times`), at least 1. Used by 'delay', and by 'session' with ids; without, `session_gap` is checked
            against it.
        session_gap: seconds, at least `delay`. Used by 'session' without ids.
        own: whether an event sees itself.
        by_column: with mask='session', whether a call is given the ids of sessions. Sessions of one member may overlap.

    Call arguments:
        times: int32 (B, T), not decreasing inside a segment.
        segments: int32 (B, T), 0 = padding.
        delays: int32 (B, T), a delay for each event, instead of `delay`; only with mask='delay'. A value below 1 counts as 1.
        sessions: int32 (B, T), equal for the events of one session of a member; with `by_column`, and only then.

    Output:
        `Spans` of (B, T).

    Raises:
        ValueError: an unknown mask, `delay` below 1, `session_gap` below `delay` with 'session', `delays` with another mask than 'delay',
            `by_column` with another mask than 'session', a call without `sessions` where they are read.

    Example:
        >>> times = np.array([[0, 5, 60]], "int32")
        >>> spans = kr.layers.EventSpans("delay", delay=60)(times, segments=np.ones((1, 3), "int32"))
        >>> keras.ops.convert_to_numpy(spans.end - spans.start)
        array([[0, 0, 1]], dtype=int32)
    """

    whole = ("times", "segments", "delays", "sessions")

    def __init__(
        self,
        mask: str = "delay",
        delay: int = 60,
        session_gap: int = 1800,
        own: bool = True,
        by_column: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_mask(mask, delay, session_gap, by_column)
        if by_column and mask != "session":
            raise ValueError(f"`by_column` goes with mask='session'. Received: mask={mask!r}")
        self.mask, self.delay, self.session_gap, self.own = mask, int(delay), int(session_gap), bool(own)
        self.by_column = bool(by_column)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, times: Any, segments: Any, delays: Any = None, sessions: Any = None) -> Any:
        self._check_sessions(sessions)
        if self.mask == "delay":
            return Spans.delayed(times, self.delay if delays is None else delays, segments, own=self.own)
        if delays is not None:
            raise ValueError(f"`delays` go with mask='delay'. Received: mask={self.mask!r}")
        if self.by_column:
            earlier = Spans.sessions(sessions, segments, own=self.own, apart=True)
            known = Spans.delayed(times, self.delay, segments)
            return Spans(earlier.start, at_most(earlier.end, known.end), earlier.own)
        sessions = times if self.mask == "causal" else session_ids(times, self.session_gap)
        return Spans.sessions(sessions, segments, own=self.own)

    def _check_sessions(self, sessions: Any) -> None:
        if (sessions is not None) != self.by_column:
            raise ValueError(f"`sessions` must be given with `by_column`, and only then. Received: by_column={self.by_column}")

    def compute_output_spec(self, times: Any, segments: Any, delays: Any = None, sessions: Any = None) -> Any:
        return Spans(*(keras.KerasTensor(times.shape, dtype="int32") for _ in Spans._fields))

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("mask", "delay", "session_gap", "own", "by_column")}
        return {**super().get_config(), **own}
