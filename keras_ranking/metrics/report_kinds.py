"""All offline metrics of a task whose label is a grade or a number."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.metrics.checks import column, group_codes
from keras_ranking.metrics.probability import calibration_in_order
from keras_ranking.metrics.ranking import auc, grouped_auc, mrr, ndcg

_TOP = 10


def grade_summary(labels: Any, shares: Any, groups: Any, levels: int) -> dict[str, float]:
    """The metrics of a graded task over scored impressions, with the names of `summary`.

    With g the grade, y = g / levels, p the predicted share, and r the mean of y:

        log_loss            mean of -y ln p - (1 - y) ln(1 - p)
        normalized_entropy  log_loss / (-r ln r - (1 - r) ln(1 - r)): 1 is the loss of predicting r for each row
        ndcg_at_10          with gains 2^g - 1, mean over requests with two different grades
        auc, impression_auc, mrr      of g > 0
        calibration_error, observed_over_expected      of y and p

    Args:
        labels: (n,) grades from 0 to `levels`.
        shares: (n,) predicted means of grade / `levels`, in [0, 1].
        groups: (n,), the request of every row.
        levels: the highest grade.

    Returns:
        By name; an undefined metric is NaN.

    Raises:
        ValueError: no rows, lengths differ, a grade or share out of range or NaN.

    Example:
        >>> found = kr.metrics.grade_summary([4, 0, 2, 0], [0.9, 0.1, 0.6, 0.2], [1, 1, 2, 2], levels=4)
        >>> found["ndcg_at_10"], round(found["observed_over_expected"], 4)
        (1.0, 0.8333)
    """
    grade = column("labels", labels, None, least=0.0, most=float(levels)).astype(np.float64)
    chance = column("shares", shares, grade.size, least=0.0, most=1.0).astype(np.float64)
    codes = group_codes(groups, grade.size)
    share, relevant = grade / levels, grade > 0
    rate = float(share.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        # 0 ln 0 = 0: a share of 0 or 1 that is right costs nothing.
        costs = np.where(share > 0, -share * np.log(chance), 0.0) + np.where(share < 1, -(1 - share) * np.log1p(-chance), 0.0)
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else np.nan
        over = rate / chance.mean()
    loss = float(costs.mean())
    return {
        "auc": auc(relevant, chance),
        "impression_auc": grouped_auc(relevant, chance, codes).value,
        "ndcg_at_10": ndcg(grade, chance, codes, k=_TOP).value,
        "mrr": mrr(relevant, chance, codes).value,
        "log_loss": loss,
        "normalized_entropy": float(loss / entropy),
        "calibration_error": calibration_in_order(share, chance, None, np.argsort(chance), bins=10),
        "observed_over_expected": float(over),
    }


def number_summary(labels: Any, values: Any) -> dict[str, float]:
    """The metrics of a task whose label is a number, in its units.

        rmse = sqrt(mean (v - y)^2),   mae = mean |v - y|,   r2 = 1 - mean (v - y)^2 / var y
        correlation   Pearson's, of y and v
        observed_over_expected = mean y / mean v

    Args:
        labels: (n,) finite numbers y.
        values: (n,) predictions v.

    Returns:
        By name; `r2` and `correlation` are NaN where labels (or values) do not vary.

    Raises:
        ValueError: no rows, lengths differ, a value that is not finite.

    Example:
        >>> found = kr.metrics.number_summary([1.0, 3.0, 5.0], [1.0, 3.0, 2.0])
        >>> round(found["rmse"], 4), found["mae"], round(found["r2"], 4)
        (1.7321, 1.0, -0.125)
    """
    bound = float(np.finfo(np.float64).max)
    truth = column("labels", labels, None, least=-bound, most=bound).astype(np.float64)
    found = column("values", values, truth.size, least=-bound, most=bound).astype(np.float64)
    squared = float(np.mean((found - truth) ** 2))
    spread, of_found = float(truth.std()), float(found.std())
    with np.errstate(divide="ignore", invalid="ignore"):
        over = float(np.float64(truth.mean()) / np.float64(found.mean()))
    together = float(np.mean((truth - truth.mean()) * (found - found.mean())))
    return {
        "rmse": float(np.sqrt(squared)),
        "mae": float(np.mean(np.abs(found - truth))),
        "r2": 1.0 - squared / spread**2 if spread > 0 else float("nan"),
        "correlation": together / (spread * of_found) if spread > 0 and of_found > 0 else float("nan"),
        "observed_over_expected": over,
    }
