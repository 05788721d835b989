"""Probabilities of logged events by a trained model, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import metrics, models
from keras_ranking.data import Log, PackedDataset, PackedRequests, PackedRows, Requests, Sequences, pack, requests
from keras_ranking.data.counted import counted_log, saved_counts
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.readers.log import as_log, require_log
from keras_ranking.data.sequences import checked_sequences, require_sequences
from keras_ranking.schema import Schema
from keras_ranking.task import Task
from keras_ranking.training.distribution.choice import plan_for
from keras_ranking.training.distribution.plan import ONE, Plan
from keras_ranking.training.reporting import tell_rows
from keras_ranking.training.scoring.utility import ByUtility
from keras_ranking.utility import SCORE
from keras_ranking.values import require_kind


def model_requests(ranker: models.RankingModel, sequences: Sequences) -> Requests:
    """Requests with the history that a model of form 'requests' reads.

    Args:
        ranker: a model with `form == "requests"`.
        sequences: from `build_sequences` with the model's schema.

    Returns:
        `Requests` with at most `max_history` visible events each; none, if the model reads no history.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> found = kr.training.model_requests(model, kr.data.build_sequences(log.events, schema))
        >>> len(found) == log.events["request_id"].nunique()
        True
    """
    require_sequences(sequences)
    arguments = ranker.arguments
    reads = "history_time" in ranker.input_columns
    return requests(sequences, max_history=arguments["max_history"] if reads else 0, delay=arguments["delay"])


def scored_rows(ranker: models.RankingModel, data: Requests, batch_size: int, row_length: int) -> PackedRequests:
    """Requests in rows of at least `row_length` candidates, in their order, with the inputs that the model reads in training."""
    size = max(row_length, int((data.candidate_end - data.candidate_begin).max(initial=1)))
    names = ranker.stream_columns or ranker.input_columns
    return PackedRequests(data, size, batch_size, names=names, tasks=ranker.tasks, shuffle=False)


def predict_events(
    ranker: models.RankingModel, data: PackedRows | Requests, batch_size: int = 8, row_length: int = 512, shown: bool = True
) -> dict[str, np.ndarray]:
    """Probabilities of every target event by task and tower, (E, K), NaN for events that are not targets.

    Each event is scored from the events that it may see, as in serving.

    Args:
        ranker: the model.
        data: packed rows, or requests for a model of form 'requests'.
        batch_size: rows per step.
        row_length: candidates per row, for requests.
        shown: whether a model with an input `position` gets the position shown; False: no position, as in serving.

    Returns:
        By task, float64 (E, K).

    Raises:
        TypeError: data of another kind, such as a DataFrame, or rows for a model on requests.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> found = kr.training.model_requests(model, kr.data.build_sequences(log.events, schema))
        >>> kr.training.predict_events(model, found)["click"].shape == (len(log.events), 1)
        True
    """
    out: dict[str, np.ndarray] = {}
    for events, towers in _target_probabilities(ranker, data, batch_size, row_length, shown):
        for task, values in towers.items():
            if task not in out:
                out[task] = np.full((data.sequences.num_events, values.shape[1]), np.nan)
            out[task][events] = values
    return out


def _check_data(ranker: models.RankingModel, data: Any) -> None:
    require_kind(ranker, models.RankingModel, "ranker", "`keras_ranking.models.load(folder)` reads one")
    wanted, made = (
        (Requests, "`model_requests(model, build_sequences(events, model.schema))`")
        if ranker.form == "requests"
        else (PackedRows, "`keras_ranking.data.pack(build_sequences(events, model.schema), row_length)`")
    )
    if not isinstance(data, wanted):
        of = f"{wanted.__name__} for the model '{ranker.name}'"
        raise TypeError(f"`data` must be {of}: {made} makes them. Received: {type(data).__name__}")


def _target_probabilities(
    ranker: models.RankingModel, data: PackedRows | Requests, batch_size: int, row_length: int, shown: bool, plan: Plan = ONE
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batch by batch: target events (n,), each of which comes once, and their probabilities (n, K) in float64 by task."""
    for events, logits in _target_logits(ranker, data, batch_size, row_length, shown, plan):
        yield events, {task: ranker.schema.task(task).served(values) for task, values in logits.items()}


def _target_logits(
    ranker: models.RankingModel, data: PackedRows | Requests, batch_size: int, row_length: int, shown: bool, plan: Plan = ONE
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The same with logits."""
    _check_data(ranker, data)
    dataset: PackedDataset | PackedRequests
    if isinstance(data, Requests):
        dataset = scored_rows(ranker, data, batch_size, row_length)
        index, target = dataset.slots, (dataset.slots >= 0) & data.sequences.target[dataset.slots]
    else:
        delay = ranker.arguments["delay"]  # that of serving, also for a model trained on sampled delays
        dataset = PackedDataset(data, batch_size, inputs=ranker.input_columns, tasks=ranker.tasks, shuffle=False, delays=delay)
        index, target = data.index, data.target
    for batch in plan.turns(len(dataset)):
        x: dict[str, Any] = dataset[batch][0]
        if not shown and "position" in x and "position" not in dataset_columns(dataset):
            x["position"] = np.zeros_like(x["position"])
        found = plan.predict_on_batch(ranker, x)
        rows = slice(batch * batch_size, (batch + 1) * batch_size)
        wanted = target[rows]  # without the empty rows that fill the last batch
        yield index[rows][wanted], {task: np.asarray(found[task])[: len(wanted)][wanted].astype(np.float64) for task in ranker.tasks}


def logits_of_targets(ranker: models.RankingModel, data: PackedRows | Requests) -> dict[str, np.ndarray]:
    """Logits of every target event at the position shown, by task, (E,); NaN for events that are not targets."""
    bucket = np.searchsorted(np.asarray(ranker.boundaries, dtype=np.int64), data.sequences.by_column(ranker.tower_by).position, side="left")
    found = {task: np.full(data.sequences.num_events, np.nan) for task in ranker.tasks}
    for events, towers in _target_logits(ranker, data, batch_size=8, row_length=512, shown=True):
        for task, values in towers.items():
            found[task][events] = np.take_along_axis(values, bucket[events][:, None], axis=1)[:, 0]
    return found


def dataset_columns(dataset: PackedDataset | PackedRequests) -> dict[str, np.ndarray]:
    """Columns of the log that a dataset reads."""
    return (dataset.requests if isinstance(dataset, PackedRequests) else dataset.rows).sequences.columns


def evaluate_log(
    model: str | Path | models.RankingModel, log: Log | pd.DataFrame, split: str, row_length: int, on_error: str, distribution: Any
) -> dict[str, dict[str, float]]:
    """`evaluate` of a log that is no `ShardedLog`."""
    if not isinstance(log, pd.DataFrame):
        require_log(log)  # before the model is read
    plan = plan_for(distribution).by_turns()
    ranker = model_of(model)
    log = as_log(log, ranker.schema)
    wanted = log.is_split(split)
    log = log_to_score(model, ranker.schema, log, wanted, on_error)
    rows = rows_to_score(ranker, log, wanted, f"row of split '{split}'", row_length, on_error)
    tell_rows(rows.sequences, verbose=False)
    return metrics_of(ranker, rows, plan, ranked=True)


def model_of(model: Any) -> models.RankingModel:
    """A model, or that of a folder.

    Raises:
        TypeError: neither.
    """
    require_kind(model, (models.RankingModel, str, Path), "model", "a model, or the folder that `train` wrote")
    return model if isinstance(model, models.RankingModel) else models.load(model)


def log_to_score(model: Any, schema: Schema, log: Log, wanted: np.ndarray, on_error: str) -> Log:
    """The log with the counts that its schema states and it lacks: from its first row, or as the states in the folder `model` go on."""
    if all(column in log.events for column in schema.columns):
        return log
    states = None if isinstance(model, models.RankingModel) else saved_counts(model)
    return counted_log(log, states, on_error, schema, wanted)


def rows_to_score(
    ranker: models.RankingModel,
    log: Log,
    wanted: np.ndarray,
    needed: str,
    row_length: int = 2048,
    on_error: str = "raise",
    schema: Schema | None = None,
) -> PackedRows | Requests:
    """Rows of a log as targets, with all earlier rows as history.

    Args:
        ranker: the model.
        log: the rows.
        wanted: which of them are targets, bool.
        needed: what the targets are, for messages.
        row_length, on_error: as `evaluate`.
        schema: None: that of the model.
    """
    schema = ranker.schema if schema is None else schema
    for column in schema.columns:
        require_column(log.events, column, f"of the model's schema is not in the log{schema.count_hint(column)}")
    times, _ = schema.model_seconds(log.events[schema.time], log.round)  # 0 for a bad time, which the checks find
    known = times <= times[wanted].max()
    sequences = checked_sequences(
        log.events[known],
        schema,
        wanted[known],
        on_error,
        log.round,
        needed=needed,
        offers=("on_error", "log"),
        places=np.flatnonzero(known),
    )
    return rows_of(ranker, sequences, max(row_length, int(np.diff(sequences.request_starts).max(initial=1)) * 2))


def rows_of(ranker: models.RankingModel, sequences: Sequences, row_length: int) -> PackedRows | Requests:
    """What `predict_events` reads."""
    return model_requests(ranker, sequences) if ranker.form == "requests" else pack(sequences, row_length)


def metrics_of(
    ranker: models.RankingModel, rows: PackedRows | Requests, plan: Plan = ONE, ranked: bool = False
) -> dict[str, dict[str, float]]:
    """The metrics of each task, of the targets in `rows`, scored by `plan`; `ranked`: and of the order by utility, as `evaluate`."""
    sequences, results = rows.sequences, {}
    served, logged = served_and_logged(ranker, rows, plan)
    for task in ranker.tasks:
        label = sequences.labels[task]
        scored = sequences.target & ~np.isnan(label)
        found = label[scored], served[task][scored], logged[task][scored], sequences.request[scored]
        results[task] = summary_of(ranker.schema.task(task), *found, weights_of(sequences, task, scored))
    if ranked and ranker.utility:
        order = ByUtility(ranker)
        order.add(sequences, served)
        results[SCORE] = order.summary()
    return results


def weights_of(sequences: Sequences, task: str, rows: np.ndarray) -> np.ndarray | None:
    """The weights that some rows have by `Task.weight`; None where the task has none."""
    weights = sequences.weights.get(task)
    return None if weights is None else weights[rows].astype(np.float64)


def summary_of(
    task: Task, label: np.ndarray, served: np.ndarray, logged: np.ndarray, request: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, float]:
    """The metrics of one task over rows with a known label, by its kind; NaN without a row that has a weight.

    Args:
        task: what the label is.
        label: (n,) encoded labels.
        served, logged: (n,) the score of serving, and the one at the position shown.
        request: (n,).
        weight: (n,) of the rows; None: all 1.
    """
    none = not len(label) or (weight is not None and not weight.any())
    if task.kind == "number":
        if none:
            return dict.fromkeys(metrics.number_summary([0.0, 1.0], [0.0, 1.0]), float("nan"))
        return metrics.number_summary(task.served_label(label), logged, weight)
    levels = task.levels or 1
    read = metrics.summary if task.kind == "binary" else partial(metrics.grade_summary, levels=levels)
    if none:
        return dict.fromkeys(read(np.array([0, 1]), np.array([0.25, 0.75]), np.array([0, 0])), float("nan"))
    labels = label if task.kind == "binary" else np.round(label.astype(np.float64) * levels, 4)
    ranking, probability = (read(labels, scores, request, weights=weight) for scores in (served, logged))
    ranked = ("auc", "impression_auc", "ndcg_at_10", "mrr")
    return {name: float((ranking if name in ranked else probability)[name]) for name in probability}


def served_and_logged(
    ranker: models.RankingModel, data: PackedRows | Requests, plan: Plan = ONE
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By task, two numbers (E,) of each target event: the score of serving, and the probability at the position shown."""
    sequences = data.sequences
    bucket = np.searchsorted(np.asarray(ranker.boundaries, dtype=np.int64), sequences.by_column(ranker.tower_by).position, side="left")
    served, logged = ({task: np.full(sequences.num_events, np.nan) for task in ranker.tasks} for _ in range(2))
    passes = (True, False) if "position" in ranker.input_columns else (True,)
    for shown in passes:
        for events, towers in _target_probabilities(ranker, data, batch_size=8, row_length=512, shown=shown, plan=plan):
            for task, values in towers.items():
                if shown:
                    logged[task][events] = np.take_along_axis(values, bucket[events][:, None], axis=1)[:, 0]
                if not shown or len(passes) == 1:
                    served[task][events] = ranker.served(values)
    return plan.merged(served), plan.merged(logged)
