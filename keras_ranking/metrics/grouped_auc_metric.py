"""Streaming mean over requests of the AUC within the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import Observed, request_segments
from keras_ranking.metrics.observed_base import ObservedBase, quotient
from keras_ranking.metrics.running_sum import RunningSum

# Segment and rank share one int32 sort key.
_LONGEST_ROW = 46_340


def batch_aucs(observed: Observed) -> tuple[Any, Any]:
    """(sum over requests of the AUC within the request, number of requests that have one) from tensors (B, T).

    Rows are sorted by score and then by request; a positive counts 1 for each negative before it in its
    request, and 1/2 for each negative with an equal score. Two sorts and a few segment sums: O(T log T), no pairs are formed.
    """
    label, score, weight = observed.label, observed.logit, observed.weight
    tokens = ops.shape(score)[1]
    segment, count = request_segments(observed.request)
    local = ops.reshape(segment, ops.shape(score))
    order = ops.argsort(score, axis=1)
    # Keys of the second sort are all different, so it does not have to be stable.
    key = (ops.take_along_axis(local, order, axis=1) % tokens) * tokens + ops.arange(tokens, dtype="int32")
    order = ops.take_along_axis(order, ops.argsort(key, axis=1), axis=1)
    score, label, weight = (ops.take_along_axis(x, order, axis=1) for x in (score, label, weight))
    changed = ops.logical_or(ops.not_equal(score[:, 1:], score[:, :-1]), ops.not_equal(local[:, 1:], local[:, :-1]))
    tie = ops.cast(ops.cumsum(ops.pad(ops.cast(changed, "int32"), [[0, 0], [1, 0]]), axis=1), "int32")
    tie = ops.reshape(tie + local[:, :1], (-1,))
    positive, negative = weight * label, weight * (1.0 - label)
    before = ops.reshape(ops.cumsum(negative, axis=1) - negative, (-1,))
    positive, negative = ops.reshape(positive, (-1,)), ops.reshape(negative, (-1,))
    # `before` never decreases within a row, so its smallest value in a range is that of the first token.
    at_tie = -ops.take(ops.segment_max(-before, tie, count), tie, axis=0)
    at_request = -ops.take(ops.segment_max(-before, segment, count), segment, axis=0)
    tied = ops.take(ops.segment_sum(negative, tie, count), tie, axis=0)
    wins = ops.segment_sum(positive * (at_tie - at_request + 0.5 * tied), segment, count)
    pairs = ops.segment_sum(positive, segment, count) * ops.segment_sum(negative, segment, count)
    both = pairs > 0
    values = ops.where(both, wins / ops.where(both, pairs, ops.ones_like(pairs)), ops.zeros_like(pairs))
    return ops.sum(values), ops.sum(ops.cast(both, values.dtype))


@keras.saving.register_keras_serializable(package="keras_ranking")
class GroupedAUC(ObservedBase):
    """Mean over requests of the AUC within the request, by the logit of the observed position's tower.

        AUC_r = sum_{i positive, j negative in r} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum_i w_i sum_j w_j)
        value = sum_r AUC_r / number of requests that hold both classes

    A request never spans rows, so every batch is exact and the value is that of `grouped_auc` on the whole set, to float
    rounding. Requests with only one class are ignored; if no request has both, the value is NaN. A NaN logit of
    non-zero weight makes the value NaN. The tokens of a request are contiguous in their row.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1. Items at different positions are
            compared by the logits of their own towers.
        name: name of the metric.
        dtype: dtype of the sums. None: `keras.config.floatx()`, at least float32.

    Call arguments:
        y_true: packed targets (B, T, 3), or labels (B, N) where a row is a request.
        y_pred: logits (B, T, K); plain (B, N): any monotone score.
        sample_weight: (B, T) or (B,); 0 excludes the token. It is passed only to metrics in `weighted_metrics` of `compile`.

    Raises:
        ValueError: shapes that do not fit, plain rows of one item, a negative label, rows of more than 46,340 tokens.

    Example:
        >>> metric = kr.metrics.GroupedAUC()
        >>> metric.update_state([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.9, 0.1, 0.2], [0.5, 0.5, 0.7]])
        >>> round(float(metric.result()), 4)  # (1 + 0.25) / 2
        0.625
    """

    _ranks = True

    def __init__(self, boundaries: Sequence[int] = (), name: str = "grouped_auc", dtype: Any = None) -> None:
        super().__init__(boundaries=boundaries, from_logits=True, name=name, dtype=dtype)
        self._sum = RunningSum(self, "auc")
        self._requests = RunningSum(self, "requests")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        observed, _ = self._read(y_true, y_pred, sample_weight)
        tokens = observed.logit.shape[1]
        if tokens is not None and tokens > _LONGEST_ROW:
            raise ValueError(f"rows must have at most {_LONGEST_ROW} tokens. Received: {tokens}")
        total, requests = batch_aucs(observed)
        wrong = ops.any(ops.isnan(observed.logit))
        self._sum.add(ops.where(wrong, ops.full_like(total, float("nan")), total))
        self._requests.add(requests)

    def result(self) -> Any:
        return self._checked(quotient(self._sum.value, self._requests.value))

    def get_config(self) -> dict[str, Any]:
        return {"boundaries": list(self.boundaries), "name": self.name, "dtype": self.dtype}
