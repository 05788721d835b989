"""Validation rows of a log, their metrics after each epoch, the best weights so far, and when to stop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.configuration import is_real
from keras_ranking.data import Log
from keras_ranking.data.readers.cuts import cut_by_time
from keras_ranking.training.checkpoint import arrays_of, assign_arrays
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.recipe import LAST_DAY, METRICS, Recipe, better
from keras_ranking.training.reporting import tell_rows
from keras_ranking.training.scoring.events import metrics_of, rows_to_score, summary_of, weights_of
from keras_ranking.training.weight_average import WeightAverage

_DAY = 86_400


def validation_rows(log: Log, validation: str | float | None) -> np.ndarray | None:
    """Which rows of a log are for validation, bool; None: none.

    Args:
        log: with rows of split 'train'.
        validation: as in `Recipe`.

    Raises:
        ValueError: no such split, or no row that is left to train on.
    """
    if validation is None:
        return None
    train = log.is_split("train")
    if validation != LAST_DAY and not is_real(validation):
        if validation in ("train", "history"):
            raise ValueError(
                f"`validation` must be a split that is not trained on, 'last_day' or a share. Received: validation={validation!r}"
            )
        return log.is_split(str(validation))
    events, held = log.events[train], np.zeros(len(train), dtype=bool)
    if is_real(validation):
        held[train] = cut_by_time(events, log.schema, 1 - float(validation))[0] == "validation"
    else:
        times, _ = log.schema.model_seconds(events[log.schema.time], round="floor")  # 0 for a bad time, which the checks of the log find
        held[train] = times > times.max() - _DAY
    if held.sum() == train.sum():
        raise ValueError(
            f"`validation` must leave rows to train on: all {int(train.sum()):,} are in it. Received: validation={validation!r}"
        )
    return held


class Validation(keras.callbacks.Callback):
    """After each epoch: metrics of the validation rows, in `logs` as `val_...`; the best state so far; the stop.

    Args:
        ranker: the model.
        log: the log.
        wanted: rows of `log.events`, bool.
        recipe: what is monitored, and how long training waits for a better value.
        on_error: as in `train`.
        progress: of the run to resume; None: a new run.
        kept: arrays of its best epoch.
        average: of the weights, which is measured and kept in their place.

    Raises:
        ValueError: a metric that the rows do not define, or that does not exist.
    """

    def __init__(
        self,
        ranker: models.RankingModel,
        log: Log,
        wanted: np.ndarray,
        recipe: Recipe,
        on_error: str = "raise",
        progress: Mapping[str, Any] | None = None,
        kept: Mapping[str, np.ndarray] | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__()
        self.average = average
        self.recipe, self.choice = recipe, recipe.validation
        self.name, self.mode = recipe.monitored(ranker.tasks)
        self.rows = rows_to_score(ranker, log, wanted, "validation row", on_error=on_error)
        tell_rows(self.rows.sequences, verbose=False)
        self._check_defined(ranker)
        self.values: list[float] = list((progress or {}).get("epochs", {}).get(self.name, ()))
        self.kept: dict[str, np.ndarray] = dict(kept or {})

    def measured(self, ranker: models.RankingModel) -> dict[str, dict[str, float]]:
        """Metrics of the rows by task."""
        return metrics_of(ranker, self.rows, active())

    @property
    def events(self) -> int:
        """Number of rows."""
        return int(self.rows.sequences.target.sum())

    def _check_defined(self, ranker: models.RankingModel) -> None:
        sequences, known = self.rows.sequences, {}
        for name in ranker.tasks:
            label = sequences.labels[name]
            scored = sequences.target & ~np.isnan(label)
            if scored.any():
                constant = np.full(int(scored.sum()), 0.5)
                weights = weights_of(sequences, name, scored)
                known[name] = summary_of(ranker.schema.task(name), label[scored], constant, constant, sequences.request[scored], weights)
        self.check_names(known)

    def check_names(self, known: Mapping[str, Mapping[str, float]]) -> None:
        """Check that what is monitored is among metrics of the rows, by task."""
        self.names = set(named_metrics(known))
        if self.recipe.monitor == "log_loss" and {self.name, "val_rmse"} & self.names == {"val_rmse"}:
            self.name = "val_rmse"  # numbers alone
        if self.name not in self.names:
            raise ValueError(
                f"`monitor` must be a metric that the validation rows define, one of {sorted(n.removeprefix('val_') for n in self.names)}. "
                f"Received: monitor={self.recipe.monitor!r}"
            )

    @property
    def best(self) -> int | None:
        """Number of the best epoch, from 0 on."""
        found, value = None, None
        for epoch, other in enumerate(self.values):
            if better(other, value, self.mode):
                found, value = epoch, other
        return found

    @property
    def stopped(self) -> bool:
        """Whether no epoch of the last ones was better than those before."""
        patience = self.recipe.early_stopping
        return patience is not None and bool(self.values) and len(self.values) - 1 - (self.best or 0) >= patience

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        model = self.model
        with contextlib.nullcontext() if self.average is None else self.average.in_place(model):
            found = named_metrics(self.measured(model))
            if logs is not None:
                logs.update(found)
            self.values.append(found.get(self.name, math.nan))
            if self.recipe.keeps_best and self.best == len(self.values) - 1:
                self.kept = arrays_of(model)
        if self.stopped:
            model.stop_training = True

    def finish(self, ranker: models.RankingModel) -> None:
        """Go back to the state after the best epoch, if it is to be saved."""
        if self.kept:
            assign_arrays(self.kept, ranker)

    def report(self) -> dict[str, Any]:
        """For `history.json`."""
        rows = {"rows": self.choice, "events": self.events}
        if self.best is None:
            return {"validation": rows}
        best = {"epoch": self.best + 1, "monitor": self.name, "value": self.values[self.best], "saved": self.recipe.keeps_best}
        return {"validation": rows, "best": best}


def named_metrics(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """'val_click_auc' -> value, by task, and 'val_auc', the mean over tasks; what is undefined is left out."""
    named: dict[str, float] = {}
    for metric in METRICS:
        by_task = {task: values[metric] for task, values in found.items() if math.isfinite(values.get(metric, math.nan))}
        named |= {f"val_{task}_{metric}": value for task, value in by_task.items()}
        if by_task:
            named[f"val_{metric}"] = float(np.mean(list(by_task.values())))
    return named
