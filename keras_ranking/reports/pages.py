"""A `RunReport` as one HTML page, and the figures on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_ranking import plots
from keras_ranking.plots import page as parts

if TYPE_CHECKING:
    from keras_ranking.reports.report import RunReport

_UP, _DOWN = ("auc", "impression_auc", "ndcg_at_10", "mrr"), ("log_loss", "normalized_entropy", "calibration_error")
_WORDS = {
    "auc": "AUC, all rows",
    "impression_auc": "impression AUC (grouped AUC)",
    "ndcg_at_10": "NDCG at 10",
    "mrr": "MRR",
    "log_loss": "log loss",
    "normalized_entropy": "normalised entropy",
    "calibration_error": "calibration error",
    "observed_over_expected": "observed over expected",
}
_DRIFTED = 6


def metric_rows(report: RunReport, task: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of metrics: a column for each run, and the difference of each to the first."""
    header = ["metric", *report.runs, *[f"{run} − {report.runs[0]}" for run in report.runs[1:]]]
    rows = []
    for metric, words in _WORDS.items():
        arrow = " ↑" if metric in _UP else " ↓" if metric in _DOWN else " → 1"
        cells = [_interval(report.figures_by_task[task][run][metric]) for run in report.runs]
        for run in report.runs[1:]:
            apart = report.differences[task][run].get(metric)
            cells.append("" if apart is None else _judged(metric, apart))
        rows.append([words + arrow, *cells])
    return header, rows


def _interval(found: Sequence[float], sign: str = "") -> str:
    value, low, high = found
    if not math.isfinite(value):
        return "undefined"
    return f"{value:{sign}.4f}" + (f" [{low:{sign}.4f}, {high:{sign}.4f}]" if math.isfinite(low) else "")


def _judged(metric: str, found: Sequence[float]) -> str:
    _, low, high = found
    text = _interval(found, "+")
    if not math.isfinite(low) or low <= 0 <= high or metric == "observed_over_expected":
        return text
    return f"{text} {'better' if (low > 0) == (metric in _UP) else 'worse'}"


def figures_of(report: RunReport) -> dict[str, tuple[Any, str]]:
    """Figure and caption by name."""
    scored, found = report.scored, {}
    epochs = {run: values for run, values in report.epochs.items() if values}
    if epochs:
        names = _curve_names(epochs, report)
        caption = "By epoch: training solid, validation dashed. Losses of models with different loss terms cannot be compared."
        found["training_curves"] = (plots.training_curves(epochs if len(report.runs) > 1 else next(iter(epochs.values())), names), caption)
    for task in report.tasks:
        rows = scored.known(task)
        label = scored.labels[task][rows]
        logged = {run: scored.logged[run][task][rows] for run in report.runs}
        text = "Reliability: on the diagonal the probability is the share of label 1. Ten bins of equal size."
        found[f"{task}: reliability"] = (plots.reliability(label, logged, weights=scored.weight(task, rows)), text)
        text = "Scores: shares of the rows with label 1 and label 0 by probability. The further apart, the better the order."
        found[f"{task}: scores"] = (plots.score_distribution(label, logged), text)
        if (scored.position[rows] > 0).any():
            text = "By position shown: share of label 1, and mean probability at that position."
            found[f"{task}: position"] = (plots.position_curve(label, scored.position[rows], logged), text)
        found |= _segment_figures(report, task)
        for run in report.runs:
            lines = [line for line in report.importance[run] if line["task"] == task]
            if lines:
                values = -np.array([line["impression_auc"] for line in lines])[:, [0, 2, 1]]
                order = np.argsort(-np.nan_to_num(values[:, 0], nan=-np.inf), kind="stable")[:20]
                names = [lines[place]["group"] for place in order]
                text = f"{run}: impression AUC that is lost when the values of these columns are exchanged."
                found[f"{task}: importance of {run}"] = (plots.intervals(names, values[order], "loss of impression AUC", 0.0), text)
    for run, kept in report.attention.items():
        if not isinstance(kept, str):
            drawn = plots.attention_over_time(kept["weights"], kept["ages"], kept["lengths"])
            text = f"{run}: attention of candidates on the events of the history, by their age; below, single requests."
            found[f"attention of {run}"] = (drawn, text)
    drifted = sorted((one for one in report.columns if "psi" in one), key=lambda one: -one["psi"])[:_DRIFTED]
    if drifted:
        drawn = plots.column_shares({one["column"]: (one["bins"], *one["shares"]) for one in drifted})
        found["drift"] = (drawn, "The columns that have moved most from the training rows to the scored rows. Red: PSI above 0.25.")
    return found


def _curve_names(epochs: Any, report: RunReport) -> list[str]:
    """Loss, and the metrics of validation, by task where there are several; at most six panels."""
    known = list(dict.fromkeys(name.removeprefix("val_") for values in epochs.values() for name in values))
    first = [name for name in ("loss", "impression_auc", "log_loss", "normalized_entropy") if name in known]
    return (first + [name for name in known if name not in first and not any(name == f"{task}_loss" for task in report.tasks)])[:6]


def _segment_figures(report: RunReport, task: str) -> dict[str, tuple[Any, str]]:
    found = {}
    for column in dict.fromkeys(line["column"] for line in report.segments):
        lines = [line for line in report.segments if line["task"] == task and line["column"] == column]
        values = {run: [line["runs"][run]["impression_auc"] for line in lines] for run in report.runs}
        if lines and np.isfinite([one[0] for run in values.values() for one in run]).any():
            names = [f"{line['segment']} ({line['requests']:,} requests)" for line in lines]
            given = values if len(report.runs) > 1 else values[report.runs[0]]
            found[f"{task}: by {column}"] = (plots.intervals(names, given, "impression AUC"), f"Impression AUC by {_by(report, column)}.")
    return found


def _by(report: RunReport, column: str) -> str:
    ids = {feature.name for feature in report.scored.runs[0].ranker.schema.features if feature.kind == "id"}
    return f"rows of the same {column} in train" if column in ids else column


def page_of(report: RunReport) -> str:
    """The page."""
    figures = {name: parts.figure_part(*both) for name, both in figures_of(report).items()}
    sections = {"Metrics": _metrics(report)}
    if "training_curves" in figures:
        sections["Training"] = [figures["training_curves"]]
    for task in report.tasks:
        names = [name for name in (f"{task}: reliability", f"{task}: scores", f"{task}: position") if name in figures]
        sections[f"Probabilities of {task}"] = [parts.figures([figures[name] for name in names])]
    for task in report.tasks:
        sections[f"Segments of {task}"] = [
            parts.paragraph("Values with 95 % intervals. Segments of few requests have wide ones: read the interval, not the value."),
            parts.figures([figures[name] for name in figures if name.startswith(f"{task}: by ")]),
            _segment_table(report, task),
        ]
    for task in report.tasks:
        drawn = [figures[name] for name in figures if name.startswith(f"{task}: importance")]
        if drawn:
            text = (
                "The values of a group of columns are exchanged between the candidates, or between the events of the histories, of sampled "
                "requests; the model is not trained again. Two columns that say the same seem unimportant one by one. 'history: all' takes "
                "the histories away."
            )
            sections[f"Importance for {task}"] = [parts.paragraph(text), parts.figures(drawn)]
    reasons = [parts.paragraph(f"{run}: {kept}") for run, kept in report.attention.items() if isinstance(kept, str)]
    sections["Attention"] = [parts.figures([figures[name] for name in figures if name.startswith("attention of ")]), *reasons]
    sections["Data"] = _data(report, figures.get("drift"))
    if any(one["pairs"] for one in report.costs):
        sections["Pairs"] = _pairs(report)
    sections["Cost"] = [_costs(report)]
    head = [
        parts.title(report.title),
        parts.contents(list(sections)),
        *[parts.paragraph(note) for note in report.notes],
    ]
    return parts.page(report.title, [*head, *[parts.section(title, inner) for title, inner in sections.items()]])


def _metrics(report: RunReport) -> list[str]:
    rows = len(report.scored.place)
    requests, members = (int(np.unique(codes).size) for codes in (report.scored.request, report.scored.member))
    text = (
        f"{rows:,} rows of {requests:,} requests and {members:,} members. In brackets the 95 % bootstrap interval, by drawing members. "
        "↑: more is better, ↓: less is better."
    )
    if len(report.runs) > 1:
        text += " Differences are paired; 'better' or 'worse' stands where the interval does not hold 0."
    found = [parts.paragraph(text)]
    for task in report.tasks:
        header, lines = metric_rows(report, task)
        found += [parts.title(task, 3), parts.table(header, lines)]
    return found


def _segment_table(report: RunReport, task: str) -> str:
    header = ["segment", "rows", "requests", "share of label 1"]
    header += [f"{run}: {words}" for run in report.runs for words in ("impression AUC", "observed / expected", "log loss")]
    lines = []
    for line in (line for line in report.segments if line["task"] == task):
        cells = [f"{line['column']}: {line['segment']}", f"{line['rows']:,}", f"{line['requests']:,}", f"{line['rate']:.4f}"]
        for run in report.runs:
            cells += [_interval(line["runs"][run][metric]) for metric in ("impression_auc", "observed_over_expected", "log_loss")]
        lines.append(cells)
    return parts.table(header, lines)


def _data(report: RunReport, drift: str | None) -> list[str]:
    header = ["split", "rows", "requests", "members", "first (UTC)", "last (UTC)", *[f"share of {task}" for task in report.tasks]]
    lines = [
        [
            one["split"],
            *[f"{one[name]:,}" for name in ("rows", "requests", "members")],
            one["first"],
            one["last"],
            *["" if one["rates"][task] is None else f"{one['rates'][task]:.4f}" for task in report.tasks],
        ]
        for one in report.splits
    ]
    text = (
        "Columns that the runs read: training rows → scored rows. PSI: population stability index, by custom stable below 0.1, much moved "
        "above 0.25. Unseen: share of scored rows whose value no training row has."
    )
    columns = [
        [
            one["column"],
            one["kind"],
            " → ".join(f"{share:.1%}" for share in one["missing"]),
            f"{one['distinct']:,}" if "distinct" in one else "",
            " → ".join(f"{mean:.4g}" for mean in one["mean"]) if "mean" in one else "",
            f"{one['unseen']:.1%}" if "unseen" in one else "",
            f"{one['psi']:.3f}" if "psi" in one else "",
        ]
        for one in report.columns
    ]
    table = parts.table(["column", "kind", "missing", "distinct in train", "mean", "unseen", "PSI"], columns, words=[1])
    return [parts.table(header, lines), parts.paragraph(text), table, *([] if drift is None else [drift])]


def _pairs(report: RunReport) -> list[str]:
    text = (
        "Pairs of impressions of one request with different labels among the training rows, and those that the pairwise loss compares. A "
        "positive without a pair learns from the point-wise loss alone."
    )
    header = ["run", "task", "pairs", "compared", "share", "positives", "in a pair", "share"]
    lines = []
    for one in report.costs:
        for task, counts in one["pairs"].items():
            cells = [f"{counts[name]:,}" for name in ("pairs", "used", "positives", "positives_used")]
            shares = ["" if counts[name] is None else f"{counts[name]:.1%}" for name in ("share", "positives_share")]
            lines.append([one["run"], task, *cells[:2], shares[0], *cells[2:], shares[1]])
    return [parts.paragraph(text), parts.table(header, lines, words=[1])]


def _costs(report: RunReport) -> str:
    header = [
        "run",
        "model",
        "parameters",
        "file, MB",
        "target events",
        "epochs",
        "training, s",
        "backend",
        "scoring, s",
        "rows scored a second",
    ]
    lines = [
        [
            one["run"],
            one["model"],
            f"{one['parameters']:,}",
            "" if one["megabytes"] is None else f"{one['megabytes']:.1f}",
            "" if one["train_events"] is None else f"{one['train_events']:,}",
            str(one["epochs"]),
            "" if one["train_seconds"] is None else f"{one['train_seconds']:.0f}",
            f"{one['train_backend'] or '?'}; scored on {keras.backend.backend()}",
            f"{one['score_seconds']:.1f}",
            f"{one['rows_per_second']:,.0f}",
        ]
        for one in report.costs
    ]
    return parts.table(header, lines, words=[1, 7])
