"""Metrics of the order by utility: what the first candidates were worth, and how well one order serves each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ranking import metrics, models
from keras_ranking.data import Sequences

_HEADS = (1, 5)


class ByUtility:
    """Means over requests, of parts that hold whole requests.

    Args:
        ranker: a model with a utility.
    """

    def __init__(self, ranker: models.RankingModel) -> None:
        self._weights = ranker.utility
        self._tasks = {name: ranker.schema.task(name) for name in self._weights}
        kinds = {"binary": ("impression_auc", "ndcg_at_10"), "graded": ("ndcg_at_10",), "number": ()}
        self._names = [f"utility_at_{k}" for k in _HEADS]
        self._names += [f"{name}_{metric}" for name, task in self._tasks.items() for metric in kinds[task.kind]]
        self._means: dict[str, tuple[float, int]] = {}

    def add(self, sequences: Sequences, served: Mapping[str, np.ndarray]) -> None:
        """Add the targets of a part.

        Args:
            sequences: the events.
            served: by task, (E,) what serving returns.
        """
        score = metrics.utility_score(served, self._weights)
        labels = {name: sequences.labels[name] for name in self._weights}
        known = sequences.target & ~np.any([np.isnan(label) for label in labels.values()], axis=0)
        if known.any():
            # A label as it is served: a number in its unit, else 0 to 1.
            units = {name: task.served_label(labels[name]) if task.kind == "number" else labels[name] for name, task in self._tasks.items()}
            worth = metrics.utility_score(units, self._weights)[known]
            for k in _HEADS:
                self._mean(f"utility_at_{k}", metrics.realised_utility(worth, score[known], sequences.request[known], k))
        for name, task in self._tasks.items():
            rows = sequences.target & ~np.isnan(labels[name])
            if task.kind == "number" or not rows.any():
                continue
            label = labels[name][rows] if task.kind == "binary" else np.round(labels[name][rows].astype(np.float64) * (task.levels or 1), 4)
            found = label, score[rows], sequences.request[rows]
            self._mean(f"{name}_ndcg_at_10", metrics.ndcg(*found, k=10))
            if task.kind == "binary":
                self._mean(f"{name}_impression_auc", metrics.grouped_auc(*found))

    def _mean(self, name: str, found: Any) -> None:
        if found.groups:
            total, before = self._means.get(name, (0.0, 0))
            self._means[name] = (total + found.value * found.groups, before + found.groups)

    def summary(self) -> dict[str, float]:
        """`utility_at_K`, the mean worth of the first K by what happened, and by task metrics of the order; NaN where none is known."""
        return {name: self._means[name][0] / self._means[name][1] if name in self._means else float("nan") for name in self._names}
