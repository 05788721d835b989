"""Streaming ratio of observed to expected positives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.metrics.observed_base import ObservedBase, probability_of, quotient
from keras_ranking.metrics.running_sum import RunningSum


@keras.saving.register_keras_serializable(package="keras_ranking")
class ObservedOverExpected(ObservedBase):
    """Sum of labels over sum of probabilities: at 1 the mean prediction is calibrated, above 1 it is too low.

        O/E = sum_i w_i y_i / sum_i w_i p_i

    NaN until there is a prediction with a weight, and if every probability was 0.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1.
        from_logits: plain predictions are logits. Packed predictions always are.
        name: name of the metric.
        dtype: dtype of the sums. None: `keras.config.floatx()`, at least float32.

    Call arguments:
        y_true: packed targets (B, T, 3), or labels of the shape of `y_pred`.
        y_pred: logits (B, T, K), or plain probabilities (B, N) or (B,).
        sample_weight: (B, T) or (B,); 0 excludes the token. It is passed only to metrics in `weighted_metrics` of `compile`.

    Example:
        >>> metric = kr.metrics.ObservedOverExpected()
        >>> metric.update_state([1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.25, 0.25])
        >>> round(float(metric.result()), 4)
        1.3333
    """

    def __init__(
        self, boundaries: Sequence[int] = (), from_logits: bool = False, name: str = "observed_over_expected", dtype: Any = None
    ) -> None:
        super().__init__(boundaries=boundaries, from_logits=from_logits, name=name, dtype=dtype)
        self._observed = RunningSum(self, "observed")
        self._expected = RunningSum(self, "expected")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        observed, logits = self._read(y_true, y_pred, sample_weight)
        self._observed.add(ops.sum(observed.weight * observed.label))
        self._expected.add(ops.sum(observed.weight * probability_of(observed, logits)))

    def result(self) -> Any:
        return self._checked(quotient(self._observed.value, self._expected.value))
