"""Cross-entropy of the softmax over the list of items that were shown in the same request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import Observed, check_boundaries, request_segments
from keras_ranking.losses.reduction import PackedLoss, divided, reported
from keras_ranking.ops.rows import for_own_rows


def softmax_loss(observed: Observed, reduction: str = "mean_with_sample_weight") -> Any:
    """The scalar of `InRequestSoftmax` from tensors (B, T)."""
    loss, total = (ops.sum(part) for part in for_own_rows(_sums, observed.request, observed.label, observed.logit, observed.weight))
    return divided(loss, total, reduction)


def _sums(request: Any, *slots: Any) -> tuple[Any, Any]:
    """sum_i v_i (-log p_i) and sum_i v_i, each (1,)."""
    segment, count = request_segments(request)
    label, logit, weight = (ops.reshape(x, (-1,)) for x in slots)
    shown = weight > 0
    zero = ops.zeros_like(logit)
    # The largest logit of the list is subtracted against overflow; its gradient cancels, so it is stopped.
    low = ops.full_like(logit, -1e30)
    peak = ops.segment_max(ops.stop_gradient(ops.where(shown, logit, low)), segment, count)
    shifted = ops.where(shown, logit - ops.take(peak, segment, axis=0), zero)
    mass = ops.segment_sum(ops.where(shown, ops.exp(shifted), zero), segment, count)
    log_mass = ops.log(ops.where(mass > 0, mass, ops.ones_like(mass)))
    loss = ops.take(log_mass, segment, axis=0) - shifted
    clicks = ops.take(ops.segment_sum(ops.where(shown, label, zero), segment, count), segment, axis=0)
    share = ops.where(clicks > 0, weight * label / ops.where(clicks > 0, clicks, ops.ones_like(clicks)), zero)
    return ops.sum(share * loss, keepdims=True), ops.sum(share, keepdims=True)


@keras.saving.register_keras_serializable(package="keras_ranking")
class InRequestSoftmax(PackedLoss):
    """Listwise loss: cross-entropy of the softmax over the items shown in one request.

        p_i = exp(s_i) / sum_{j in r(i)} exp(s_j)                  r(i) = the items of i's request with weight > 0
        v_i = w_i y_i / sum_{j in r(i)} y_j
        L   = sum_i v_i (-log p_i) / sum_i v_i

    With weights 1 this is the mean over the requests that have a positive item; each counts once for any number of positives.
    Requests without a positive are ignored; if no request has one, loss and gradient are exactly 0.

    s is the logit of the tower of the observed position. *Our choice:* the softmax is over the whole list, across position
    buckets. If s_i is the log-odds of an action at the position of i, p_i is the probability that i has the action, given that exactly
    one item of the list has it. So the position effect stays in the towers.

    Work and memory are O(T), with segment sums. The tokens of a request must be contiguous in their row.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1. (): one bucket.
        from_logits: whether `y_pred` are logits; else probabilities, of which ln p - ln(1 - p) is taken, p at least 1e-7 from 0 and 1.
        reduction: 'mean_with_sample_weight', or 'sum': without the divisor.
        name: name of the loss.
        dtype: dtype of the computation. None: `keras.config.floatx()`, at least float32, for logits of any dtype.

    Call arguments:
        y_true: packed targets (B, T, 3) (see `targets`), or labels (B, N) where a row is a request.
        y_pred: logits (B, T, K); (B, T) for K = 1.
        sample_weight: (B, T) or (B,), >= 0. An item of weight 0 is removed from its list.

    Returns:
        Scalar.

    Raises:
        ValueError: boundaries not increasing, shapes that do not fit, plain rows of one item, outputs of a sigmoid, labels or
            weights that are negative or not finite.

    Example:
        >>> loss = kr.losses.InRequestSoftmax()
        >>> round(float(loss([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 1.0]])), 4)  # one list of two, log 2
        0.6931

    Reference: Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007.
    """

    def __init__(
        self,
        boundaries: Sequence[int] = (),
        from_logits: bool = True,
        reduction: str = "mean_with_sample_weight",
        name: str = "in_request_softmax",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, reduction, from_logits)
        self.boundaries = check_boundaries(boundaries)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        observed = self.read(y_true, y_pred, sample_weight, lists=True)
        return reported(softmax_loss(observed, self.reduction), observed)

    def get_config(self) -> dict[str, Any]:
        return {
            "boundaries": list(self.boundaries),
            "from_logits": self.from_logits,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }
