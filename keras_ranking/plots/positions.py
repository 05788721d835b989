"""Labels and probabilities by the position shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.metrics.checks import binary, column
from keras_ranking.plots.calibration import wilson
from keras_ranking.plots.figure import COLORS, GREY, by_run, finish, new_figure


def position_curve(labels: Any, positions: Any, probabilities: Any = None, last: int = 20) -> Any:
    """Share of label 1 by the position shown, with 95 % Wilson intervals, and the mean probability of each run.

    Where the lines of the runs lie on the grey one, they predict the label where it was shown. Scores without a position stay flatter: the
    rest is the effect of the position, and of what was shown there.

    Args:
        labels: (n,) of 0 and 1.
        positions: (n,) 1 = shown first; rows with 0, no position known, are left out.
        probabilities: (n,), or such arrays by run; None: the labels alone.
        last: positions from here on are one.

    Returns:
        A figure of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no row with a position, or lengths differ.

    Example:
        >>> kr.plots.position_curve([1, 0, 1, 0], [1, 1, 2, 2], [0.6, 0.5, 0.4, 0.3]).axes[0].get_xlabel()
        'position shown'
    """
    positive = binary(labels)
    shown = column("positions", positions, positive.size, least=0.0).astype(np.int64)
    known = shown > 0
    if not known.any():
        raise ValueError("`positions` must hold a position, 1 = shown first. Received: none, all 0")
    place = np.minimum(shown[known], last) - 1
    count = np.bincount(place)
    at = np.flatnonzero(count)
    figure = new_figure(5.4, 3.4)
    axes = figure.subplots()

    def mean(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.bincount(place, weights=values[known])[at] / count[at]
        return found

    rate = mean(positive.astype(np.float64))
    low, high = wilson(rate, count[at])
    axes.errorbar(at + 1, rate, yerr=[rate - low, high - rate], fmt="o-", color=GREY, capsize=2, markersize=4, label="label 1", zorder=1)
    runs = {} if probabilities is None else by_run(probabilities)
    for color, (run, given) in zip(COLORS, runs.items(), strict=False):
        chance = column("probabilities", given, positive.size, least=0.0, most=1.0).astype(np.float64)
        axes.plot(at + 1, mean(chance), "o-", color=color, markersize=4, label=run or "probability")
    finish(axes, ["label"], xlabel="position shown", ylabel="share of the rows", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if at[-1] + 1 == last:
        axes.set_title(f"{last}: {last} and below", fontsize=9)
    return figure
