"""All offline metrics of one task in one dictionary."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ranking.metrics.checks import binary, by_group, column, group_codes, optional_weights, starts_of
from keras_ranking.metrics.probability import calibration_in_order, log_loss, normalized_entropy, observed_over_expected
from keras_ranking.metrics.ranking import aucs_in_order, dcg_in_order, reciprocal_ranks

_TOP = 10


class PerGroup(NamedTuple):
    """Ranking metrics of each group that has both labels, in the order of the groups; `row` is the first row of each.

    The AUC is of the groups that have both labels among the rows with a weight, whose first rows are `auc_row`.
    """

    row: np.ndarray
    auc_row: np.ndarray
    auc: np.ndarray
    ndcg: np.ndarray
    reciprocal_rank: np.ndarray


def per_group(
    positive: np.ndarray, values: np.ndarray, codes: np.ndarray, grouped: np.ndarray, weight: np.ndarray | None = None
) -> PerGroup:
    """AUC, with weights, NDCG at 10 and reciprocal rank by group; `grouped` are the rows by group, then by ascending score."""
    each = weighed = aucs_in_order(positive, values, codes, None, grouped)
    if weight is not None:
        weighed = aucs_in_order(positive, values, codes, weight, grouped)
    down = grouped[::-1]  # the highest score of a group first, and the last group first
    grade, code = positive[down].astype(np.float64), codes[down]
    found, counted = dcg_in_order(grade, values[down], code, _TOP)
    start = starts_of(code)
    hits, size = np.add.reduceat(grade, start), np.diff(np.r_[start, code.size])
    ideal = (np.arange(code.size) - np.repeat(start, size) < np.repeat(hits, size)).astype(np.float64)
    best, _ = dcg_in_order(ideal, ideal, code, _TOP)
    # In the order of the groups, in which the other functions sum as well.
    ranks = np.ascontiguousarray(reciprocal_ranks(positive[down], values[down], code)[::-1])
    counted = counted[::-1]
    return PerGroup(each.row, weighed.row, weighed.auc, found[::-1][counted] / best[::-1][counted], ranks)


def summary(labels: Any, probabilities: Any, groups: Any, weights: Any = None) -> dict[str, float]:
    """The metrics of one task over scored impressions.

    Args:
        labels: (n,) of 0 and 1. Rows with an unknown label must be left out by the caller.
        probabilities: (n,) in [0, 1].
        groups: (n,), the request of every row.
        weights: (n,) >= 0, not all 0, of the rows. `auc`, `log_loss`, `calibration_error` and `observed_over_expected` are those of
            scikit-learn's `sample_weight`: a row of weight 2 counts as two equal rows. `impression_auc` weighs the pairs inside a request
            by the product of their weights, and each request counts once (*our choice*, as `grouped_auc`). `ndcg_at_10` and `mrr` are
            of places in a list, and take no weights. None: all 1.

    Returns:
        Exactly the keys `auc` (all rows), `impression_auc` (mean over requests that have both classes), `ndcg_at_10` and
        `mrr` (means over requests with both labels, too), `log_loss`, `normalized_entropy`, `calibration_error` (10 bins of
        equal mass) and `observed_over_expected`. An undefined metric is NaN: with one class only, both AUCs and the normalised
        entropy; without a request of both labels, as in a log of one row a request, the impression AUC, NDCG and MRR.

    Raises:
        ValueError: no rows, lengths differ, a label other than 0 or 1, a probability outside [0, 1] or NaN.

    Example:
        >>> result = kr.metrics.summary([1, 0, 0, 1], [0.8, 0.2, 0.4, 0.6], [1, 1, 2, 2])
        >>> result["impression_auc"], round(result["log_loss"], 4)
        (1.0, 0.367)
        >>> round(kr.metrics.summary([1, 0], [0.8, 0.4], [1, 1], weights=[3, 1])["log_loss"], 4)  # (3 * 0.2231 + 0.5108) / 4
        0.2951

    Reference: scikit-learn, `roc_auc_score` and `log_loss` with `sample_weight`.
    """
    positive = binary(labels)
    weight = optional_weights(weights, positive.size)
    chance = column("probabilities", probabilities, positive.size, least=0.0, most=1.0).astype(np.float64)
    codes = group_codes(groups, positive.size)
    order = np.argsort(chance)  # the one sort of the scores
    grouped = by_group(codes, order)
    whole = aucs_in_order(positive, chance, np.zeros_like(codes), weight, order).auc
    each = per_group(positive, chance, codes, grouped, weight)

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else float("nan")

    return {
        "auc": float(whole[0]) if whole.size else float("nan"),
        "impression_auc": mean(each.auc),
        "ndcg_at_10": mean(each.ndcg),
        "mrr": mean(each.reciprocal_rank),
        "log_loss": log_loss(positive, chance, weight),
        "normalized_entropy": normalized_entropy(positive, chance, weight),
        "calibration_error": calibration_in_order(positive, chance, weight, order, bins=10),
        "observed_over_expected": observed_over_expected(positive, chance, weight),
    }
