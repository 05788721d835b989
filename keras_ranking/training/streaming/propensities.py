"""Propensities by position from shards: rows are counted by item and position, shard by shard, and the counts are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_ranking.data import ShardedLog
from keras_ranking.data.shards.log import Chosen
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.weighting.propensities import Cells, cells_of, curve_of_cells

_DEFAULTS: dict[str, Any] = {"method": "em", "boundaries": None, "last": 60, "prior": 1.0, "iterations": 2000}


class Propensities:
    """The propensities of each task, and what weights by them are scaled with.

    Attributes:
        propensity: by task, (K,).
    """

    def __init__(self, shown: dict[str, Cells], options: dict[str, Any]) -> None:
        self.cells = shown
        self.curves = {
            task: curve_of_cells(task, options["method"], cells, options["boundaries"], options["prior"], options["iterations"])
            for task, cells in shown.items()
        }
        self.propensity = {task: curve.propensity for task, curve in self.curves.items()}

    @classmethod
    def of(cls, log: ShardedLog, chosen: Chosen, training: TrainingOptions, tasks: Sequence[str]) -> Propensities:
        """Count the rows to train on, as `position_propensities` does, and estimate.

        Raises:
            ValueError: an option that shards cannot have, a schema without a position or an `Id`, or as `position_propensities`.
        """
        options = {**_DEFAULTS, **(training.ipw_options or {})}
        unknown = sorted(set(options) - set(_DEFAULTS))
        if unknown or options["method"] not in ("em", "ctr"):
            raise ValueError(
                "a sharded log has propensities by method 'em' with the schema's first `Id`, or 'ctr', with the options "
                f"{sorted(_DEFAULTS)}. Received: ipw_options={dict(training.ipw_options or {})}. Others need the log in memory."
            )
        if log.schema.position is None:
            raise ValueError("propensities by position need a schema with a position. Received: position=None")
        by_item = options["method"] == "em"
        if by_item and "item" not in log.arrays(0):
            raise ValueError("method 'em' needs an Id among the features of the schema. Received: none")
        found: dict[str, list[tuple[np.ndarray, ...]]] = {task: [] for task in tasks}
        for number in range(log.shards):
            arrays = log.arrays(number)
            _, target = chosen.masks(arrays["split"], arrays["time"])
            used = target & (arrays["position"] > 0)
            place = np.minimum(arrays["position"][used], options["last"]).astype(np.int64)
            items, group = np.unique(arrays["item"][used], return_inverse=True) if by_item else (np.zeros(1, dtype=np.uint64), place * 0)
            for task in tasks:
                label = arrays[f"label/{task}"][used]
                known = ~np.isnan(label)
                if known.any():
                    cells = cells_of(group[known], place[known], label[known])
                    found[task].append((items[cells.group], cells.place, cells.acted, cells.shown))
        return cls({task: _added(task, parts) for task, parts in found.items()}, options)

    def means(self, training: TrainingOptions) -> dict[str, float]:
        """By task, the mean of the weights before they are scaled."""
        means = {}
        for task, cells in self.cells.items():
            weight, raw = self._raw(task, training)
            positives = cells.acted if training.ipw == "positives" else cells.shown
            means[task] = float(((weight * positives).sum() + (cells.shown - positives).sum()) / cells.shown.sum())
            del raw
        return means

    def report(self, training: TrainingOptions) -> dict[str, Any]:
        """As that of `event_weights`, with the summary of the curve."""
        found, means = {}, self.means(training)
        for task, cells in self.cells.items():
            weight, raw = self._raw(task, training)
            positives = cells.acted if training.ipw == "positives" else cells.shown
            there = weight[positives > 0]
            largest = max(float(there.max(initial=0.0)), 1.0 if (cells.shown > positives).any() else 0.0) / means[task]
            clipped = int(positives[raw > training.ipw_clip].sum())
            found[task] = {**self.curves[task].summary(), "clipped": clipped, "of": int(cells.shown.sum()), "largest": largest}
        return found

    def _raw(self, task: str, training: TrainingOptions) -> tuple[np.ndarray, np.ndarray]:
        """Of each cell: the weight, and what it is before clipping."""
        propensity = self.propensity[task]
        with np.errstate(divide="ignore"):
            raw = 1.0 / propensity[np.clip(self.cells[task].place, 1, len(propensity)) - 1]
        return np.minimum(raw, training.ipw_clip), raw


def _added(task: str, parts: Sequence[tuple[np.ndarray, ...]]) -> Cells:
    if not parts:
        raise ValueError(f"task '{task}' has no row with a position and a label.")
    items, place, acted, shown = (np.concatenate(values) for values in zip(*parts, strict=True))
    _, group = np.unique(items, return_inverse=True)
    return cells_of(group.astype(np.int64), place, acted, shown)
