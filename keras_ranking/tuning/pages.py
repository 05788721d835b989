"""A report as one HTML page, with its plots in it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from keras_ranking.plots.page import cell, page, svg, table

if TYPE_CHECKING:
    from keras_ranking.tuning.reporting import Report

_TITLES = {"history": "Values by trial", "curves": "Curves by epoch", "slices": "Values by option", "fresh": "Fresh seeds"}


def page_of(report: Report) -> str:
    """The page; texts of the study are escaped, and nothing is loaded from elsewhere."""
    parts = [f"<h1>Study {html.escape(report.name)}</h1>", f"<pre>{html.escape(report.text())}</pre>"]
    try:
        figures: Mapping[str, Any] = report.plots()
    except ModuleNotFoundError as error:
        parts.append(f"<p>Without plots: {html.escape(str(error))}</p>")
        figures = {}
    for name in ("fresh", "history", "curves", "slices"):
        if name in figures:
            parts += [f"<h2>{_TITLES[name]}</h2>", svg(figures[name], _TITLES[name])]
    parts += ["<h2>Trials</h2>", _trials(report)]
    return page(f"Study {report.name}", parts)


def _trials(report: Report) -> str:
    names = list(dict.fromkeys(name for row in report.rows for name in row["options"]))
    header = ["trial", report.metric, *names, "seconds", "what became of it"]
    rows = []
    for row in report.rows:
        options = [cell(row["options"].get(name)) for name in names]
        rows.append([str(row["trial"]), cell(row["value"]), *options, cell(row["seconds"]), str(row["told"])])
    return table(header, rows, words=[len(header) - 1])
