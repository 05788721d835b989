"""Figures of a trained model: probabilities of logged events, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking import metrics, models
from keras_ranking.data import Log, PackedDataset, PackedRequests, PackedRows, Requests, Sequences, build_sequences, pack, requests


def model_requests(ranker: models.RankingModel, sequences: Sequences) -> Requests:
    """Requests with as much visible history as a model of form 'requests' reads."""
    arguments = ranker.arguments
    reads = "history_time" in ranker.input_columns
    return requests(sequences, max_history=arguments["max_history"] if reads else 0, delay=arguments["delay"])


def predict_events(
    ranker: models.RankingModel, data: PackedRows | Requests, batch_size: int = 8, row_length: int = 512, shown: bool = True
) -> dict[str, np.ndarray]:
    """Probabilities of every target event by task and tower, (E, K), NaN for events that are not targets.

    One pass over packed rows, or over requests packed into rows of `row_length`, `batch_size` rows a step: each event is scored from
    the events it may see, which is what serving computes for it. A model with an input `position` is told the position shown, or, where
    `shown` is False, none: then it gives what serving gives.
    """
    if isinstance(data, Requests):
        return _predict_requests(ranker, data, batch_size, row_length)
    rows = data
    delay = ranker.arguments["delay"]  # of serving, for a model that was trained on drawn ones
    dataset = PackedDataset(rows, batch_size, inputs=ranker.input_columns, tasks=ranker.tasks, shuffle=False, delays=delay)
    return {task: rows.scatter(_sigmoid(values)) for task, values in _logits(ranker, dataset, len(rows.index), shown).items()}


def _predict_requests(ranker: models.RankingModel, found: Requests, batch_size: int, row_length: int) -> dict[str, np.ndarray]:
    size = max(row_length, int((found.candidate_end - found.candidate_begin).max(initial=1)))
    dataset = PackedRequests(found, size, batch_size, names=ranker.input_columns, tasks=ranker.tasks, shuffle=False)
    logits = _logits(ranker, dataset, len(dataset.slots))
    target = found.sequences.target[:, None]
    return {task: np.where(target, dataset.scatter(_sigmoid(values)), np.nan) for task, values in logits.items()}


def _logits(ranker: models.RankingModel, dataset: PackedDataset | PackedRequests, rows: int, shown: bool = True) -> dict[str, np.ndarray]:
    """Logits (rows, T, K) by task, without the empty rows that fill the last batch."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in range(len(dataset)):
        x: dict[str, Any] = dataset[batch][0]
        if not shown and "position" in x and "position" not in dataset_columns(dataset):
            x["position"] = np.zeros_like(x["position"])
        found = ranker.predict_on_batch(x)
        for task in ranker.tasks:
            parts.setdefault(task, []).append(np.asarray(found[task], dtype=np.float64))
    return {task: np.concatenate(values)[:rows] for task, values in parts.items()}


def dataset_columns(dataset: PackedDataset | PackedRequests) -> dict[str, np.ndarray]:
    """Columns of the log that a dataset reads."""
    return (dataset.requests if isinstance(dataset, PackedRequests) else dataset.rows).sequences.columns


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def evaluate(
    model: str | Path | models.RankingModel, log: Log, split: str = "validation", row_length: int = 2048
) -> dict[str, dict[str, float]]:
    """Figures of a trained model on one split, by task.

    Ranking figures (`auc`, `impression_auc`, `ndcg_at_10`, `mrr`) judge the score that serving returns, which does not know
    the position; figures of probabilities (`log_loss`, `normalized_entropy`, `calibration_error`, `observed_over_expected`)
    judge the tower of the position shown. With one tower they are the same numbers.

    A task without any known label in the split has NaN for all figures.

    Rows of later splits are not read; rows of earlier ones are history.

    Raises:
        ValueError: no such split, or no rows in it.
    """
    ranker = model if isinstance(model, models.RankingModel) else models.load(model)
    wanted = (log.events["split"] == split).to_numpy()
    if not wanted.any():
        raise ValueError(f"the log '{log.name}' has no rows with split '{split}'. It has: {sorted(log.events['split'].unique())}")
    times = ranker.schema.encode_time(log.events[ranker.schema.time])
    past = times <= times[wanted].max()
    sequences = build_sequences(log.events[past], ranker.schema, target=wanted[past])
    if ranker.form == "requests":
        data: PackedRows | Requests = model_requests(ranker, sequences)
    else:
        data = pack(sequences, max(row_length, int(np.diff(sequences.request_starts).max(initial=1)) * 2))
    results = {}
    bucket = np.searchsorted(np.asarray(ranker.boundaries, dtype=np.int64), sequences.position, side="left")
    found = predict_events(ranker, data)
    served = predict_events(ranker, data, shown=False) if "position" in ranker.input_columns else found
    for task, towers in found.items():
        label = sequences.labels[task]
        judged = sequences.target & ~np.isnan(label)
        if not judged.any():  # nothing is known of this task here; the others have their figures
            results[task] = dict.fromkeys(metrics.summary(np.array([0, 1]), np.array([0.25, 0.75]), np.array([0, 0])), float("nan"))
            continue
        score = ranker.served(served[task][judged])
        shown = np.take_along_axis(towers[judged], bucket[judged][:, None], axis=1)[:, 0]
        ranking = metrics.summary(label[judged], score, sequences.request[judged])
        probability = metrics.summary(label[judged], shown, sequences.request[judged])
        ranked = ("auc", "impression_auc", "ndcg_at_10", "mrr")
        results[task] = {name: float((ranking if name in ranked else probability)[name]) for name in probability}
    return results
