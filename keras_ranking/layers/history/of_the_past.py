"""What the layers share in which a candidate reads a member's past: which events it sees, and how long ago they were."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops.integers import at_least, at_most
from keras_ranking.ops.rows import take_in_rows


class OfThePast(WholeInputs, RefusesMask, keras.layers.Layer):
    """Which events a query sees, and how long ago they were: all L events for each query, or with a window W events of its own."""

    whole = ("start", "end", "times", "key_times")
    mask_instead = "`start` and `end`"

    def __init__(self, unit: float = 3600.0, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 < unit < math.inf:
            raise ValueError(f"`unit` must be a positive number of seconds. Received: unit={unit}")
        self.unit = float(unit)

    @staticmethod
    def _window(keys: Any, window: int | None) -> int | None:
        """The window, or None where it holds all L events."""
        if window is not None and (isinstance(window, bool) or int(window) != window or window < 1):
            raise ValueError(f"`window` must be a positive integer, or None. Received: window={window}")
        slots = ops.shape(keys)[1]
        return None if window is None or (isinstance(slots, int) and slots <= window) else int(window)

    def _visible(self, start: Any, end: Any, keys: Any, window: int | None = None) -> Any:
        """Whether a query sees an event, (B, N, L); with a window (B, N, W)."""
        if window is not None:
            return ops.arange(window, dtype="int32")[None, None, :] < (end - start)[:, :, None]
        place = ops.arange(ops.shape(keys)[1], dtype="int32")[None, None, :]
        return ops.logical_and(place >= start[:, :, None], place < end[:, :, None])

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
        return {**super().get_config(), "unit": self.unit}


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError for a size that is not a positive integer."""
    for name, value in sizes.items():
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
