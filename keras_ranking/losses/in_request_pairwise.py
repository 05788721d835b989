"""RankNet loss over the pairs of items that were shown in the same request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import Observed, check_boundaries
from keras_ranking.losses.reduction import PackedLoss, divided, reported
from keras_ranking.losses.request_pairs import pair_sums

_FEW = 8  # tokens: all pairs within so few cost less than to order them by request


def _following(values: Any, count: int) -> Any:
    """(B, T) -> (B, count, T) with [b, d, t] = values[b, t + d + 1], or 0 beyond the row.

    The row is tiled `count` times and reshaped into rows that are one longer, so that every copy starts one token later. Reshapes are used
    because the gradient of a gather would be a scatter.
    """
    tokens = ops.shape(values)[1]
    padded = ops.pad(values[:, 1:], [[0, 0], [0, count]])
    length = tokens - 1 + count
    tiled = ops.pad(ops.tile(padded, (1, count)), [[0, 0], [0, count]])
    return ops.reshape(tiled, (-1, count, length + 1))[:, :, :tokens]


def pairwise_loss(
    observed: Observed, same_bucket: bool = True, window: int | None = None, reduction: str = "mean_with_sample_weight"
) -> Any:
    """The scalar of `InRequestPairwise` from tensors (B, T)."""
    label, logit, weight = observed.label, observed.logit, observed.weight
    if window == 1:
        return ops.sum(ops.zeros_like(logit) * logit)
    tokens = label.shape[1]
    if (tokens is None or tokens > _FEW) and (window is None or window > _FEW):
        return _by_request(observed, same_bucket, window, reduction)
    # A window as wide as the row would cost more than comparing all tokens.
    reach = None if window is None or (tokens is not None and window > tokens) else window - 1
    first = ops.expand_dims(label, 1), ops.expand_dims(logit, 1), ops.expand_dims(weight, 1)
    keys = [observed.request, observed.bucket] if same_bucket else [observed.request]
    if reach is None:
        second = ops.expand_dims(label, 2), ops.expand_dims(logit, 2), ops.expand_dims(weight, 2)
        same = [ops.equal(ops.expand_dims(key, 1), ops.expand_dims(key, 2)) for key in keys]
    else:
        second = _following(label, reach), _following(logit, reach), _following(weight, reach)
        same = [ops.equal(ops.expand_dims(key, 1), _following(key, reach)) for key in keys]
    order = ops.sign(first[0] - second[0])
    pair = first[2] * second[2]
    for equal in same:
        pair = ops.where(equal, pair, ops.zeros_like(pair))
    pair = pair * ops.abs(order)
    # Masked before the softplus, so that the gradient is exactly zero if there is no pair.
    margin = ops.where(pair > 0, order * (first[1] - second[1]), ops.zeros_like(pair))
    return divided(ops.sum(pair * ops.softplus(-margin)), ops.sum(pair), reduction)


def _by_request(observed: Observed, same_bucket: bool, window: int | None, reduction: str) -> Any:
    """The same from sums over the pairs that there are. Its gradient is with respect to the logits."""
    loss, total, slope = pair_sums(observed, same_bucket, window)
    loss, slope = divided(loss, total, reduction), divided(slope, total, reduction)
    # A term of value 0 with the gradient of the loss. An infinite logit has none, since the difference would be NaN.
    logit = ops.where(ops.isfinite(observed.logit), observed.logit, ops.zeros_like(observed.logit))
    return loss + ops.sum(slope * (logit - ops.stop_gradient(logit)))


def check_window(window: int | None) -> int | None:
    """`window` unchanged, or a ValueError that names it."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"`window` must be a positive integer or None. Received: window={window!r}")
    return window


@keras.saving.register_keras_serializable(package="keras_ranking")
class InRequestPairwise(PackedLoss):
    """RankNet within the request: an item with an action should rank above an item without one.

        L = sum_P w_i w_j softplus(-(s_i - s_j)) / sum_P w_i w_j
        P = {(i, j): y_i > y_j, same row, same request, and same position bucket if `same_bucket`}

    s is the logit of the tower of the observed position. If the batch has no pair, the loss and its gradient are exactly 0.

    The loss is stated for CADET in summaries of the paper; the pair scope is not known. *Our choice:* pairs are within a
    request, in which the items were shown together, and within one position bucket: across buckets the labels of a pair depend on
    the positions as much as on the items. With `boundaries=(1, 4)` the item at position 1 is alone in its bucket and is in
    no pair; `same_bucket=False` pairs it with the other items, each by the logit of its own tower.

    The loss depends only on differences of scores and not on their level: add it to a cross-entropy (`ObservedTowerLoss`) if
    probabilities are needed.

    The work is that of the pairs that there are: N log N for the N tokens of a batch, and sum_r p_r n_r over its requests, of which p_r
    items have a larger label than others; one long request does not make the others slower. Memory is O(N). A window or row of at most 8
    tokens is compared as a whole. The gradient is with respect to the logits; labels and weights have none.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1. (): one bucket.
        same_bucket: pair only items of the same position bucket.
        window: tokens that are `window` or more apart form NO pair; exact if no request spans more tokens (see `largest_request`).
            None: all pairs of a request.
        from_logits: whether `y_pred` are logits; else probabilities, of which ln p - ln(1 - p) is taken, p at least 1e-7 from 0 and 1.
        reduction: 'mean_with_sample_weight', or 'sum': without the divisor.
        name: name of the loss.
        dtype: dtype of the computation. None: `keras.config.floatx()`, at least float32, for logits of any dtype.

    Call arguments:
        y_true: packed targets (B, T, 3) (see `targets`), or labels (B, N) where a row is a request.
        y_pred: logits (B, T, K); (B, T) for K = 1.
        sample_weight: (B, T) or (B,), >= 0. The weight of a pair is w_i * w_j; a token of weight 0 is in no pair.

    Returns:
        Scalar.

    Raises:
        ValueError: boundaries not increasing, window not positive, shapes that do not fit, plain rows of one item, outputs of a
            sigmoid, labels or weights that are negative or not finite.

    Example:
        >>> loss = kr.losses.InRequestPairwise()
        >>> y_true = kr.losses.targets([[1.0, 0.0, 0.0]], request=[[1, 1, 2]])
        >>> round(float(loss(y_true, [[[0.0], [0.0], [9.0]]])), 4)  # one pair, log 2
        0.6931

    Reference: Burges et al., "Learning to Rank using Gradient Descent", ICML 2005; CADET, arXiv:2602.11410.
    """

    def __init__(
        self,
        boundaries: Sequence[int] = (),
        same_bucket: bool = True,
        window: int | None = None,
        from_logits: bool = True,
        reduction: str = "mean_with_sample_weight",
        name: str = "in_request_pairwise",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, reduction, from_logits)
        self.boundaries = check_boundaries(boundaries)
        self.same_bucket = bool(same_bucket)
        self.window = check_window(window)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        observed = self.read(y_true, y_pred, sample_weight, lists=True)
        return reported(pairwise_loss(observed, self.same_bucket and bool(self.boundaries), self.window, self.reduction), observed)

    def get_config(self) -> dict[str, Any]:
        return {
            "boundaries": list(self.boundaries),
            "same_bucket": self.same_bucket,
            "window": self.window,
            "from_logits": self.from_logits,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }
