"""The number of events of a history that a request sees."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.layers.tokens.event_spans import check_mask
from keras_ranking.ops.integers import at_most


@keras.saving.register_keras_serializable(package="keras_ranking")
class VisibleLength(WholeInputs, RefusesMask, keras.layers.Layer):
    """How many events of a history a request sees: the same events that its impressions see in a training row, see `EventSpans`.

    | `mask`      | the first n events, n = the number of                                                       |
    |-------------|---------------------------------------------------------------------------------------------|
    | `'delay'`   | events with t_j <= request_time - delay                                                     |
    | `'session'` | events before the last pause of `session_gap` seconds; the request ends the last pause      |
    | ... by ids  | events before the first one of the request's session, and with t_j <= request_time - delay  |
    | `'causal'`  | events with t_j < request_time                                                              |

    With 'session' the history must also hold the events of the current session, although they are hidden: they show when it began.

    Args:
        delay: seconds, at least 1.
        mask, session_gap, by_column: see `EventSpans`.

    Call arguments:
        history_time: int32 (B, L), oldest first.
        history_length: int32 (B,), number of events; entries beyond it are ignored.
        request_time: int32 (B,).
        history_session: int32 (B, L), `request_session`: int32 (B,), equal for one session; with `by_column`, and only then.

    Output:
        int32 (B,).

    Raises:
        ValueError: see `EventSpans`.

    Example:
        >>> times, length = np.array([[0, 5, 60, 0]], "int32"), np.array([3], "int32")
        >>> keras.ops.convert_to_numpy(kr.layers.VisibleLength(60)(times, history_length=length, request_time=np.array([66], "int32")))
        array([2], dtype=int32)
    """

    whole = ("history_time", "history_length", "request_time", "history_session", "request_session")

    def __init__(self, delay: int, mask: str = "delay", session_gap: int = 1800, by_column: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        check_mask(mask, delay, session_gap, by_column)
        self.delay, self.mask, self.session_gap, self.by_column = int(delay), mask, int(session_gap), bool(by_column)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(
        self, history_time: Any, history_length: Any, request_time: Any, history_session: Any = None, request_session: Any = None
    ) -> Any:
        if (history_session is not None and request_session is not None) != self.by_column:
            raise ValueError(f"ids of sessions must be given with `by_column`, and only then. Received: by_column={self.by_column}")
        index = ops.arange(ops.shape(history_time)[1], dtype="int32")[None, :]
        real, now = index < history_length[:, None], request_time[:, None]
        if self.by_column:
            theirs = ops.logical_or(history_time > now - self.delay, ops.equal(history_session, request_session[:, None]))
            first = ops.where(ops.logical_and(real, theirs), index, history_length[:, None])
            return at_most(ops.min(first, axis=1, initial=2**31 - 1), history_length)
        if self.mask != "session":
            old = history_time <= now - (self.delay if self.mask == "delay" else 1)
            return ops.sum(ops.cast(ops.logical_and(real, old), "int32"), axis=1)
        after = ops.concatenate([history_time[:, 1:], now], axis=1)
        after = ops.where(index + 1 < history_length[:, None], after, now)
        paused = ops.logical_and(real, after - history_time >= self.session_gap)
        return ops.max(ops.where(paused, index + 1, 0), axis=1, initial=0)

    def compute_output_spec(self, history_time: Any, history_length: Any, request_time: Any, *_: Any, **__: Any) -> Any:
        return keras.KerasTensor(tuple(history_length.shape), dtype="int32")

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("delay", "mask", "session_gap", "by_column")}
        return {**super().get_config(), **own}
