"""The report of one run, or of several side by side: what they learned, how good they are, for whom, from what, and at what cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.configuration import is_integer
from keras_ranking.data import Log
from keras_ranking.data.readers.log import require_log
from keras_ranking.metrics import calibration_error, summary_differences, summary_intervals
from keras_ranking.reports.data_summary import column_table, split_table
from keras_ranking.reports.importance import attention_of, importances, sample_of
from keras_ranking.reports.scored import Run, Scored, score_runs
from keras_ranking.reports.segments import segment_metrics

_ATTENTION = 48  # requests of the sample


@dataclass(frozen=True)
class ReportOptions:
    """How much a report measures.

    Args:
        max_rows: of more rows in the split, those of members drawn at random are scored.
        sample: requests for the importance of features and for attention.
        max_history: newest events of the histories of these requests.
        draws: bootstrap samples of the metrics; segments and importance take half as many.
        groups: name -> columns whose values are exchanged together; None: by the first word of their names.
        segments: columns of the log; None: a few of the schema.
        seed: of draws and exchanges.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> kr.reports.ReportOptions(segments=("topic",), sample=100).sample
        100
    """

    max_rows: int = 100_000
    sample: int = 200
    max_history: int = 128
    draws: int = 500
    groups: Mapping[str, Sequence[str]] | None = None
    segments: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_rows", "sample", "max_history", "draws"):
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
        if isinstance(self.segments, str):
            raise ValueError(f"`segments` must be a list of columns. Received: segments={self.segments!r}")


@dataclass(frozen=True)
class RunReport:
    """What `report_of` has found.

    Attributes:
        title: of the page.
        runs: names of the runs, the first is what the others are compared with.
        tasks: names of the tasks.
        figures_by_task: task -> run -> metric -> (value, low, high).
        differences: task -> run -> metric -> (value, low, high), the run minus the first one.
        segments, importance, splits, columns, costs: one mapping for each line of the tables.
        attention: run -> weights, ages and lengths of sample requests; or the reason why there are none.
        epochs: run -> loss or metric -> value by epoch.
        notes: what was left out or drawn.
        scored: the rows behind the figures.

    Example:
        >>> log = kr.data.simulate(members=30, days=3, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> _ = kr.training.train(log, "lirank", "runs/small", epochs=1, options=options, verbose=False)
        >>> report = kr.reports.report_of(["runs/small"], log, options=kr.reports.ReportOptions(sample=20, draws=20))
        >>> report.save("runs/small/report.html").name
        'report.html'
    """

    title: str
    runs: tuple[str, ...]
    tasks: tuple[str, ...]
    figures_by_task: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
    segments: Sequence[Mapping[str, Any]]
    importance: Mapping[str, Sequence[Mapping[str, Any]]]
    splits: Sequence[Mapping[str, Any]]
    columns: Sequence[Mapping[str, Any]]
    costs: Sequence[Mapping[str, Any]]
    attention: Mapping[str, Any]
    epochs: Mapping[str, Mapping[str, Sequence[float]]]
    notes: tuple[str, ...]
    scored: Scored

    def text(self) -> str:
        """The metrics and the differences, for a terminal."""
        from keras_ranking.reports.pages import metric_rows

        lines = [self.title, *self.notes]
        for task in self.tasks:
            header, rows = metric_rows(self, task)
            widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
            lines += ["", f"task {task}"]
            lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """All numbers of the page but single rows, for programs; what is undefined is None."""
        names = (
            "title",
            "runs",
            "tasks",
            "figures_by_task",
            "differences",
            "segments",
            "importance",
            "splits",
            "columns",
            "costs",
            "epochs",
        )
        found: dict[str, Any] = _plain({name: getattr(self, name) for name in (*names, "notes")})
        return found

    def plots(self) -> dict[str, Any]:
        """Figures of matplotlib by name: those of the page.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, naming the extra.
        """
        from keras_ranking.reports.pages import figures_of

        return {name: figure for name, (figure, _) in figures_of(self).items()}

    def to_tensorboard(self, folder: str | Path) -> Path:
        """Write metrics and figures for TensorBoard, on every backend; TensorFlow need not be installed.

        The folder of each run has its metrics as scalars `TASK/METRIC`, with `_low` and `_high` for the interval and `_difference` to the
        first run, so that runs stand side by side; the folder `report` has the figures of the page as images. The step is 0.

        Args:
            folder: for `tensorboard --logdir`.

        Returns:
            The folder.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, naming the extra.
        """
        from keras_ranking.reports.tracking import to_tensorboard

        return to_tensorboard(self, folder)

    def to_mlflow(self, uri: str | None = None, experiment: str = "keras-ranking") -> str:
        """Log metrics, figures, the page and its numbers as a run of MLflow.

        Args:
            uri: of the tracking server or store, as for `kr.training.MLflowLog`.
            experiment: name, made where it is missing.

        Returns:
            The id of the run. Its metrics are `TASK/METRIC`, for several runs `RUN/TASK/METRIC`, as in `to_tensorboard`; its artifacts
            `figures/*.png`, `report.html` and `report.json`.

        Raises:
            ModuleNotFoundError: MLflow or matplotlib is not installed, naming the extra.
        """
        from keras_ranking.reports.tracking import to_mlflow

        return to_mlflow(self, uri, experiment)

    def save(self, path: str | Path) -> Path:
        """Write the page: one HTML file that loads nothing from elsewhere.

        Args:
            path: of the file, or a folder for `report.html`.

        Returns:
            The file.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, naming the extra.
        """
        from keras_ranking.reports.pages import page_of

        path = Path(path)
        path = path if path.suffix in (".html", ".htm") else path / "report.html"
        text = page_of(self)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


def report_of(
    runs: Sequence[str | Path] | str | Path,
    log: Log | pd.DataFrame,
    split: str = "validation",
    options: ReportOptions | None = None,
    on_error: str = "raise",
) -> RunReport:
    """Measure one run, or compare several on the same rows.

    Every interval is a 95 % bootstrap interval by drawing whole members; differences between runs are paired, on the same draws. Ranking
    metrics are of the score that serving returns, those of probabilities of the probability at the position shown, as in
    `kr.training.evaluate`. Rows are weighted by `Task.weight` of the first run in the metrics, in their differences, in segments and in the
    reliability diagram; not in NDCG and MRR, in the other figures, and in the importance of columns.

    Args:
        runs: folders that `train` wrote; the others are compared with the first.
        log: with rows of the split, its training rows, which the data summary compares with, and their history. A DataFrame without a
            column `split` is cut by time as `train` cuts it, and a warning says so.
        split: which rows are scored.
        options: None: the defaults of `ReportOptions`.
        on_error: 'raise', or 'drop': bad rows are left out.

    Returns:
        `RunReport`, with `save` for the page.

    Raises:
        TypeError: `log` is not a `Log`, for example shards: `kr.data.Log` of some of their rows will do.
        ValueError: no such split, one folder twice, runs without a task in common, or a bad value in the log.

    Example:
        >>> log = kr.data.simulate(members=30, days=3, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> _ = kr.training.train(log, "lirank", "runs/small", epochs=1, options=options, verbose=False)
        >>> report = kr.reports.report_of("runs/small", log, options=kr.reports.ReportOptions(sample=20, draws=20))
        >>> report.runs, report.tasks
        (('small',), ('click', 'like'))
    """
    options = ReportOptions() if options is None else options
    folders = [Path(one) for one in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise ValueError("`runs` must hold at least one folder. Received: none")
    if not isinstance(log, pd.DataFrame):
        require_log(log)
    scored = score_runs(folders, log, split, on_error, options.max_rows, options.seed)
    names, tasks, few = tuple(run.name for run in scored.runs), tuple(scored.labels), max(1, options.draws // 2)
    importance, attention = {}, {}
    for run in scored.runs:
        sample = sample_of(run.ranker, run.rows, options.sample, options.max_history, options.seed)
        importance[run.name] = importances(run.ranker, sample, options.groups, few, options.seed)
        attention[run.name] = attention_of(run.ranker, sample, _ATTENTION)
    return RunReport(
        title=f"{' and '.join(names)} on the {split} rows of {scored.log.name}",
        runs=names,
        tasks=tasks,
        figures_by_task={task: {name: _metrics(scored, task, name, options) for name in names} for task in tasks},
        differences={task: {name: _difference(scored, task, name, options) for name in names[1:]} for task in tasks},
        segments=segment_metrics(scored, options.segments, few, options.seed),
        importance=importance,
        splits=split_table(scored),
        columns=column_table(scored),
        costs=[_cost(run, len(scored.place)) for run in scored.runs],
        attention=attention,
        epochs={run.name: run.history.get("epochs", {}) for run in scored.runs},
        notes=scored.notes,
        scored=scored,
    )


def _metrics(scored: Scored, task: str, run: str, options: ReportOptions) -> dict[str, list[float]]:
    rows = scored.known(task)
    label, logged, served = scored.labels[task][rows], scored.logged[run][task][rows], scored.served[run][task][rows]
    given = (label, logged, scored.request[rows], scored.member[rows], served)
    weights = scored.weight(task, rows)
    intervals = summary_intervals(*given, samples=options.draws, seed=options.seed, weights=weights)
    found = {name: list(one) for name, one in intervals.items()}
    return {**found, "calibration_error": [calibration_error(label, logged, weights), math.nan, math.nan]}


def _difference(scored: Scored, task: str, run: str, options: ReportOptions) -> dict[str, list[float]]:
    rows, first = scored.known(task), scored.runs[0].name
    found = summary_differences(
        scored.labels[task][rows],
        scored.logged[first][task][rows],
        scored.logged[run][task][rows],
        scored.request[rows],
        scored.member[rows],
        scores_a=scored.served[first][task][rows],
        scores_b=scored.served[run][task][rows],
        samples=options.draws,
        seed=options.seed,
        weights=scored.weight(task, rows),
    )
    return {name: list(one) for name, one in found.items()}


def _cost(run: Run, rows: int) -> dict[str, Any]:
    file = run.folder / "model.keras"
    history = run.history
    epochs = max((len(values) for values in history.get("epochs", {}).values()), default=0)
    return {
        "run": run.name,
        "model": history.get("model", run.ranker.name),
        "parameters": int(run.ranker.count_params()),
        "megabytes": file.stat().st_size / 1e6 if file.is_file() else None,
        "train_events": history.get("train_events"),
        "epochs": epochs,
        "train_seconds": history.get("seconds"),
        "train_backend": history.get("backend"),
        "pairs": history.get("pairs", {}),
        "score_seconds": run.seconds,
        "rows_per_second": rows / max(run.seconds, 1e-9),
    }


def _plain(value: Any) -> Any:
    """For JSON: plain numbers and lists, None for what is undefined."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def write_json(report: RunReport, path: Path) -> None:
    """Write `as_json` to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
