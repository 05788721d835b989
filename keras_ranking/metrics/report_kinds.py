"""All offline metrics of a task whose label is a grade or a number."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.metrics.checks import column, group_codes, optional_weights
from keras_ranking.metrics.probability import calibration_in_order
from keras_ranking.metrics.ranking import auc, grouped_auc, mrr, ndcg

_TOP = 10


def grade_summary(labels: Any, shares: Any, groups: Any, levels: int, weights: Any = None) -> dict[str, float]:
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
        weights: (n,) of the rows, as `summary` takes them: means are weighted, the mean r too; `ndcg_at_10` and `mrr` take none.

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
    weight = optional_weights(weights, grade.size)
    rate = float(np.average(share, weights=weight))
    with np.errstate(divide="ignore", invalid="ignore"):
        # 0 ln 0 = 0: a share of 0 or 1 that is right costs nothing.
        costs = np.where(share > 0, -share * np.log(chance), 0.0) + np.where(share < 1, -(1 - share) * np.log1p(-chance), 0.0)
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else np.nan
        over = rate / np.average(chance, weights=weight)
    # Rows of weight 0 are left out: 0 times infinity would be NaN.
    loss = float(costs.mean() if weight is None else np.average(costs[weight > 0], weights=weight[weight > 0]))
    return {
        "auc": auc(relevant, chance, weight),
        "impression_auc": grouped_auc(relevant, chance, codes, weight).value,
        "ndcg_at_10": ndcg(grade, chance, codes, k=_TOP).value,
        "mrr": mrr(relevant, chance, codes).value,
        "log_loss": loss,
        "normalized_entropy": float(loss / entropy),
        "calibration_error": calibration_in_order(share, chance, weight, np.argsort(chance), bins=10),
        "observed_over_expected": float(over),
    }


def number_summary(labels: Any, values: Any, weights: Any = None) -> dict[str, float]:
    """The metrics of a task whose label is a number, in its units.

        rmse = sqrt(mean (v - y)^2),   mae = mean |v - y|,   r2 = 1 - mean (v - y)^2 / var y
        correlation   Pearson's, of y and v
        observed_over_expected = mean y / mean v

    Args:
        labels: (n,) finite numbers y.
        values: (n,) predictions v.
        weights: (n,) >= 0, not all 0, of the rows: every mean and variance is weighted, as by scikit-learn's `sample_weight`. None: all 1.

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
    weight = optional_weights(weights, truth.size)

    def mean(numbers: np.ndarray) -> float:
        return float(numbers.mean() if weight is None else np.average(numbers, weights=weight))

    middle, of_values = mean(truth), mean(found)
    squared = mean((found - truth) ** 2)
    spread, of_found = (float(np.sqrt(mean((numbers - at) ** 2))) for numbers, at in ((truth, middle), (found, of_values)))
    with np.errstate(divide="ignore", invalid="ignore"):
        over = float(np.float64(middle) / np.float64(of_values))
    together = mean((truth - middle) * (found - of_values))
    return {
        "rmse": float(np.sqrt(squared)),
        "mae": mean(np.abs(found - truth)),
        "r2": 1.0 - squared / spread**2 if spread > 0 else float("nan"),
        "correlation": together / (spread * of_found) if spread > 0 and of_found > 0 else float("nan"),
        "observed_over_expected": over,
    }
