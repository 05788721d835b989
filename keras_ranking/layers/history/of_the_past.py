"""What the layers share in which a candidate reads a member's past: which events it sees, and how long ago they were."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import ReadsKeyMask, WholeInputs, mask_of_all
from keras_ranking.ops.integers import at_least, at_most
from keras_ranking.ops.rows import take_in_rows


class OfThePast(WholeInputs, ReadsKeyMask, keras.layers.Layer):
    """Which events a query sees, and how long ago they were: all L events for each query, or with a window W events of its own.

    A query sees the events start, ..., end - 1; without `start` and `end` all events, with `causal` those older than itself. Of these it
    never sees an event that a mask hides.
    """

    whole = ("start", "end", "times", "key_times")

    def __init__(self, unit: float = 3600.0, causal: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 < unit < math.inf:
            raise ValueError(f"`unit` must be a positive number of seconds. Received: unit={unit}")
        self.unit, self.causal = float(unit), bool(causal)

    def _check_seen(self, start: Any, end: Any, times: Any, key_times: Any, window: int | None, gaps: bool = True) -> None:
        if (start is None) != (end is None):
            raise ValueError("`start` and `end` must be given together or not at all.")
        if start is None and window is not None:
            raise ValueError(f"`window` counts events from `start` on: give `start` and `end`. Received: window={window} without them")
        why = "of the time gaps" if gaps else "of causal=True without `start` and `end`"
        if (gaps or (start is None and self.causal)) and (times is None or key_times is None):
            raise ValueError(f"`times` and `key_times` must be given, because {why}.")

    @staticmethod
    def _window(keys: Any, window: int | None) -> int | None:
        """The window, or None where it holds all L events."""
        if window is not None and (isinstance(window, bool) or int(window) != window or window < 1):
            raise ValueError(f"`window` must be a positive integer, or None. Received: window={window}")
        slots = ops.shape(keys)[1]
        return None if window is None or (isinstance(slots, int) and slots <= window) else int(window)

    def _visible(
        self,
        start: Any,
        end: Any,
        keys: Any,
        window: int | None = None,
        times: Any = None,
        key_times: Any = None,
        real: Any = None,
        pairs: Any = None,
    ) -> Any:
        """Whether a query sees an event, (B, N, L) or (B, 1, L); with a window (B, N, W)."""
        if window is not None:
            seen = ops.arange(window, dtype="int32")[None, None, :] < (end - start)[:, :, None]
            for part in (None if real is None else self._of_windows(real, start, window), pairs):
                seen = seen if part is None else ops.logical_and(seen, part)
            return seen
        if start is not None:
            place = ops.arange(ops.shape(keys)[1], dtype="int32")[None, None, :]
            seen = ops.logical_and(place >= start[:, :, None], place < end[:, :, None])
        elif self.causal:
            seen = key_times[:, None, :] < times[:, :, None]
        else:
            seen = ops.ones_like(keys[:, None, :, 0] if len(keys.shape) == 3 else keys[:, None], dtype="bool")
        for part in (None if real is None else real[:, None, :], pairs):
            seen = seen if part is None else ops.logical_and(seen, part)
        return seen

    @staticmethod
    def _real_events(mask: Any, *given: Any) -> tuple[Any, ...]:
        """One mask (B, L) of an explicit one and those of tensors (B, L, ...), or None; and the tensors, 0 where it hides."""
        real = mask_of_all(*given, mask=mask)
        if real is None:
            return (None, *given)
        wide = [ops.reshape(real, (*ops.shape(real), *[1] * (len(x.shape) - 2))) for x in given]
        return (real, *(ops.where(shown, x, ops.zeros_like(x)) for shown, x in zip(wide, given, strict=True)))

    def _log_gap(self, times: Any, key_times: Any, start: Any = None, window: int | None = None) -> Any:
        """ln(1 + seconds / unit) from event to query, (B, N, L or W); 0 for events that are not older."""
        then = key_times[:, None, :] if window is None else self._of_windows(key_times, start, window)
        gap = ops.cast(ops.maximum(times[:, :, None] - then, ops.zeros_like(times[:, :, None])), "float32")
        return ops.log1p(gap / self.unit)

    @staticmethod
    def _of_windows(x: Any, start: Any, window: int) -> Any:
        """The events from `start` (B, N) on: (B, L, ...) -> (B, N, W, ...); those beyond the last one are any."""
        rows, slots, *rest = ops.shape(x)
        place = at_least(at_most(start[:, :, None] + ops.arange(window, dtype="int32")[None, None, :], slots - 1), 0)
        index = place + (ops.arange(rows, dtype="int32") * slots)[:, None, None]
        taken = take_in_rows(ops.reshape(x, (rows * slots, *rest)), ops.reshape(index, (rows, -1)), rows)
        return ops.reshape(taken, (rows, ops.shape(start)[1], window, *rest))

    def _scores(self, query: Any, keys: Any, start: Any, window: int | None) -> Any:
        """query (B, H, N, K) times keys (B, H, L, K): (B, H, N, L); with a window (B, H, N, W)."""
        if window is None:
            return ops.einsum("bhnk,bhlk->bhnl", query, keys)
        return ops.einsum("bhnk,bnwhk->bhnw", query, self._of_windows(ops.transpose(keys, (0, 2, 1, 3)), start, window))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unit": self.unit, "causal": self.causal}


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError for a size that is not a positive integer."""
    for name, value in sizes.items():
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
