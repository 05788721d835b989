"""Streaming expected calibration error over bins of equal mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.metrics.observed_base import ObservedBase, probability_of, quotient
from keras_ranking.metrics.running_sum import RunningSum

# Logits beyond this are in the outermost cells: probabilities of 1.1e-7 and less, and their complements.
_RANGE = 16.0


@keras.saving.register_keras_serializable(package="keras_ranking")
class CalibrationError(ObservedBase):
    """Expected calibration error over bins of equal mass, in bounded memory.

        ECE = sum_b |sum_{i in b} w_i (y_i - p_i)| / sum_i w_i

    Bins of equal mass need all predictions sorted, which is impossible in a stream. Predictions are therefore counted in
    `resolution` cells of equal width in logit space over [-16, 16] (the outermost cells include all values beyond), each with its
    weight and its sum of w (y - p). Whole cells are then merged into `bins` bins of equal mass; a cell belongs to the bin with
    the middle of its mass. Sums are exact; only predictions in a cell that contains a bin edge can be in the wrong bin, so

        |value - calibration_error(...)| <= 2 * sum of the mass of the cells cut by an edge / total mass = bound()

    and a cell is cut if an edge is within its mass. With 4,096 cells (width 0.0078) the bound is a few thousandths for
    scattered predictions, and the difference is much smaller. A model that predicts a constant has one cell, a bound of 2, which
    carries no information, and an exact value, because equal predictions share a bin in both.

    Args:
        bins: number of bins of equal mass. *Our choice:* 10.
        resolution: number of cells, at least `bins`. *Our choice:* 4,096 (four float32 variables of that length).
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1.
        from_logits: plain predictions are logits. Packed predictions always are.
        name: name of the metric.
        dtype: dtype of the sums. None: `keras.config.floatx()`, at least float32.

    Call arguments:
        y_true: packed targets (B, T, 3), or labels of the shape of `y_pred`.
        y_pred: logits (B, T, K), or plain probabilities (B, N) or (B,).
        sample_weight: (B, T) or (B,); 0 excludes the token. It is passed only to metrics in `weighted_metrics` of `compile`.

    Example:
        >>> metric = kr.metrics.CalibrationError(bins=2)
        >>> metric.update_state([0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.6, 0.6])
        >>> round(float(metric.result()), 4)
        0.25
    """

    def __init__(
        self,
        bins: int = 10,
        resolution: int = 4096,
        boundaries: Sequence[int] = (),
        from_logits: bool = False,
        name: str = "calibration_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(boundaries=boundaries, from_logits=from_logits, name=name, dtype=dtype)
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
            raise ValueError(f"`bins` must be a positive integer. Received: bins={bins!r}")
        if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < bins:
            raise ValueError(f"`resolution` must be an integer of at least `bins`={bins}. Received: resolution={resolution!r}")
        self.bins = bins
        self.resolution = resolution
        self._mass = RunningSum(self, "mass", (resolution,))
        self._residual = RunningSum(self, "residual", (resolution,))

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        observed, logits = self._read(y_true, y_pred, sample_weight)
        chance = probability_of(observed, logits)
        logit = observed.logit if logits else ops.log(chance) - ops.log1p(-chance)
        place = (ops.clip(logit, -_RANGE, _RANGE) + _RANGE) * (self.resolution / (2 * _RANGE))
        # A NaN prediction has no cell; it is put into the first cell, and its residual makes the value NaN.
        place = ops.where(ops.isnan(place), ops.zeros_like(place), place)
        cell = ops.minimum(ops.cast(ops.floor(place), "int32"), self.resolution - 1)
        cell = ops.cast(ops.reshape(cell, (-1,)), "int32")  # on JAX, Keras makes a float of the number where its float type is bfloat16
        weight = ops.reshape(observed.weight, (-1,))
        residual = ops.reshape(observed.weight * (observed.label - chance), (-1,))
        self._mass.add(ops.segment_sum(weight, cell, self.resolution))
        self._residual.add(ops.segment_sum(residual, cell, self.resolution))

    def _edges(self) -> tuple[Any, Any, Any]:
        """Mass of every cell, and the bin at its lower and upper end as a real number."""
        mass = self._mass.value
        above = ops.cumsum(mass)
        total = above[-1]
        scale = self.bins / ops.where(total > 0, total, ops.ones_like(total))
        return mass, (above - mass) * scale, above * scale

    def result(self) -> Any:
        mass, lower, upper = self._edges()
        chosen = ops.cast(ops.clip(ops.floor(0.5 * (lower + upper)), 0, self.bins - 1), "int32")
        residual = ops.segment_sum(self._residual.value, chosen, self.bins)
        return self._checked(quotient(ops.sum(ops.abs(residual)), ops.sum(mass)))

    def bound(self) -> Any:
        """Upper bound of the difference of `result()` and the exact `calibration_error` of the same predictions."""
        mass, lower, upper = self._edges()
        inside = ops.floor(lower) + 1  # the first edge above the cell's lower end
        cut = ops.logical_and(inside < upper, inside < self.bins)
        return quotient(2.0 * ops.sum(ops.where(cut, mass, ops.zeros_like(mass))), ops.sum(mass))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bins": self.bins, "resolution": self.resolution}
