"""The value of a trial of a ranker: a training whose last training rows are held out, judged on these."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from keras_ranking.data import Log, ShardedLog
from keras_ranking.data.counted import counted_log
from keras_ranking.schema import Schema
from keras_ranking.training.checkpoint import FILE, read_checkpoint
from keras_ranking.training.options import MODELS, TrainingOptions, split_options
from keras_ranking.training.presets import preset_of, preset_options
from keras_ranking.training.recipe import METRICS, split_recipe
from keras_ranking.training.run import train
from keras_ranking.training.streaming.evaluate import check_prepared, validation_of
from keras_ranking.training.streaming.run import binned_schema
from keras_ranking.training.validation import validation_rows
from keras_ranking.tuning.running import Objective, Run, TrialFailed
from keras_ranking.tuning.settings import Settings
from keras_ranking.tuning.spaces import Choice

OF_THE_STUDY = ("validation", "monitor", "ensemble", "init_from", "seed", "checkpoint_every")
_MOST_BUILT = 24


class Told(keras.callbacks.Callback):
    """Tells the trial's study the value after each epoch; a trial that was cancelled, or whose loss is no number, ends.

    Args:
        run: the trial.
        name: of the metric in the logs.
        first: number of values that were told of earlier seeds.
        epochs: of the training.
    """

    def __init__(self, run: Run, name: str, first: int, epochs: int) -> None:
        super().__init__()
        self.run, self.name, self.first, self.epochs = run, name, first, epochs

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.run.check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(values.get("loss", 0.0)):
            raise TrialFailed(f"the loss is {values['loss']} after epoch {epoch + 1}")
        self.run.note("epoch", f"{epoch + 1} of {self.epochs}")
        if self.name not in values:
            raise TrialFailed(f"{self.name} is not defined after epoch {epoch + 1}")
        self.run.report(values[self.name], self.first + epoch)


def direction_of(metric: str) -> str:
    """'minimize' or 'maximize' for a metric of a validation, of all tasks or of one.

    Raises:
        ValueError: no such metric.
    """
    for name, mode in sorted({**METRICS, "grouped_auc": "max"}.items(), key=lambda pair: -len(pair[0])):
        if metric == name or metric.endswith(f"_{name}"):
            return "minimize" if mode == "min" else "maximize"
    raise ValueError(f"`metric` must be one of {list(METRICS)}, or of one task, such as 'click_log_loss'. Received: metric={metric!r}")


def trial_options(settings: Settings, tried: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `train` for a trial: those that do not vary, those that are tried, and the rows that judge."""
    search = settings.search
    return {**settings.options, **tried, "validation": search.validation, "monitor": search.metric}


def check_ranker(log: Log | ShardedLog, settings: Settings) -> Log | ShardedLog:
    """Check a study of a ranker before its first trial: each end of each range and each choice makes a model, and rows are left to judge.

    Returns:
        The log, with its counts; shards have theirs.

    Raises:
        ValueError, TypeError: naming the option.
    """
    direction_of(settings.search.metric)
    for where, names in (("space", settings.space), ("options", settings.options)):
        for name in OF_THE_STUDY:
            if name in names:
                hint = {"validation": "`validation` of the study says", "monitor": "`metric` of the study says", "seed": "`seed` says"}
                hint["checkpoint_every"] = "`checkpoint_every` of the study says"
                why = hint.get(name, "a study tunes one model;")
                raise ValueError(f"`{where}` must not have '{name}': {why} it is not varied. Received: {name}={names[name]}")
    for name in settings.space:
        if name in settings.options:
            raise ValueError(f"`{name}` must be in `space` or in `options`. Received: both")
    counted = with_its_counts(log, settings)
    schema_of = _schema_for(counted, settings)
    for number, tried in enumerate(_corners(settings)):
        try:
            options, preset = preset_of(trial_options(settings, tried), counted.preset, counted.schema)
            rest, recipe = split_recipe(options, preset_options(settings.model, preset))
            model_options, training = split_options(settings.model, rest, preset)
            if number < _MOST_BUILT:
                ranker = MODELS[settings.model](schema_of(training), **model_options)
                recipe.monitored(ranker.tasks)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the space does not fit: with {dict(tried)}: {error}") from error
        finally:
            keras.utils.clear_session()
    return counted


def with_its_counts(log: Log | ShardedLog, settings: Settings) -> Log | ShardedLog:
    """The log with the columns that its schema counts, added once for all trials; `prepare` has added those of shards.

    Raises:
        ValueError: a bad value; an `on_error` for shards, whose rows were checked.
    """
    if isinstance(log, ShardedLog):
        check_prepared(settings.search.on_error)
        return log
    return counted_log(log, on_error=settings.search.on_error)


def _schema_for(log: Log | ShardedLog, settings: Settings) -> Callable[[TrainingOptions], Schema]:
    """The schema of a model that is trained with these options, fitted on the rows that do not judge."""
    if isinstance(log, ShardedLog):
        chosen, _ = validation_of(log, settings.search.validation)
        return partial(binned_schema, log, chosen)
    held = validation_rows(log, settings.search.validation)
    rows = log.events[(log.events["split"] == "train").to_numpy() & (True if held is None else ~held)]
    plain = log.schema.fit(rows)

    def fitted(training: TrainingOptions) -> Schema:
        return plain if training.number_bins is None else log.schema.binned(training.number_bins).fit(rows)

    return fitted


def _corners(settings: Settings) -> list[dict[str, Any]]:
    """All options at their first value, all at their last, and each other choice next to first values."""
    ends = {name: list(one.values) if isinstance(one, Choice) else [one.low, one.high] for name, one in settings.space.items()}
    first = {name: values[0] for name, values in ends.items()}
    found = [first, {name: values[-1] for name, values in ends.items()}]
    found += [{**first, name: value} for name, values in ends.items() for value in values[1:]]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def ranker_objective(log: Log | ShardedLog, settings: Settings) -> Objective:
    """The objective of a study of a ranker; `log` has its counts."""

    def objective(run: Run) -> float:
        options = trial_options(settings, run.options)
        values = []
        for number, seed in enumerate(run.seeds):
            try:
                history = _trained(log, settings, options, seed, run, number)
            finally:
                keras.utils.clear_session()  # models of earlier trials are not needed, and one may have run out of memory
            for name, series in history["epochs"].items():
                if name.startswith("val_"):
                    run.found[name] = run.found.get(name, 0.0) + series[_chosen(history)] / len(run.seeds)
            values.append(_value(history, settings))
        for name, value in run.found.items():
            run.note(name, value)
        return sum(values) / len(values)

    return objective


def _trained(log: Log | ShardedLog, settings: Settings, options: Mapping[str, Any], seed: int, run: Run, number: int) -> dict[str, Any]:
    folder = run.folder / f"seed_{seed}"
    checkpoint = folder / FILE
    begun = checkpoint.is_file()
    if begun and read_checkpoint(folder).about["finished"]:  # a worker died between the end of a training and the end of its trial
        found: dict[str, Any] = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        return found
    epochs = _epochs(log, settings, options)
    name = _metric_name(settings)
    # An interval of steps that no training has: a checkpoint after each epoch.
    every = settings.search.checkpoint_every or 10**9
    told = Told(run, name, number * epochs, epochs)
    common: dict[str, Any] = {"seed": seed, "options": {**options, "checkpoint_every": every}, "verbose": False}
    _, history = train(log, settings.model, folder, callbacks=[told], resume=begun, on_error=settings.search.on_error, **common)
    return history


def _epochs(log: Log | ShardedLog, settings: Settings, options: Mapping[str, Any]) -> int:
    chosen, preset = preset_of(options, log.preset, log.schema)
    rest, _ = split_recipe(chosen, preset_options(settings.model, preset))
    return split_options(settings.model, rest, preset)[1].epochs


def _metric_name(settings: Settings) -> str:
    return f"val_{settings.search.metric.replace('grouped_auc', 'impression_auc')}"


def _chosen(history: Mapping[str, Any]) -> int:
    """Number of the epoch whose weights are kept."""
    best = history.get("best")
    return best["epoch"] - 1 if best is not None and best["saved"] else -1


def _value(history: Mapping[str, Any], settings: Settings) -> float:
    series = history["epochs"].get(_metric_name(settings))
    if not series:
        raise TrialFailed(f"{_metric_name(settings)} is not defined on the validation rows")
    return float(series[_chosen(history)])


def with_metric(settings: Settings) -> Settings:
    """The settings with the direction of their metric."""
    return replace(settings, direction=direction_of(settings.search.metric))
