"""Bootstrap intervals of the metrics of `summary`, for one model and for the difference of two, by drawing whole members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ranking.metrics.checks import binary, by_group, check_draws, column, group_codes, optional_weights, starts_of
from keras_ranking.metrics.report import per_group

METRICS = ("auc", "impression_auc", "ndcg_at_10", "mrr", "log_loss", "normalized_entropy", "observed_over_expected")
_CHUNK = 2**22  # numbers of drawn weights at a time


class MetricInterval(NamedTuple):
    """A metric, or a difference of two, with its bootstrap interval.

    Attributes:
        value: of all rows.
        low, high: ends of the interval; NaN where fewer than two clusters, or one class, leave none.

    Example:
        >>> found = kr.metrics.summary_intervals([1, 0, 1, 0], [0.8, 0.2, 0.6, 0.4], [1, 1, 2, 2], ["u", "u", "v", "v"])
        >>> found["impression_auc"]
        MetricInterval(value=1.0, low=1.0, high=1.0)
    """

    value: float
    low: float
    high: float


def summary_intervals(
    labels: Any,
    probabilities: Any,
    groups: Any,
    clusters: Any,
    scores: Any = None,
    names: Sequence[str] = METRICS,
    samples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    weights: Any = None,
) -> dict[str, MetricInterval]:
    """The metrics of one task with intervals: what other members of the same population would have given.

    Whole members are drawn with replacement, as many as there are, and each metric is computed of the rows of the members drawn:

        m* = m(rows of the members drawn, a member drawn twice twice),      interval = quantiles of m* over the samples

    Args:
        labels: (n,) of 0 and 1. Rows with an unknown label must be left out by the caller.
        probabilities: (n,) in [0, 1].
        groups: (n,) the request of each row.
        clusters: (n,) the member of each row; all rows of a request are of one member.
        scores: (n,) what the ranking metrics are computed of; None: the probabilities.
        names: which metrics.
        samples: bootstrap samples. *Our choice:* 500.
        confidence: share of the samples inside the interval, in (0, 1).
        seed: seed of the draws.
        weights: (n,) of the rows, as `summary` takes them. Members are drawn alike, whatever the weights of their rows.

    Returns:
        Metric -> `MetricInterval`, with the values of `summary`. Its calibration error is not here: drawing adds noise to absolute
        differences, so its interval would lie above it.

    Raises:
        ValueError: what `summary` refuses, an unknown name, a request of several members, `samples` or `confidence` out of range.

    Example:
        >>> found = kr.metrics.summary_intervals([1, 0, 0, 1], [0.8, 0.2, 0.4, 0.6], [1, 1, 2, 2], ["u", "u", "v", "v"], samples=50)
        >>> found["log_loss"].low < found["log_loss"].value < found["log_loss"].high
        True

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (percentile interval).
    """
    check_draws(samples, confidence)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"`names` must be among {METRICS}. Received: {unknown}")
    drawn = _Drawn(labels, groups, clusters, names, weights)
    given = {"a": (probabilities, probabilities if scores is None else scores)}
    values, resampled = drawn.metrics(given, samples, seed)
    return {name: _interval(values["a"][name], found, confidence) for name, found in resampled["a"].items()}


def summary_differences(
    labels: Any,
    probabilities_a: Any,
    probabilities_b: Any,
    groups: Any,
    clusters: Any,
    scores_a: Any = None,
    scores_b: Any = None,
    samples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    weights: Any = None,
) -> dict[str, MetricInterval]:
    """Differences b - a of the metrics of two models on the same rows, with paired bootstrap intervals.

    Both models are measured on the same draw of members, so what makes a member easy or hard for both cancels. A difference whose
    interval does not hold 0 is significant.

    Args:
        labels, groups, clusters, samples, confidence, seed, weights: as `summary_intervals`.
        probabilities_a, scores_a: of model a.
        probabilities_b, scores_b: of model b.

    Returns:
        Metric -> `MetricInterval` of the difference.

    Raises:
        ValueError: as `summary_intervals`.

    Example:
        >>> labels, groups, members = [1, 0, 0, 1], [1, 1, 2, 2], ["u", "u", "v", "v"]
        >>> found = kr.metrics.summary_differences(labels, [0.4, 0.6, 0.6, 0.4], [0.8, 0.2, 0.4, 0.6], groups, members)
        >>> found["impression_auc"]
        MetricInterval(value=1.0, low=1.0, high=1.0)
    """
    check_draws(samples, confidence)
    given = {
        "a": (probabilities_a, probabilities_a if scores_a is None else scores_a),
        "b": (probabilities_b, probabilities_b if scores_b is None else scores_b),
    }
    values, resampled = _Drawn(labels, groups, clusters, weights=weights).metrics(given, samples, seed)
    return {
        name: _interval(values["b"][name] - values["a"][name], resampled["b"][name] - found, confidence)
        for name, found in resampled["a"].items()
    }


def _interval(value: float, found: np.ndarray, confidence: float) -> MetricInterval:
    finite = found[np.isfinite(found)]  # a draw without positives has no AUC
    if not finite.size or not np.isfinite(value):
        return MetricInterval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return MetricInterval(float(value), float(low), float(high))


class _Drawn:
    """Rows by request and member, and what draws of members make of them."""

    def __init__(self, labels: Any, groups: Any, clusters: Any, names: Sequence[str] = METRICS, weights: Any = None) -> None:
        self.names = tuple(names)
        self.positive = binary(labels)
        rows = self.positive.size
        self.weight = optional_weights(weights, rows)
        self.codes = group_codes(groups, rows)
        self.member = np.unique(group_codes(clusters, rows, "clusters"), return_inverse=True)[1]
        order = by_group(self.codes, np.arange(rows))
        start = starts_of(self.codes[order])
        member = self.member[order]
        if (np.maximum.reduceat(member, start) != np.minimum.reduceat(member, start)).any():
            raise ValueError("`clusters` must hold one member for all rows of a request. Received: requests of several members")
        self.members = int(self.member.max()) + 1

    def metrics(
        self, given: Mapping[str, tuple[Any, Any]], samples: int, seed: int
    ) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
        """By model, the metrics of all rows, and (samples,) of the draws, the same draws for all models."""
        measures = {name: self._measures(*both) for name, both in given.items()}
        every = np.ones((1, self.members))
        values = {name: {metric: float(of(every)[0]) for metric, of in found.items()} for name, found in measures.items()}
        draws, parts = np.random.default_rng(seed), []
        size = max(1, _CHUNK // self.members)
        for begin in range(0, samples if self.members > 1 else 0, size):
            count = min(size, samples - begin)
            drawn = draws.integers(0, self.members, (count, self.members)) + np.arange(count)[:, None] * self.members
            weights = np.bincount(drawn.ravel(), minlength=count * self.members).reshape(count, self.members).astype(np.float64)
            parts.append({name: {metric: of(weights) for metric, of in found.items()} for name, found in measures.items()})
        empty = np.full(0, np.nan)
        resampled = {
            name: {metric: np.concatenate([part[name][metric] for part in parts]) if parts else empty for metric in found}
            for name, found in measures.items()
        }
        return values, resampled

    def _measures(self, probabilities: Any, scores: Any) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Functions of weights of members (S, M) -> (S,), by metric."""
        positive, rows = self.positive, self.positive.size
        chance = column("probabilities", probabilities, rows, least=0.0, most=1.0).astype(np.float64)
        score = column("scores", scores, rows)
        order = np.argsort(score)
        each = per_group(positive, score, self.codes, by_group(self.codes, order), self.weight)

        def mean(values: np.ndarray, row: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            member = self.member[row]
            sums, requests = self._sums(values, member), self._sums(np.ones(member.size), member)
            return lambda weights: _ratio(weights @ sums, weights @ requests)

        one = np.ones(rows) if self.weight is None else self.weight
        with np.errstate(divide="ignore"):
            costs = -np.where(positive, np.log(chance), np.log1p(-chance))
        loss = self._sums(costs if self.weight is None else np.where(one > 0, costs, 0.0) * one)  # 0 times infinity would be NaN
        count, hits, expected = self._sums(one), self._sums(one * positive), self._sums(one * chance)

        def normalized(weights: np.ndarray) -> np.ndarray:
            rate = _ratio(weights @ hits, weights @ count)
            with np.errstate(divide="ignore", invalid="ignore"):
                entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            return _ratio(_ratio(weights @ loss, weights @ count), np.nan_to_num(entropy))

        measures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "auc": self._auc(score, order),
            "impression_auc": mean(each.auc, each.auc_row),
            "ndcg_at_10": mean(each.ndcg, each.row),
            "mrr": mean(each.reciprocal_rank, each.row),
            "log_loss": lambda weights: _ratio(weights @ loss, weights @ count),
            "normalized_entropy": normalized,
            "observed_over_expected": lambda weights: _ratio(weights @ hits, weights @ expected),
        }
        return {name: measures[name] for name in self.names}

    def _sums(self, values: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(self.member if member is None else member, weights=values, minlength=self.members)

    def _auc(self, score: np.ndarray, order: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The AUC over all rows, with the weights of their members: one pass over the sorted rows for each draw."""
        member, hit, tie = self.member[order], self.positive[order], starts_of(score[order])
        # Positions of the members' rows in the sorted order, positives and negatives apart: each is half of the work.
        above_at, below_at = np.flatnonzero(hit), np.flatnonzero(~hit)
        block = np.cumsum(np.bincount(tie, minlength=order.size)) - 1  # the tied block of each place
        above_block, below_block, blocks = block[above_at], block[below_at], tie.size
        above_member, below_member = member[above_at], member[below_at]
        own = None if self.weight is None else self.weight[order]

        def auc(weights: np.ndarray) -> np.ndarray:
            found = np.empty(len(weights))
            for sample, weight in enumerate(weights):
                of_above, of_below = weight[above_member], weight[below_member]
                if own is not None:
                    of_above, of_below = of_above * own[above_at], of_below * own[below_at]
                above = np.bincount(above_block, weights=of_above, minlength=blocks)
                below = np.bincount(below_block, weights=of_below, minlength=blocks)
                wins = float(above @ (np.cumsum(below) - 0.5 * below))
                pairs = float(above.sum() * below.sum())
                found[sample] = wins / pairs if pairs else np.nan
            return found

        return auc


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one / other, NaN where other is 0."""
    found: np.ndarray = np.divide(one, other, out=np.full_like(other, np.nan), where=other != 0)
    return found
