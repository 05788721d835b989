"""Whether probabilities are right: the reliability diagram, and how scores are distributed."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.metrics.checks import binary, column, optional_weights
from keras_ranking.plots.figure import COLORS, GREY, by_run, finish, new_figure

_Z = 1.959964  # of a 95 % interval


def reliability(labels: Any, probabilities: Any, bins: int = 10, weights: Any = None) -> Any:
    """Share of label 1 against mean probability, in bins of equal size, with 95 % Wilson intervals. On the diagonal it is calibrated.

    Args:
        labels: (n,) of 0 and 1.
        probabilities: (n,) in [0, 1]; or such arrays by run.
        bins: number of bins.
        weights: (n,) >= 0, not all 0: means of a bin are weighted, and its interval is that of (sum w)^2 / sum w^2 rows (Kish's effective
            number). None: all 1.

    Returns:
        A figure of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no rows, lengths differ, a label other than 0 or 1, a probability outside [0, 1].

    Example:
        >>> kr.plots.reliability([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], bins=2).axes[0].get_xlabel()
        'mean probability'
    """
    positive = binary(labels)
    given_weights = optional_weights(weights, positive.size)
    mass = np.ones(positive.size) if given_weights is None else given_weights
    figure = new_figure(4.6, 3.8)
    axes = figure.subplots()
    top = 0.0
    for color, (run, given) in zip(COLORS, by_run(probabilities).items(), strict=False):
        chance = column("probabilities", given, positive.size, least=0.0, most=1.0).astype(np.float64)
        order = np.argsort(chance, kind="stable")
        parts = [rows for rows in np.array_split(order[mass[order] > 0], bins) if rows.size]
        mean = np.array([np.average(chance[rows], weights=mass[rows]) for rows in parts])
        rate = np.array([np.average(positive[rows], weights=mass[rows]) for rows in parts])
        low, high = wilson(rate, np.array([mass[rows].sum() ** 2 / (mass[rows] ** 2).sum() for rows in parts]))
        axes.errorbar(mean, rate, yerr=[rate - low, high - rate], fmt="o-", color=color, markersize=4, capsize=2, label=run or None)
        top = max(top, float(mean.max()), float(high.max()))
    axes.plot([0, top], [0, top], color=GREY, linewidth=1, zorder=0)
    finish(axes, list(by_run(probabilities)), xlabel="mean probability", ylabel="share of label 1")
    return figure


def score_distribution(labels: Any, probabilities: Any, bins: int = 40) -> Any:
    """Histograms of the log-odds of the probabilities, rows of label 1 and of label 0 apart, each as shares of its rows.

    Args:
        labels: (n,) of 0 and 1.
        probabilities: (n,) in [0, 1]; or such arrays by run.
        bins: number of bins.

    Returns:
        A figure of matplotlib, one panel a run.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: as `reliability`.

    Example:
        >>> len(kr.plots.score_distribution([0, 0, 1, 1], {"a": [0.1, 0.2, 0.7, 0.9], "b": [0.1, 0.2, 0.3, 0.4]}).axes)
        2
    """
    positive, runs = binary(labels), by_run(probabilities)
    chances = {run: column("probabilities", given, positive.size, least=0.0, most=1.0).astype(np.float64) for run, given in runs.items()}
    odds = {}
    for run, chance in chances.items():
        inside = np.clip(chance, 1e-9, 1 - 1e-9)  # log-odds of exactly 0 or 1 are drawn at the end
        odds[run] = np.log(inside) - np.log1p(-inside)
    low, high = (float(np.quantile(np.concatenate(list(odds.values())), share)) for share in (0.0005, 0.9995))
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    figure = new_figure(3.4 * len(runs) if len(runs) > 1 else 4.6, 3.2)
    for place, (run, values) in zip(figure.subplots(1, len(runs), squeeze=False, sharey=True).ravel(), odds.items(), strict=True):
        for label, color in ((0, GREY), (1, COLORS[0])):
            rows = values[positive == bool(label)]
            if rows.size:
                weights = np.full(rows.size, 1 / rows.size)
                place.hist(np.clip(rows, low, high), edges, weights=weights, color=color, alpha=0.65, label=f"label {label}")
        finish(place, ["label"], xlabel="probability", ylabel="share of the rows")
        shown = [p for p in (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99) if low <= np.log(p / (1 - p)) <= high]
        shown = shown[:: 1 + len(shown) // 6]
        place.set_xticks([np.log(p / (1 - p)) for p in shown], [f"{p:g}" for p in shown])
        place.set_title(run, fontsize=9)
    return figure


def wilson(rate: Any, count: Any) -> tuple[np.ndarray, np.ndarray]:
    """95 % Wilson interval of shares, of independent rows."""
    n, p = np.maximum(np.asarray(count, dtype=np.float64), 1), np.asarray(rate, dtype=np.float64)
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return np.minimum(middle - half, p), np.maximum(middle + half, p)  # rounding alone can put them inside
