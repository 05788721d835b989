"""Metrics of a trained model on a sharded log, and validation during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.configuration import is_real
from keras_ranking.data import Log, ShardedLog
from keras_ranking.data.shards.log import TRAINING, Chosen
from keras_ranking.schema import Schema
from keras_ranking.training.distribution.choice import plan_for
from keras_ranking.training.distribution.plan import ONE, Plan, active
from keras_ranking.training.recipe import LAST_DAY, Recipe
from keras_ranking.training.scoring.events import evaluate_log, model_of
from keras_ranking.training.streaming.scores import metrics_of_shards
from keras_ranking.training.validation import Validation
from keras_ranking.training.weight_average import WeightAverage

_DAY = 86_400


def check_prepared(on_error: str) -> None:
    """Check that no rows are to be left out of shards, whose rows have been checked.

    Raises:
        ValueError: `on_error` that is not 'raise'.
    """
    if on_error != "raise":
        raise ValueError(f"`on_error` is that of `prepare`, where the log is in shards. Received: on_error={on_error!r}")


def check_encoding(log: ShardedLog, schema: Schema, what: str) -> None:
    """Check that shards are encoded as a model reads them.

    Only edges of bins may differ, which change no encoded value, and means and standard deviations by rounding: sums over parts of a log
    add up in another order.

    Args:
        log: the shards.
        schema: of the model.
        what: the model, for the message.

    Raises:
        ValueError: naming the columns that differ.
    """
    ours, theirs = (_encoding(each) for each in (log.schema, schema))
    differ = sorted(name for name in {*ours, *theirs} if not _same(ours.get(name), theirs.get(name)))
    if differ:
        raise ValueError(
            f"the shards in '{log.folder}' must be encoded with the schema of {what}: prepare the log with it, `--schema RUN/schema.json`. "
            f"Received: others of {differ}"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _encoding(schema: Schema) -> dict[str, Any]:
    plain = schema.model_dump(mode="json")
    columns = {column["name"]: column for column in (*plain.pop("features"), *plain.pop("actions"))}
    for column in columns.values():
        column.pop("bins", None)
        column.pop("edges", None)
    return {**plain, **{f"column '{name}'": column for name, column in columns.items()}}


def evaluate_shards(
    ranker: models.RankingModel, log: ShardedLog, split: str, row_length: int = 2048, plan: Plan = ONE
) -> dict[str, dict[str, float]]:
    """What `evaluate` returns, from shards: the scores of one shard at a time, and 17 bytes for each event of the split and each task.

    Args:
        ranker: the model.
        log: the shards.
        split, row_length: as `evaluate`.
        plan: which process scores which batch.

    Raises:
        ValueError: no such split, or shards with other constants than the model's schema.
    """
    check_encoding(log, ranker.schema, f"the model '{ranker.name}'")
    return metrics_of_shards(ranker, log, Chosen(target=(split,), until=log.newest(split)), row_length, plan=plan, ranked=True)


def evaluate(
    model: str | Path | models.RankingModel,
    log: Log | ShardedLog | pd.DataFrame,
    split: str = "validation",
    row_length: int = 2048,
    on_error: str = "raise",
    distribution: Any = None,
) -> dict[str, dict[str, float]]:
    """Metrics of a trained model on one split, by task.

    Ranking metrics (`auc`, `impression_auc`, `ndcg_at_10`, `mrr`) are computed from the score that serving returns, which does not
    depend on the position; metrics of probabilities (`log_loss`, `normalized_entropy`, `calibration_error`,
    `observed_over_expected`) from the tower of the position shown. With one tower both use the same scores.

    A model with a utility has metrics of the order by its `score` under this name: `utility_at_1` and `utility_at_5`, the mean worth of
    the first candidates of a request by what happened (`metrics.realised_utility`, with labels in the units that are served), and
    `TASK_impression_auc` and `TASK_ndcg_at_10`, how well this one order serves each task.

    Rows are weighted by `Task.weight`, where a task has one: `metrics.summary` says how each metric is. `ndcg_at_10`, `mrr` and the metrics
    of the order by utility are not weighted.

    Rows later than the split are not read; earlier rows are history. A `ShardedLog` is read one shard after the other; 17 bytes are kept
    for each event of the split and each task.

    Args:
        model: a `RankingModel`, or the path of a saved one.
        log: with rows of the split, and their history. Counts that the schema states and the log lacks are counted: from the first row of
            the log, or, for rows later than those that the run has read, from the states in the folder of the model. Or a `ShardedLog`
            with the constants of the model's schema; or a DataFrame; without a column `split` it is
            cut by time as `train` cuts it, and a warning says so: `frame.assign(split='validation')` scores all rows.
        split: name of the split.
        row_length: events per packed row, for models trained on rows; raised to twice the largest request.
        on_error: 'raise', or 'drop': bad rows are left out, and a warning says how many, why and the first of each.
        distribution: as in `train`. With several processes, all of which must call this, each scores its share of the batches, and each
            has the metrics of all.

    Returns:
        Task -> metric -> value, and 'score' -> metric -> value for a model with a utility; NaN for a task without a known label in the
        split.

    Raises:
        NotImplementedError: a `distribution` that Keras cannot do on this backend, with the way that works.
        TypeError: `log` is not a `Log`.
        ValueError: no such split, no rows in it, or bad values in the log.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), history_features=())
        >>> results = kr.training.evaluate(model, log, "validation")
        >>> sorted(results), sorted(results["click"])[:3]
        (['click', 'like'], ['auc', 'calibration_error', 'impression_auc'])
    """
    if not isinstance(log, ShardedLog):
        return evaluate_log(model, log, split, row_length, on_error, distribution)
    plan = plan_for(distribution).by_turns()
    check_prepared(on_error)
    log.require_split(split)
    return evaluate_shards(model_of(model), log, split, row_length, plan)


def validation_of(log: ShardedLog, validation: str | float | None) -> tuple[Chosen, Chosen | None]:
    """What is trained on, and what is measured after each epoch, by `Recipe.validation`.

    Raises:
        ValueError: no such split, or no row that is left to train on.
    """
    log.require_split("train")
    if validation is None:
        return TRAINING, None
    newest = log.newest("train")
    if validation != LAST_DAY and not is_real(validation):
        if validation in ("train", "history"):
            raise ValueError(
                f"`validation` must be a split that is not trained on, 'last_day' or a share. Received: validation={validation!r}"
            )
        return TRAINING, Chosen(target=(str(validation),), until=log.newest(str(validation)))
    edge = _time_of_share(log, 1 - float(validation)) if is_real(validation) else newest - _DAY + 1
    oldest = min(int(about["oldest"]["train"]) for about in log.manifest["files"] if "train" in about["oldest"])
    if oldest >= edge:
        raise ValueError(
            f"`validation` must leave rows to train on: all {log.splits['train']:,} are in it. Received: validation={validation!r}"
        )
    return replace(TRAINING, without=edge), Chosen(target=("train",), since=edge, until=newest)


def _time_of_share(log: ShardedLog, share: float) -> int:
    """The model time before which this share of the requests of the training rows is, as `split_by_time` cuts them."""
    found = []
    for sequences in log.all_sequences(Chosen(read=("train",)), columns=()):
        found.append(np.unique(sequences.time[sequences.request_starts[:-1]], return_counts=True))
    times, place = np.unique(np.concatenate([times for times, _ in found]), return_inverse=True)
    ends = np.cumsum(np.bincount(place, weights=np.concatenate([counts for _, counts in found])).astype(np.int64))
    return int(times[np.searchsorted(ends, min(math.ceil(int(ends[-1]) * share), int(ends[-1]) - 1), side="right")])


class StreamedValidation(Validation):
    """`Validation` on shards.

    Args:
        ranker: the model.
        log: the shards.
        chosen: what is measured.
        recipe, progress, kept, average: as `Validation`.
    """

    def __init__(
        self,
        ranker: models.RankingModel,
        log: ShardedLog,
        chosen: Chosen,
        recipe: Recipe,
        progress: Mapping[str, Any] | None = None,
        kept: Mapping[str, np.ndarray] | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        keras.callbacks.Callback.__init__(self)
        self.log, self.chosen, self.average = log, chosen, average
        self.recipe, self.choice = recipe, recipe.validation
        self.name, self.mode = recipe.monitored(ranker.tasks)
        self.check_names(metrics_of_shards(ranker, log, chosen, constant=0.5))
        self.values: list[float] = list((progress or {}).get("epochs", {}).get(self.name, ()))
        self.kept: dict[str, np.ndarray] = dict(kept or {})
        self._events = sum(int(sequences.target.sum()) for sequences in log.all_sequences(chosen, columns=()))

    def measured(self, ranker: models.RankingModel) -> dict[str, dict[str, float]]:
        return metrics_of_shards(ranker, self.log, self.chosen, plan=active())

    @property
    def events(self) -> int:
        return self._events
