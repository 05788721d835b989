"""Sums that stay exact over many batches."""

from __future__ import annotations

from typing import Any

import keras


class RunningSum:
    """A float sum kept in two variables of a metric: the sum, and its accumulated rounding error (Kahan).

    A plain float32 sum of ones stops at 2^24 = 16.8 million, less than the impressions of a day.

    Args:
        metric: the metric that owns the variables.
        name: name of the sum.
        shape: shape of the sum.
    """

    def __init__(self, metric: keras.metrics.Metric, name: str, shape: tuple[int, ...] = ()) -> None:
        self._total = metric.add_variable(shape=shape, initializer="zeros", name=name)
        self._lost = metric.add_variable(shape=shape, initializer="zeros", name=f"{name}_lost")

    def add(self, value: Any) -> None:
        """Add a tensor of the sum's shape."""
        due = keras.ops.cast(value, self._total.dtype) - self._lost
        total = self._total + due
        lost = (total - self._total) - due
        # An infinite sum has no rounding error, and infinity - infinity would turn it into NaN.
        self._lost.assign(keras.ops.where(keras.ops.isfinite(lost), lost, keras.ops.zeros_like(lost)))
        self._total.assign(total)

    @property
    def value(self) -> Any:
        """The sum so far."""
        return keras.ops.convert_to_tensor(self._total) - self._lost
