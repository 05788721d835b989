"""Probabilities of the target events of shards, one shard after the other, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_ranking import metrics, models
from keras_ranking.data import PackedRows, Requests, ShardedLog
from keras_ranking.data.shards.log import Chosen
from keras_ranking.task import Task
from keras_ranking.training.distribution.plan import ONE, Plan
from keras_ranking.training.scoring.events import rows_of, served_and_logged, summary_of, weights_of
from keras_ranking.training.scoring.utility import ByUtility
from keras_ranking.training.streaming.data import columns_of
from keras_ranking.utility import SCORE

METRICS = tuple(metrics.summary([0, 1], [0.25, 0.75], [0, 0]))


def longest_known(log: ShardedLog, chosen: Chosen) -> int:
    """Impressions of the largest request that is read."""
    return max(int(np.diff(sequences.request_starts).max(initial=1)) for sequences in log.all_sequences(chosen, columns=()))


def rows_by_shard(
    ranker: models.RankingModel, log: ShardedLog, chosen: Chosen, row_length: int, numbers: Sequence[int] | None = None
) -> Iterator[tuple[int, PackedRows | Requests | None]]:
    """The rows of each shard for `predict_events`, the next ones made by a thread; None for a shard without a target.

    Args:
        ranker, log, chosen: what is read, for which model.
        row_length: of packed rows.
        numbers: of shards; None: all.
    """
    numbers, columns = range(log.shards) if numbers is None else numbers, columns_of(ranker)

    def made(number: int) -> PackedRows | Requests | None:
        sequences = log.sequences(number, chosen, columns)
        return rows_of(ranker, sequences, row_length) if sequences.target.any() else None

    with ThreadPoolExecutor(1, thread_name_prefix="shards") as ahead:
        waiting = None
        for at, number in enumerate(numbers):
            rows = made(number) if waiting is None else waiting.result()
            waiting = ahead.submit(made, numbers[at + 1]) if at + 1 < len(numbers) else None
            yield number, rows


def metrics_of_shards(
    ranker: models.RankingModel,
    log: ShardedLog,
    chosen: Chosen,
    row_length: int = 2048,
    constant: float | None = None,
    plan: Plan = ONE,
    ranked: bool = False,
) -> dict[str, dict[str, float]]:
    """What `evaluate` returns, of the targets in shards.

    Args:
        ranker, log, chosen: the model, and what is read.
        row_length: of packed rows.
        constant: a probability that is measured in the place of the model's; None: the model's.
        plan: which process scores which batch.
        ranked: whether to add the metrics of the order by utility, where the model has one.
    """
    order = ByUtility(ranker) if ranked and ranker.utility else None
    tasks = [ranker.schema.task(name) for name in ranker.tasks]
    sums: dict[str, Any] = {task.name: Sums() if task.kind == "binary" and task.weight is None else Rows(task) for task in tasks}
    size = max(row_length, 2 * longest_known(log, chosen))
    for _, rows in rows_by_shard(ranker, log, chosen, size):
        if rows is None:
            continue
        sequences = rows.sequences
        if constant is None:
            served, logged = served_and_logged(ranker, rows, plan)
        else:
            served = logged = dict.fromkeys(ranker.tasks, np.full(sequences.num_events, constant))
        if order is not None:
            order.add(sequences, served)
        for task, found in sums.items():
            label = sequences.labels[task]
            scored = sequences.target & ~np.isnan(label)
            if scored.any():
                given = label[scored], served[task][scored], logged[task][scored], sequences.request[scored]
                found.add(*given) if isinstance(found, Sums) else found.add(*given, weights_of(sequences, task, scored))
    return {task: found.summary() for task, found in sums.items()} | ({} if order is None else {SCORE: order.summary()})


@dataclass
class Sums:
    """Metrics of one task over parts that hold whole requests: means over requests and rows as sums, scores and labels for those that need
    the order of all rows, 17 bytes a row.

    Attributes:
        served, logged, labels: of the parts so far.
        means: by metric, the sum and the number of what it is a mean of.
    """

    served: list[np.ndarray] = field(default_factory=list)
    logged: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    means: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, label: np.ndarray, served: np.ndarray, logged: np.ndarray, request: np.ndarray) -> None:
        """Add the rows of a part."""
        self.served.append(served)
        self.logged.append(logged)
        self.labels.append(label > 0.5)
        for name, found in (
            ("impression_auc", metrics.grouped_auc(label, served, request)),
            ("ndcg_at_10", metrics.ndcg(label, served, request, k=10)),
            ("mrr", metrics.mrr(label, served, request)),
            ("log_loss", metrics.GroupedValue(metrics.log_loss(label, logged), len(label))),
            ("expected", metrics.GroupedValue(float(logged.mean()), len(label))),
        ):
            if found.groups:
                total, before = self.means.get(name, (0.0, 0))
                self.means[name] = (total + found.value * found.groups, before + found.groups)

    def summary(self) -> dict[str, float]:
        """The metrics of all rows, as `metrics.summary` has them; NaN where no row has a label."""
        if not self.labels:
            return dict.fromkeys(METRICS, float("nan"))
        label = np.concatenate(self.labels)
        rate = float(label.mean())
        mean = {name: total / count for name, (total, count) in self.means.items()}
        entropy = float("nan") if rate in (0.0, 1.0) else float(-(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate)))
        with np.errstate(divide="ignore", invalid="ignore"):
            over = float(np.float64(rate) / np.float64(mean["expected"]))
        found = {
            **{name: mean.get(name, float("nan")) for name in ("impression_auc", "ndcg_at_10", "mrr", "log_loss")},
            "auc": metrics.auc(label, np.concatenate(self.served)),
            "normalized_entropy": mean["log_loss"] / entropy,
            "calibration_error": metrics.calibration_error(label, np.concatenate(self.logged)),
            "observed_over_expected": over,
        }
        return {name: found[name] for name in METRICS}


class Rows:
    """Labels and scores of a graded task, of a number, or of a task with weights of rows: 28 bytes a row, and 8 for a weight.

    Args:
        task: what the label is.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.parts: list[tuple[np.ndarray, ...]] = []
        self._requests = 0

    def add(self, label: np.ndarray, served: np.ndarray, logged: np.ndarray, request: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add the rows of a part, which holds whole requests."""
        found, code = np.unique(request, return_inverse=True)
        self.parts.append((label, served, logged, code.reshape(-1) + self._requests, *(() if weight is None else (weight,))))
        self._requests += len(found)

    def summary(self) -> dict[str, float]:
        """The metrics of all rows."""
        columns = [np.concatenate(column) for column in zip(*self.parts, strict=True)] or [np.zeros(0)] * 4
        return summary_of(self.task, *columns)
