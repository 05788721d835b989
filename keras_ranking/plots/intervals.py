"""Values with intervals, one line each: metrics by segment, and what a model loses without a group of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ranking.plots.figure import COLORS, GREY, finish, new_figure


def intervals(names: Sequence[str], values: Any | Mapping[str, Any], xlabel: str = "", reference: float | None = None) -> Any:
    """One line for each name: a point for each run with its interval.

    The axes hold all points. An interval that reaches further beyond them than they are apart, and than four times the half width of the
    middle interval, ends at the edge of the axes, so that it does not hide the others.

    Args:
        names: of the lines, the first on top.
        values: (len(names), 3): value, low and high, NaN where unknown; or such arrays by run.
        xlabel: what is measured.
        reference: where a vertical line is drawn, such as 0 of a difference.

    Returns:
        A figure of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: other shapes.

    Example:
        >>> figure = kr.plots.intervals(["new members", "others"], [[0.6, 0.5, 0.7], [0.7, 0.69, 0.71]], xlabel="AUC")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['new members', 'others']
    """
    runs = dict(values) if isinstance(values, Mapping) else {"": values}
    arrays = {run: np.asarray(found, dtype=np.float64) for run, found in runs.items()}
    for run, found in arrays.items():
        if found.shape != (len(names), 3):
            raise ValueError(f"`values` must have shape ({len(names)}, 3). Received: {found.shape}{f' of {run!r}' if run else ''}")
    figure = new_figure(6.0, 0.9 + len(names) * (0.16 + 0.14 * len(arrays)))
    axes = figure.subplots()
    places = np.arange(len(names))[::-1].astype(np.float64)
    if reference is not None:
        axes.axvline(reference, color=GREY, linewidth=1)
    for number, (run, found) in enumerate(arrays.items()):
        middle = places - (number - (len(arrays) - 1) / 2) * (0.6 / max(len(arrays), 1))
        spread = np.nan_to_num(np.abs(found[:, [1, 2]] - found[:, :1])).T
        color = COLORS[number % len(COLORS)]
        axes.errorbar(found[:, 0], middle, xerr=spread, fmt="o", color=color, markersize=4, capsize=2, label=run or None)
    whole = np.concatenate(list(arrays.values()))
    whole = whole[np.isfinite(whole[:, 0])]
    if len(whole):
        first, last = float(whole[:, 0].min()), float(whole[:, 0].max())
        if reference is not None:
            first, last = min(first, reference), max(last, reference)
        ends = whole[:, 1:][np.isfinite(whole[:, 1:]).all(axis=1)]
        half = float(np.median(np.ptp(ends, axis=1))) / 2 if len(ends) else 0.0
        reach = max(last - first, 4 * half)
        inside = ends[(ends >= first - reach) & (ends <= last + reach)]
        low, high = min([first, *inside]), max([last, *inside])
        margin = 0.06 * max(high - low, 1e-9)
        axes.set_xlim(low - margin, high + margin)
    axes.set_yticks(places, list(names))
    axes.set_ylim(-0.7, len(names) - 0.3)
    finish(axes, list(arrays), xlabel=xlabel)
    return figure
