"""Streaming normalised entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.metrics.observed_base import ObservedBase, quotient
from keras_ranking.metrics.running_sum import RunningSum


@keras.saving.register_keras_serializable(package="keras_ranking")
class NormalizedEntropy(ObservedBase):
    """Log loss / entropy of the base rate. Below 1 is better than always predicting the base rate.

        NE = (sum_i w_i l_i / sum_i w_i) / -(p ln p + (1 - p) ln(1 - p)),    p = sum_i w_i y_i / sum_i w_i

    l is the log loss in nats, from logits without overflow; nothing is clipped: a plain probability of exactly 0 or 1 that
    is wrong makes the value infinite. NaN until both classes have occurred.

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
        >>> metric = kr.metrics.NormalizedEntropy()
        >>> metric.update_state([1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25])
        >>> round(float(metric.result()), 4)
        1.0
    """

    def __init__(
        self, boundaries: Sequence[int] = (), from_logits: bool = False, name: str = "normalized_entropy", dtype: Any = None
    ) -> None:
        super().__init__(boundaries=boundaries, from_logits=from_logits, name=name, dtype=dtype)
        self._loss = RunningSum(self, "loss")
        self._positive = RunningSum(self, "positive")
        self._weight = RunningSum(self, "weight")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        observed, logits = self._read(y_true, y_pred, sample_weight)
        label, value, weight = observed.label, observed.logit, observed.weight
        if logits:
            loss = ops.where(label > 0, ops.softplus(-value), ops.softplus(value))
        else:
            loss = -ops.where(label > 0, ops.log(value), ops.log1p(-value))
        self._loss.add(ops.sum(ops.where(weight > 0, weight * loss, ops.zeros_like(loss))))
        self._positive.add(ops.sum(weight * label))
        self._weight.add(ops.sum(weight))

    def result(self) -> Any:
        weight, positive = self._weight.value, self._positive.value
        rate = quotient(positive, weight)
        negative = quotient(weight - positive, weight)
        both = ops.logical_and(rate > 0, negative > 0)
        one = ops.ones_like(rate)
        rate, negative = ops.where(both, rate, one), ops.where(both, negative, one)
        entropy = -(rate * ops.log(rate) + negative * ops.log(negative))
        return self._checked(quotient(quotient(self._loss.value, weight), ops.where(both, entropy, ops.zeros_like(entropy))))
