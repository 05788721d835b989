"""Rows of a split with what several runs say of them, in one order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.data import Log, PackedRows, Requests
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.readers.log import as_log
from keras_ranking.training.scoring.events import log_to_score, model_of, rows_to_score, served_and_logged, weights_of


@dataclass(frozen=True)
class Run:
    """One run, and the rows it was given.

    Attributes:
        name: for tables.
        folder: of the run.
        ranker: the model.
        history: content of `history.json`; {} without one.
        rows: what was scored.
        seconds: of scoring.
    """

    name: str
    folder: Path
    ranker: models.RankingModel
    history: Mapping[str, Any]
    rows: PackedRows | Requests
    seconds: float


@dataclass(frozen=True)
class Scored:
    """The rows that all runs have scored, n of them.

    Attributes:
        runs: the runs.
        log: with the counts of the first run.
        place: (n,) row of `log.events`.
        request, member: (n,) codes.
        position: (n,) 1 = shown first, 0 = not known.
        past: (n,) events of the member before the request.
        labels: task -> (n,), NaN = not known.
        weights: task -> (n,) of the rows, by `Task.weight` of the first run; None for a task without.
        served: run -> task -> (n,) the score of serving.
        logged: run -> task -> (n,) the probability at the position shown.
        notes: what was left out.
    """

    runs: tuple[Run, ...]
    log: Log
    place: np.ndarray
    request: np.ndarray
    member: np.ndarray
    position: np.ndarray
    past: np.ndarray
    labels: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray | None]
    served: Mapping[str, Mapping[str, np.ndarray]]
    logged: Mapping[str, Mapping[str, np.ndarray]]
    notes: tuple[str, ...]

    def known(self, task: str) -> np.ndarray:
        """(n,) bool: rows with a label."""
        known: np.ndarray = ~np.isnan(self.labels[task])
        return known

    def weight(self, task: str, rows: np.ndarray) -> np.ndarray | None:
        """Weights of some rows; None where the task has none."""
        weights = self.weights[task]
        return None if weights is None else weights[rows]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each folder, and more of it where two are equal.

    Raises:
        ValueError: one folder twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError(f"`runs` must be different folders. Received: {[str(folder) for folder in folders]}")
    for size in range(1, max(len(one) for one in parts) + 1):
        names = ["/".join(one[-size:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return names


def score_runs(folders: Sequence[Path], log: Log | pd.DataFrame, split: str, on_error: str, max_rows: int, seed: int) -> Scored:
    """Score the rows of a split by each run.

    Args:
        folders: of the runs.
        log, split, on_error: as `evaluate`.
        max_rows: of more rows, those of randomly drawn members are scored.
        seed: of the draw.

    Raises:
        ValueError: no such split, bad values, or runs without a task, or a row, in common.
    """
    names, notes = run_names(folders), []
    runs, found = [], []
    first: Log | None = None
    keep: np.ndarray | None = None
    for name, folder in zip(names, folders, strict=True):
        ranker = model_of(folder)
        whole = as_log(log, ranker.schema)
        wanted = whole.is_split(split)
        counted = log_to_score(folder, ranker.schema, whole, wanted, on_error)
        if keep is None:
            keep, note = _drawn_members(counted, ranker, wanted, max_rows, seed)
            notes += note
        first = counted if first is None else first
        begin = time.perf_counter()
        rows = rows_to_score(ranker, counted, wanted & keep, f"row of split '{split}'", on_error=on_error)
        served, logged = served_and_logged(ranker, rows)
        seconds = time.perf_counter() - begin
        history = folder / "history.json"
        told = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else {}
        runs.append(Run(name, folder, ranker, told, rows, seconds))
        found.append((served, logged))
    common = [task for task in runs[0].ranker.tasks if all(task in run.ranker.tasks for run in runs)]
    tasks = [task for task in common if _is_binary(runs[0].rows.sequences.labels[task])]
    if not tasks:
        raise ValueError(f"the runs must share a task whose labels are 0 and 1. Received: {[run.ranker.tasks for run in runs]}")
    left = [task for task in common if task not in tasks]
    notes += [f"tasks without a section, because their labels are not 0 and 1: {', '.join(left)}"] if left else []
    schema = runs[0].ranker.schema
    for name in [task for task in tasks if schema.task(task).weight is not None]:
        column = schema.task(name).weight
        notes.append(f"rows of task '{name}' are weighted by column '{column}' in metrics (not NDCG and MRR) and reliability")
    return _aligned(tuple(runs), found, tasks, first, notes)


def _is_binary(labels: np.ndarray) -> bool:
    known = labels[~np.isnan(labels)]
    return bool(known.size and np.isin(known, (0, 1)).all())


def _drawn_members(log: Log, ranker: models.RankingModel, wanted: np.ndarray, max_rows: int, seed: int) -> tuple[np.ndarray, list[str]]:
    count = int(wanted.sum())
    everyone = np.ones(len(wanted), dtype=bool)
    if count <= max_rows:
        return everyone, []
    require_column(log.events, ranker.schema.member)
    member = pd.factorize(log.events[ranker.schema.member])[0]
    rows = np.bincount(member[wanted & (member >= 0)])
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows))
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(rows[order]), max_rows, side="right")))]
    kept = np.isin(member, chosen)
    note = f"{int((wanted & kept).sum()):,} of {count:,} rows are scored: those of {chosen.size:,} members, drawn at random"
    return kept, [note]


def _aligned(
    runs: tuple[Run, ...], found: Sequence[tuple[Any, Any]], tasks: Sequence[str], log: Log | None, notes: Sequence[str]
) -> Scored:
    """Arrays of the rows that all runs have, in the order of the log."""
    if log is None:
        raise ValueError("`runs` must hold at least one run. Received: none")
    targets = [np.flatnonzero(run.rows.sequences.target) for run in runs]
    place = [run.rows.sequences.rows[events] for run, events in zip(runs, targets, strict=True)]
    shared = place[0]
    for other in place[1:]:
        shared = np.intersect1d(shared, other)
    if not shared.size:
        raise ValueError("the runs have no row in common")
    shared = np.sort(shared)
    events = []
    for rows, target in zip(place, targets, strict=True):
        order = np.argsort(rows, kind="stable")
        events.append(target[order[np.searchsorted(rows[order], shared)]])
    missing = max(rows.size for rows in place) - shared.size
    told = [*notes, f"{missing:,} rows that some run leaves out are left out of all"] if missing else list(notes)
    sequences, at = runs[0].rows.sequences, events[0]
    starts = sequences.request_starts
    begin = starts[np.searchsorted(starts, at, side="right") - 1]
    member = sequences.member
    scores = [
        {run.name: {task: values[kind][task][rows] for task in tasks} for run, values, rows in zip(runs, found, events, strict=True)}
        for kind in (0, 1)
    ]
    return Scored(
        runs=runs,
        log=log,
        place=shared,
        request=sequences.request[at],
        member=member[at],
        position=sequences.position[at],
        past=begin - sequences.offsets[member[at]],
        labels={task: sequences.labels[task][at] for task in tasks},
        weights={task: weights_of(sequences, task, at) for task in tasks},
        served=scores[0],
        logged=scores[1],
        notes=tuple(told),
    )
