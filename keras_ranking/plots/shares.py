"""Shares of the values of one column in two sets of rows: has it moved?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ranking.plots.figure import BLUE, GREY, RED, finish, new_figure


def column_shares(columns: Mapping[str, tuple[Sequence[str], Any, Any]], names: tuple[str, str] = ("train", "scored")) -> Any:
    """Bars side by side for each column: the share of each bin, or of each value, in two sets of rows.

    Args:
        columns: column -> names of the bins, and their shares (bins,) in the first and in the second set.
        names: of the two sets.

    Returns:
        A figure of matplotlib, one panel a column.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no column.

    Example:
        >>> len(kr.plots.column_shares({"device": (["phone", "desktop"], [0.6, 0.4], [0.8, 0.2])}).axes)
        1
    """
    if not columns:
        raise ValueError("`columns` must hold at least one column. Received: none")
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    figure = new_figure(2.7 * across + 0.4, 2.2 * down + 0.3)
    places = figure.subplots(down, across, squeeze=False).ravel()
    for place, (name, (bins, first, second)) in zip(places, columns.items(), strict=False):
        at = np.arange(len(bins))
        for shift, values, color, which in ((-0.2, first, GREY, names[0]), (0.2, second, BLUE, names[1])):
            place.bar(at + shift, values, width=0.4, color=color, label=which)
        place.set_xticks(at, [_short(str(one)) for one in bins], rotation=45, ha="right", fontsize=7 if len(bins) > 4 else 8)
        finish(place, ["names"] if place is places[0] else [])
        place.set_title(name, fontsize=9, color=RED if _moved(first, second) else "black")
    for place in places[len(columns) :]:
        place.set_visible(False)
    return figure


def stability_index(first: Any, second: Any) -> float:
    """Population stability index of two distributions over the same bins.

        PSI = sum_b (q_b - p_b) ln(q_b / p_b)

    Shares below 1e-4 count as 1e-4, so that an empty bin does not make it infinite. By custom below 0.1 is stable, and above 0.25 has
    moved much.

    Args:
        first, second: (bins,) shares p and q, each of sum 1.

    Returns:
        PSI, at least 0.

    Example:
        >>> round(kr.plots.stability_index([0.5, 0.5], [0.6, 0.4]), 4)
        0.0405
    """
    p, q = (np.maximum(np.asarray(shares, dtype=np.float64), 1e-4) for shares in (first, second))
    return float(((q - p) * np.log(q / p)).sum())


def _short(text: str) -> str:
    return text if len(text) <= 12 else f"{text[:11]}…"


def _moved(first: Any, second: Any) -> bool:
    return stability_index(first, second) > 0.25
