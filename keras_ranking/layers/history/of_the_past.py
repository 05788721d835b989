"""What the layers share in which a candidate reads a member's past: which events it sees, and how long ago they were."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs


class OfThePast(WholeInputs, RefusesMask, keras.layers.Layer):
    """Which events a query sees, and how long ago they were."""

    whole = ("start", "end", "times", "key_times")
    mask_instead = "`start` and `end`"

    def __init__(self, unit: float = 3600.0, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 < unit < math.inf:
            raise ValueError(f"`unit` must be a positive number of seconds. Received: unit={unit}")
        self.unit = float(unit)

    def _visible(self, start: Any, end: Any, keys: Any) -> Any:
        """Whether a query sees an event, (B, N, L)."""
        place = ops.arange(ops.shape(keys)[1], dtype="int32")[None, None, :]
        return ops.logical_and(place >= start[:, :, None], place < end[:, :, None])

    def _log_gap(self, times: Any, key_times: Any) -> Any:
        """ln(1 + seconds / unit) from event to query, (B, N, L); 0 for events that are not older."""
        gap = ops.cast(ops.maximum(times[:, :, None] - key_times[:, None, :], ops.zeros_like(times[:, :, None])), "float32")
        return ops.log1p(gap / self.unit)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unit": self.unit}


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError for a size that is not a positive integer."""
    for name, value in sizes.items():
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
