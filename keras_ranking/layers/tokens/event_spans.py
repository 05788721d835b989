"""Which events of a row see which, by one of three rules; and the same for their tokens in one of three layouts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.ops import Spans
from keras_ranking.ops.sequences import session_ids

MASKS = ("delay", "session", "causal")
LAYOUTS = ("interleaved", "fused", "value")


def check_mask(mask: str, delay: int, session_gap: int) -> None:
    """Raises a ValueError for arguments that `EventSpans` and `VisibleLength` do not accept."""
    if mask not in MASKS:
        raise ValueError(f"`mask` must be one of {MASKS}. Received: mask={mask!r}")
    if delay < 1:
        raise ValueError(f"`delay` must be at least 1 second. Received: delay={delay}")
    if mask == "session" and session_gap < delay:
        raise ValueError(
            "`session_gap` must be at least `delay`, or an earlier session would be seen before its actions are known. "
            f"Received: session_gap={session_gap}, delay={delay}"
        )


@keras.saving.register_keras_serializable(package="keras_ranking")
class EventSpans(keras.layers.Layer):
    """Spans of a row of events: which earlier events of the same member each event sees.

    | `mask`      | event i sees event j, apart from itself, iff                                                         |
    |-------------|------------------------------------------------------------------------------------------------------|
    | `'delay'`   | t_j <= t_i - delay: the actions of j were known at t_i                                               |
    | `'session'` | j belongs to an earlier session; a session ends after `session_gap` seconds without an event         |
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
        delay: seconds (ticks of `times`), at least 1. Used by 'delay'; with 'session', `session_gap` is checked against it.
        session_gap: seconds, at least `delay`. Used by 'session'.
        own: whether an event sees itself.

    Call arguments:
        times: int32 (B, T), not decreasing inside a segment.
        segments: int32 (B, T), 0 = padding.
        delays: int32 (B, T), a delay for each event, instead of `delay`; only with mask='delay'. A value below 1 counts as 1.

    Output:
        `Spans` of (B, T).

    Raises:
        ValueError: an unknown mask, `delay` below 1, `session_gap` below `delay` with 'session', `delays` with another mask than 'delay'.

    Example:
        >>> times = np.array([[0, 5, 60]], "int32")
        >>> spans = kr.layers.EventSpans("delay", delay=60)(times, segments=np.ones((1, 3), "int32"))
        >>> keras.ops.convert_to_numpy(spans.end - spans.start)
        array([[0, 0, 1]], dtype=int32)
    """

    def __init__(self, mask: str = "delay", delay: int = 60, session_gap: int = 1800, own: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        check_mask(mask, delay, session_gap)
        self.mask, self.delay, self.session_gap, self.own = mask, int(delay), int(session_gap), bool(own)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, times: Any, segments: Any, delays: Any = None) -> Any:
        if self.mask == "delay":
            return Spans.delayed(times, self.delay if delays is None else delays, segments, own=self.own)
        if delays is not None:
            raise ValueError(f"`delays` go with mask='delay'. Received: mask={self.mask!r}")
        sessions = times if self.mask == "causal" else session_ids(times, self.session_gap)
        return Spans.sessions(sessions, segments, own=self.own)

    def compute_output_spec(self, times: Any, segments: Any, delays: Any = None) -> Any:
        return Spans(*(keras.KerasTensor(times.shape, dtype="int32") for _ in Spans._fields))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask": self.mask, "delay": self.delay, "session_gap": self.session_gap, "own": self.own}


@keras.saving.register_keras_serializable(package="keras_ranking")
class TokenSpans(keras.layers.Layer):
    """From spans of T events to spans of their tokens.

    | `layout`        | tokens of a row                              | what sees what                                                   |
    |-----------------|----------------------------------------------|------------------------------------------------------------------|
    | `'interleaved'` | item 1, action 1, item 2, action 2, ... (2T) | later events see both; an action sees its item; each sees itself |
    | `'fused'`       | event 1 .. event T, query 1 .. query T (2T)  | later events and queries see an event; each sees itself          |
    | `'value'`       | event 1 .. event T                           | as in the spans of events                                        |

    Args:
        layout: see the table.

    Call arguments:
        inputs: tuple of start, end and own, each int32 (B, T); for the first two layouts the own interval must be the event itself.

    Output:
        `Spans` of (B, 2T) or (B, T).

    Raises:
        ValueError: an unknown layout.

    Example:
        >>> spans = kr.layers.EventSpans("causal")(np.array([[0, 5]], "int32"), segments=np.ones((1, 2), "int32"))
        >>> keras.ops.convert_to_numpy(kr.layers.TokenSpans("fused")(tuple(spans)).dense(4))[0].astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [0, 0, 1, 0],
               [1, 0, 0, 1]])
    """

    def __init__(self, layout: str, **settings: Any) -> None:
        super().__init__(**settings)
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}")
        self.layout = layout

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any) -> Any:
        spans = Spans(*inputs)
        if self.layout == "interleaved":
            return spans.interleave()
        if self.layout == "value":
            return spans
        count = ops.shape(spans.start)[1]
        # An event that sees nothing, not even itself, is padding, and so is its query.
        nothing = ops.logical_and(spans.end <= spans.start, spans.own > ops.arange(count, dtype="int32")[None, :])
        own = count + ops.arange(count, dtype="int32")[None, :] + ops.zeros_like(spans.own)
        start, end = (ops.where(nothing, own, part) for part in (spans.start, spans.end))
        query = (start, end, ops.where(nothing, own + 1, own))
        return Spans(*(ops.concatenate(pair, axis=1) for pair in zip(spans, query, strict=True)))

    def compute_output_spec(self, inputs: Any) -> Any:
        batch, count = inputs[0].shape
        tokens = count if self.layout == "value" or count is None else 2 * count
        return Spans(*(keras.KerasTensor((batch, tokens), dtype="int32") for _ in Spans._fields))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layout": self.layout}


@keras.saving.register_keras_serializable(package="keras_ranking")
class VisibleLength(keras.layers.Layer):
    """How many events of a history a request sees: the same events that its impressions see in a training row, see `EventSpans`.

    | `mask`      | the first n events, n = the number of                                                       |
    |-------------|---------------------------------------------------------------------------------------------|
    | `'delay'`   | events with t_j <= request_time - delay                                                     |
    | `'session'` | events before the last pause of `session_gap` seconds; the request ends the last pause      |
    | `'causal'`  | events with t_j < request_time                                                              |

    With 'session' the history must also hold the events of the current session, although they are hidden: they show when it began.

    Args:
        delay: seconds, at least 1.
        mask, session_gap: see `EventSpans`.

    Call arguments:
        history_time: int32 (B, L), oldest first.
        history_length: int32 (B,), number of events; entries beyond it are ignored.
        request_time: int32 (B,).

    Output:
        int32 (B,).

    Raises:
        ValueError: see `EventSpans`.

    Example:
        >>> times, length = np.array([[0, 5, 60, 0]], "int32"), np.array([3], "int32")
        >>> keras.ops.convert_to_numpy(kr.layers.VisibleLength(60)(times, history_length=length, request_time=np.array([66], "int32")))
        array([2], dtype=int32)
    """

    def __init__(self, delay: int, mask: str = "delay", session_gap: int = 1800, **settings: Any) -> None:
        super().__init__(**settings)
        check_mask(mask, delay, session_gap)
        self.delay, self.mask, self.session_gap = int(delay), mask, int(session_gap)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, history_time: Any, history_length: Any, request_time: Any) -> Any:
        index = ops.arange(ops.shape(history_time)[1], dtype="int32")[None, :]
        real, now = index < history_length[:, None], request_time[:, None]
        if self.mask != "session":
            old = history_time <= now - (self.delay if self.mask == "delay" else 1)
            return ops.sum(ops.cast(ops.logical_and(real, old), "int32"), axis=1)
        after = ops.concatenate([history_time[:, 1:], now], axis=1)
        after = ops.where(index + 1 < history_length[:, None], after, now)
        paused = ops.logical_and(real, after - history_time >= self.session_gap)
        return ops.max(ops.where(paused, index + 1, 0), axis=1, initial=0)

    def compute_output_spec(self, history_time: Any, history_length: Any, request_time: Any) -> Any:
        return keras.KerasTensor(tuple(history_length.shape), dtype="int32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "delay": self.delay, "mask": self.mask, "session_gap": self.session_gap}
