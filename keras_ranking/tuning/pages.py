"""A report as one HTML page, with its plots in it."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_ranking.tuning.reporting import Report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #dde; }
th:last-child, td:last-child { text-align: left; }
pre { background: #f3f5f9; padding: .8rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{}</title><style>{}</style></head>
<body>
"""
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
            parts += [f"<h2>{_TITLES[name]}</h2>", _svg(figures[name])]
    parts += ["<h2>Trials</h2>", _trials(report)]
    return _HEAD.format(html.escape(f"Study {report.name}"), _STYLE) + "\n".join(parts) + "\n</body></html>"


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _trials(report: Report) -> str:
    names = list(dict.fromkeys(name for row in report.rows for name in row["options"]))
    header = ["trial", report.metric, *names, "seconds", "what became of it"]
    rows = []
    for row in report.rows:
        options = [_cell(row["options"].get(name)) for name in names]
        rows.append([str(row["trial"]), _cell(row["value"]), *options, _cell(row["seconds"]), str(row["told"])])
    return f"<table>{_row('th', header)}{''.join(_row('td', one) for one in rows)}</table>"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
