"""A paired bootstrap over members, to test whether one model is better than another."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ranking.metrics.checks import check_draws, column, group_codes


class BootstrapInterval(NamedTuple):
    """Result of `paired_bootstrap`.

    Attributes:
        difference: mean of b - a over the units.
        low: lower end of the bootstrap interval.
        high: upper end of the bootstrap interval.
        deviation: standard deviation of the bootstrap samples.
        units: number of units.
        clusters: number of clusters.

    Example:
        >>> result = kr.metrics.paired_bootstrap([0.5, 0.6, 0.7], [0.6, 0.7, 0.8], clusters=["u", "u", "v"])
        >>> round(result.difference, 3), result.units, result.clusters
        (0.1, 3, 2)
    """

    difference: float
    low: float
    high: float
    deviation: float
    units: int
    clusters: int


def paired_bootstrap(
    per_unit_a: Any, per_unit_b: Any, clusters: Any = None, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> BootstrapInterval:
    """Interval for the mean difference b - a of two models scored on the same units (requests).

    Requests of one member are similar, so whole members are drawn with replacement, as many as there are:

        d* = sum_{c drawn} sum_{u in c} (b_u - a_u) / sum_{c drawn} n_c,      interval = quantiles of d* over the samples

    Both models are evaluated on the same draw, so the difficulty of a request for both models cancels.

    Args:
        per_unit_a: (U,) metric of model a for every unit, e.g. `per_request_auc(...).auc`.
        per_unit_b: (U,) the same units, the same order, of model b.
        clusters: (U,) the member of every unit. None: every unit is its own cluster.
        samples: bootstrap samples. *Our choice:* 2,000.
        confidence: share of the samples inside the interval, in (0, 1).
        seed: seed of the draws.

    Returns:
        `BootstrapInterval(difference, low, high, deviation, units, clusters)`. If 0 is outside the interval, the
        difference is significant.

    Raises:
        ValueError: no units, lengths differ, NaN or infinite values, a missing cluster, fewer than two, samples or confidence out of range.

    Example:
        >>> result = kr.metrics.paired_bootstrap([0.5, 0.6, 0.7, 0.6], [0.6, 0.7, 0.8, 0.7], clusters=["u", "u", "v", "w"])
        >>> round(result.difference, 3), round(result.low, 3), result.clusters
        (0.1, 0.1, 3)

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (percentile interval).
    """
    check_draws(samples, confidence)
    largest = float(np.finfo(np.float64).max)
    first = column("per_unit_a", per_unit_a, least=-largest, most=largest).astype(np.float64)
    second = column("per_unit_b", per_unit_b, first.size, least=-largest, most=largest).astype(np.float64)
    member = np.arange(first.size)
    if clusters is not None:
        member = np.unique(group_codes(clusters, first.size, "clusters"), return_inverse=True)[1]
    size = np.bincount(member).astype(np.float64)
    if size.size < 2:
        raise ValueError("`clusters` must name at least two clusters, one cannot be resampled. Received: 1")
    gain = np.bincount(member, weights=second - first)
    draws = np.random.default_rng(seed)
    found = np.empty(samples)
    for sample in range(samples):  # one draw of members at a time: memory of one array of members
        drawn = draws.integers(0, size.size, size.size)
        found[sample] = gain[drawn].sum() / size[drawn].sum()
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    deviation = float(found.std(ddof=1)) if samples > 1 else float("nan")
    return BootstrapInterval(float((second - first).mean()), float(low), float(high), deviation, first.size, size.size)
