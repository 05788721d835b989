"""All offline metrics of one task in one dictionary."""

from __future__ import annotations

from typing import Any

from keras_ranking.metrics.probability import calibration_error, log_loss, normalized_entropy, observed_over_expected
from keras_ranking.metrics.ranking import auc, grouped_auc, mrr, ndcg


def summary(labels: Any, probabilities: Any, groups: Any) -> dict[str, float]:
    """The metrics of one task over scored impressions.

    Args:
        labels: (n,) of 0 and 1. Rows with an unknown label must be left out by the caller.
        probabilities: (n,) in [0, 1].
        groups: (n,), the request of every row.

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
    """
    return {
        "auc": auc(labels, probabilities),
        "impression_auc": grouped_auc(labels, probabilities, groups).value,
        "ndcg_at_10": ndcg(labels, probabilities, groups, k=10).value,
        "mrr": mrr(labels, probabilities, groups).value,
        "log_loss": log_loss(labels, probabilities),
        "normalized_entropy": normalized_entropy(labels, probabilities),
        "calibration_error": calibration_error(labels, probabilities),
        "observed_over_expected": observed_over_expected(labels, probabilities),
    }
