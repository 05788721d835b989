"""Figures of a study: values by trial, curves by epoch, values by option, and fresh seeds next to single runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_ranking.plots.figure import BLUE, GREY, RED, new_figure

if TYPE_CHECKING:
    from keras_ranking.tuning.reporting import Report


def plots_of(report: Report) -> dict[str, Any]:
    """See `Report.plots`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    finished = [row for row in report.rows if row["state"] == "COMPLETE"]
    if not finished:
        return {}
    makers = {"history": _history, "curves": _curves, "slices": _slices}
    if report.fresh is not None:
        makers["fresh"] = _fresh

    found = {}
    for name, maker in makers.items():
        figure = new_figure(extra="tune")
        maker(figure, report, finished)
        found[name] = figure
    return found


def _limits(values: Any) -> tuple[float, float]:
    """A range in which a few trials that went astray do not hide the others."""
    array = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(array, [0.25, 0.75])
    reach = 3 * max(high - low, 1e-9)
    inside = array[(array >= low - reach) & (array <= high + reach)]
    margin = 0.06 * max(float(np.ptp(inside)), 1e-9)
    return float(inside.min()) - margin, float(inside.max()) + margin


def _history(figure: Any, report: Report, finished: list[Any]) -> None:
    figure.set_size_inches(7, 3.4)
    axes = figure.subplots()
    numbers, values = [row["trial"] for row in finished], np.array([row["value"] for row in finished])
    best = np.minimum.accumulate(values) if report.direction == "minimize" else np.maximum.accumulate(values)
    axes.plot(numbers, values, "o", color=BLUE, label="trial")
    axes.step(numbers, best, where="post", color=RED, label="best so far")
    bottom, top = _limits(values)
    axes.set(xlabel="trial", ylabel=report.metric, ylim=(bottom, top))
    axes.set_title(_outside(values, bottom, top), fontsize=9)
    axes.legend()


def _outside(values: Any, bottom: float, top: float) -> str:
    count = int(((values < bottom) | (values > top)).sum())
    return f"{count} of {len(values)} values lie outside" if count else ""


def _curves(figure: Any, report: Report, finished: list[Any]) -> None:
    figure.set_size_inches(7, 3.4)
    axes = figure.subplots()
    single, ends = report.single, []
    for row in report.rows:
        if not row["curve"]:
            continue
        steps = [int(step) + 1 for step in row["curve"]]
        first = single is not None and row["trial"] == single["trial"]
        axes.plot(
            steps,
            list(row["curve"].values()),
            marker="o" if first else None,
            color=RED if first else BLUE if row["state"] == "COMPLETE" else GREY,
            alpha=1.0 if first else 0.4,
            zorder=3 if first else 1,
        )
        ends += list(row["curve"].values())
    if ends:
        axes.set_ylim(*_limits(ends))
    axes.set(xlabel="epoch", ylabel=report.metric)
    axes.set_title("red: best single run; grey: not finished", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _slices(figure: Any, report: Report, finished: list[Any]) -> None:
    names = list(finished[0]["options"])
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure.set_size_inches(2.8 * columns + 0.6, 2.5 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    limits = _limits([row["value"] for row in finished])
    for number, (place, name) in enumerate(zip(axes, names, strict=False)):
        tried = [row["options"][name] for row in finished]
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in tried)
        labels = sorted({str(value) for value in tried})
        at = tried if numeric else [labels.index(str(value)) for value in tried]
        place.plot(at, [row["value"] for row in finished], "o", color=BLUE, alpha=0.7)
        if not numeric:
            place.set_xticks(range(len(labels)), labels)
            place.set_xlim(-0.5, len(labels) - 0.5)
        elif min(tried) > 0 and max(tried) > 30 * min(tried) and max(tried) > 4 * float(np.median(tried)):
            place.set_xscale("log")
        place.set(xlabel=name, ylim=limits)
        if number % columns == 0:
            place.set_ylabel(report.metric)
    for place in axes[len(names) :]:
        place.set_visible(False)


def _fresh(figure: Any, report: Report, finished: list[Any]) -> None:
    fresh: Any = report.fresh
    figure.set_size_inches(7, 0.55 * len(fresh.settings) + 1.6)
    axes = figure.subplots()
    places = np.arange(len(fresh.settings))[::-1]
    for place, row in zip(places, fresh.settings, strict=True):
        axes.plot(row.values, [place] * len(row.values), "|", color=BLUE, markersize=11)
        axes.errorbar(row.mean, place, xerr=row.half, fmt="o", color=BLUE, capsize=4)
        axes.plot(row.single, place, "o", mfc="none", mec=RED)
    axes.plot([], [], "o-", color=BLUE, label="fresh seeds: mean, 95 % interval")
    axes.plot([], [], "o", mfc="none", mec=RED, label="single run")
    tied = {fresh.settings[0].trial, *fresh.tied} if fresh.tied else set()
    axes.set_yticks(places, [f"trial {row.trial}{' *' if row.trial in tied else ''}" for row in fresh.settings])
    axes.set_ylim(-0.6, len(fresh.settings) - 0.4)
    axes.set_xlabel(report.metric)
    axes.set_title("* cannot be told apart" if tied else "", fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
