"""Metrics of probabilities: log loss, normalised entropy, calibration error, observed over expected. numpy, exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.metrics.checks import binary, column, optional_weights, starts_of


def _inputs(labels: Any, probabilities: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    positive = binary(labels)
    chance = column("probabilities", probabilities, positive.size, least=0.0, most=1.0).astype(np.float64)
    return positive, chance, optional_weights(weights, positive.size)


def _mean(values: np.ndarray, weight: np.ndarray | None) -> float:
    return float(values.mean()) if weight is None else float((values * weight).sum() / weight.sum())


def log_loss(labels: Any, probabilities: Any, weights: Any = None) -> float:
    """Mean of -ln p where the label is 1 and -ln(1 - p) where it is 0, in nats.

    Nothing is clipped: a probability of exactly 0 or 1 that is wrong makes the mean infinite. float32 rounds a sigmoid to
    exactly 1 from a logit of 17; compute probabilities in float64 if such logits can occur.

    Args:
        labels: (n,) of 0 and 1.
        probabilities: (n,) in [0, 1].
        weights: (n,) >= 0, not all 0. None: all 1.

    Returns:
        The weighted mean.

    Raises:
        ValueError: no rows, lengths differ, a label other than 0 or 1, a probability outside [0, 1] or NaN.

    Example:
        >>> round(kr.metrics.log_loss([1, 0], [0.5, 0.5]), 4)
        0.6931
    """
    positive, chance, weight = _inputs(labels, probabilities, weights)
    if weight is not None:  # 0 * infinity would be NaN
        positive, chance, weight = positive[weight > 0], chance[weight > 0], weight[weight > 0]
    with np.errstate(divide="ignore"):
        loss = -np.where(positive, np.log(chance), np.log1p(-chance))
    return _mean(loss, weight)


def normalized_entropy(labels: Any, probabilities: Any, weights: Any = None) -> float:
    """Log loss / entropy of the base rate. Below 1 is better than always predicting the base rate.

        NE = log_loss / -(p ln p + (1 - p) ln(1 - p)),    p = mean label

    Args:
        labels, probabilities, weights: see `log_loss`.

    Returns:
        The ratio; NaN if there is only one class, because the entropy of the base rate is then 0.

    Raises:
        ValueError: see `log_loss`.

    Example:
        >>> round(kr.metrics.normalized_entropy([1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]), 6)
        1.0
    """
    loss = log_loss(labels, probabilities, weights)
    positive, _, weight = _inputs(labels, probabilities, weights)
    rate = _mean(positive.astype(np.float64), weight)
    if rate in (0.0, 1.0):
        return float("nan")
    return loss / float(-(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate)))


def observed_over_expected(labels: Any, probabilities: Any, weights: Any = None) -> float:
    """Sum of labels over sum of probabilities: at 1 the mean prediction is calibrated, above 1 it is too low.

    Args:
        labels, probabilities, weights: see `log_loss`.

    Returns:
        The ratio; if all probabilities are 0, infinity, or NaN without positives.

    Raises:
        ValueError: see `log_loss`.

    Example:
        >>> kr.metrics.observed_over_expected([1, 0, 0, 1], [0.5, 0.5, 0.25, 0.75])
        1.0
    """
    positive, chance, weight = _inputs(labels, probabilities, weights)
    observed, expected = _mean(positive.astype(np.float64), weight), _mean(chance, weight)
    if expected == 0:
        return float("inf") if observed > 0 else float("nan")
    return observed / expected


def calibration_error(labels: Any, probabilities: Any, weights: Any = None, bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass.

        ECE = sum_b |sum_{i in b} w_i (y_i - p_i)| / sum_i w_i

    Rows are ordered by probability and cut into `bins` bins of equal weight. Equal probabilities share a bin, the one
    with the middle of their weight, so the result does not depend on the order of the rows. With n rows per bin the error of a
    perfectly calibrated model is not 0 but about sqrt(2 p (1 - p) / (pi n)): compare values only for equal n and bins.

    Args:
        labels, probabilities, weights: see `log_loss`.
        bins: number of bins. *Our choice:* 10.

    Returns:
        ECE, in [0, 1].

    Raises:
        ValueError: see `log_loss`; bins not a positive integer.

    Example:
        >>> round(kr.metrics.calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.6, 0.6], bins=2), 6)
        0.25
    """
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"`bins` must be a positive integer. Received: bins={bins!r}")
    positive, chance, weight = _inputs(labels, probabilities, weights)
    return calibration_in_order(positive, chance, weight, np.argsort(chance), bins)


def calibration_in_order(positive: np.ndarray, chance: np.ndarray, weight: np.ndarray | None, order: np.ndarray, bins: int) -> float:
    """`calibration_error` of checked arrays; `order` are the rows by ascending probability."""
    sorted_chance = chance[order]
    mass = np.ones(order.size) if weight is None else weight[order]
    tie = starts_of(sorted_chance)
    tie_mass = np.add.reduceat(mass, tie)
    residual = np.add.reduceat(mass * (positive[order] - sorted_chance), tie)
    total = float(tie_mass.sum())
    middle = np.cumsum(tie_mass) - 0.5 * tie_mass
    chosen = np.minimum((middle * (bins / total)).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(chosen, weights=residual, minlength=bins)).sum() / total)
