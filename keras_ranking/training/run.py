"""Training from a log to a folder, as `keras-ranking train` does; resuming an interrupted run; the daily step of a finished one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.data import Log, ShardedLog, saved_counts
from keras_ranking.data.counted import counted_log
from keras_ranking.data.readers.log import as_log
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.data.shards.log import log_or_shards
from keras_ranking.schema import Schema
from keras_ranking.training.agreement import check_built_alike, check_schema, checked_callbacks
from keras_ranking.training.checkpoint import read_checkpoint, restore, set_weights
from keras_ranking.training.daily.penalty import FisherPenalty, HeldWeights, kept_files, measured_on, penalty_of
from keras_ranking.training.distribution.choice import plan_for
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.incremental.fisher import FisherSnapshot
from keras_ranking.training.job import Job, fit, run_job
from keras_ranking.training.members import member_folders, train_members, warm_start_members
from keras_ranking.training.options import MODELS, Settings, TrainingOptions, model_name, split_options
from keras_ranking.training.presets import preset_of, preset_options
from keras_ranking.training.progress import Progress
from keras_ranking.training.recipe import Recipe, rate_of_step, split_recipe
from keras_ranking.training.record import history_of, write_folder
from keras_ranking.training.reporting import tell_preset, tell_rows, tell_start
from keras_ranking.training.resumption import weights_digest
from keras_ranking.training.setup import compile_for, delays_for, training_data, weights_for
from keras_ranking.training.streaming.evaluate import check_prepared
from keras_ranking.training.streaming.run import train_on_shards, warm_start_on_shards
from keras_ranking.values import require_kind

HISTORY_SPLIT = "history"
_CONTINUED = ("optimizer", "schedule", "metrics")  # of the recipe, in a daily step


def train(
    log: Log | ShardedLog | pd.DataFrame,
    model: str | Callable[..., models.RankingModel] = "cadet",
    out: str | Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
    resume: bool = False,
    callbacks: Any = (),
    on_error: str = "raise",
    distribution: Any = None,
    schema: Schema | None = None,
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a ranker on the `train` rows of a log; `history` rows are read as history, other rows are ignored.

    Args:
        log: from `keras_ranking.data.open_log` or a reader, or a `Log` of your own. Rows out of the order of time are sorted into it, and
            counted. Columns that the schema states as `Count` are counted, see `keras_ranking.data.with_counts`. Or a `ShardedLog`, which
            is read one shard after the other, in a random order each epoch, and has been checked and fitted already. Or a DataFrame,
            one row an impression, with `schema`; where it has no column `split`, the first 80 % of the requests by time are 'train', as the
            command line cuts, and a line says so.
        model: 'cadet', 'lirank', 'amortized', 'ligr' or 'feedsr', in any case; or the function that builds it, such as `kr.models.CADET`.
        out: folder for `model.keras`, `schema.json`, `history.json`, `checkpoint.npz` (weights and the optimiser's state, for
            `warm_start`) and, with counts, their states; None: nothing is written. Files of an earlier run are replaced after all new ones
            are written.
        seed: of weights, shuffling and dropout.
        epochs: None: that of `options`.
        options: arguments of the builder, and fields of `TrainingOptions` (such as `batch_size`) and `Recipe` (such as `validation` and
            `checkpoint_every`), by name; where none is given, those of `log.preset`, if it has one. preset='paper' takes those that the
            model's paper states in their place.
        verbose: print progress.
        resume: resume from the checkpoint in `out`. With the same log, options and seed, on the same machine and backend, the weights
            are those of an uninterrupted run.
        callbacks: for `fit`. A callback that monitors a metric of a validation needs `Recipe.validation`, and one that sets the learning
            rate `schedule='constant'`. What they remember is not in a checkpoint.
        on_error: 'raise', or 'drop': bad rows are left out; how many, why and the first of each are printed (a warning if not `verbose`),
            and in `history["left_out"]`.
        distribution: 'data': each device has a part of each batch; 'tables': also a part of the rows of large embedding tables; or a
            `keras.distribution` object; None: one device. The guide "Several devices" says what each backend does. `resume` goes on with
            any other.
        schema: what the columns of a DataFrame are, such as `kr.Schema.infer` proposes; None for a log, which has its own.

    With `out`, Ctrl-C ends the training after the step in progress and a checkpoint, from which `resume` goes on.

    Returns:
        The model, and the content of `history.json`: losses and metrics by epoch, seconds, counts, options.

    Raises:
        TypeError: `log` is not a `Log`, or a DataFrame without `schema`.
        KeyboardInterrupt: after Ctrl-C.
        NotImplementedError: a `distribution` that Keras cannot do on this backend, with the way that works.
        ValueError: no training rows, a bad option or one without effect, or bad values in the log, named by row and label in `log.events`;
            a callback that monitors what is not computed; a checkpoint of another model, log, seed or options, or of a training that is
            finished.
        FileNotFoundError: `resume` without a checkpoint in `out`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> model, history = kr.training.train(log, "lirank", epochs=1, options=options, verbose=False)
        >>> sorted(model.tasks), len(history["epochs"]["loss"])
        (['click', 'like'], 1)
        >>> frame = log.events
        >>> model, history = kr.training.train(frame, "lirank", epochs=1, options=options, verbose=False, schema=log.schema)
        >>> history["train_events"] == len(log.split("train"))
        True
    """
    log = log_or_shards(log, schema, verbose)
    require_kind(options or {}, Mapping, "options", "a mapping of names to values")
    if resume and out is None:
        raise ValueError("`resume` needs `out`, the folder of the training to resume. Received: out=None")
    if epochs is not None and "epochs" in (options or {}):
        raise ValueError(f"`epochs` must be given once. Received: epochs={epochs} and options['epochs']={(options or {})['epochs']}")
    if isinstance(log, ShardedLog):
        check_prepared(on_error)
        arguments = Settings(out, seed, epochs, options, verbose, resume, callbacks, distribution)
        return train_on_shards(log, model, arguments, fit)
    model = model_name(model)
    chosen, preset = preset_of(options or {}, log.preset, log.schema)
    rest, recipe = split_recipe(chosen, preset_options(model, preset))
    recipe.require_out(out)
    if recipe.ensemble > 1:
        each: dict[str, Any] = {
            "epochs": epochs,
            "options": {**(options or {}), "ensemble": 1},
            "verbose": verbose,
        }
        each |= {"callbacks": callbacks, "on_error": on_error, "distribution": distribution}
        return train_members(partial(train, counted_log(log, on_error=on_error), model), recipe.ensemble, seed, out, resume, **each)
    if distribution is not None:
        with plan_for(distribution).scope() as plan:
            settings = {"resume": resume, "callbacks": callbacks, "on_error": on_error}
            return train(log, model, out, seed, epochs, options, verbose and plan.writes, **settings)
    active().check(recipe)
    model_options, training = split_options(model, rest, preset)
    training = training if epochs is None else replace(training, epochs=epochs)
    source = None if recipe.init_from is None else models.load(recipe.init_from)
    schema = log.schema if training.number_bins is None else log.schema.binned(training.number_bins)
    if source is not None:
        check_schema(log.schema, source.schema, str(recipe.init_from))
        schema = source.schema
    if verbose:
        tell_preset(model, preset, chosen)
    begin = None if source is None else partial(_begin_as, source, str(recipe.init_from))
    job = Job(model, lambda fitted: MODELS[model](fitted, **model_options), training, recipe, schema, begin, {"preset": preset})
    return run_job(log, job, Settings(out, seed, epochs, options, verbose, resume, callbacks), on_error)


def warm_start(
    log: Log | ShardedLog | pd.DataFrame,
    folder: str | Path,
    new: Any,
    out: str | Path | None = None,
    epochs: int = 1,
    seed: int | None = None,
    verbose: bool = True,
    callbacks: Any = (),
    on_error: str = "raise",
    distribution: Any = None,
    penalty: FisherPenalty | str | None = None,
    learning_rate: float | None = None,
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a finished model further, on newer events: the daily step.

    Feed-SR (stated): from the previous checkpoint; the full history is read, the loss is on newly arrived events alone; a warm start
    uses the learning rate at which the cold start ended. The rate is constant here, and the optimiser's state is kept, both *our
    reading*. With `schedule='cosine'` or 'onecycle' it is a hundredth of the highest, with which a step moves little: `learning_rate` is
    another one. After a training with `ema` the step begins at the averages, and makes none. An interrupted step leaves `out` unchanged:
    run it again.

    Args:
        log: old and new events, with the schema of the model; the fitted constants may be missing in the log's. Or a DataFrame, which
            is read by the schema in `folder`. Counts go on from the states in `folder` with the rows later than those that these have read;
            older rows are counted from the log's first row.
        folder: of the finished training.
        new: one bool per row of `log.events`: whether it is a target. Of the other rows, those with split 'train' or 'history' are
            history, the rest is ignored. Of a `ShardedLog`, the Unix time of the first new event among the training rows, or a split.
        out: folder to write, as `train` does; it may be `folder`. None: nothing is written.
        epochs: passes over the new events. Not known from the paper; our choice: 1. 0: the weights stay; counts go on.
        seed: of shuffling and dropout; None: the seed of `folder` plus the number of its steps.
        verbose, callbacks, on_error, distribution: as `train`.
        penalty: 'fisher' or a `FisherPenalty`: each weight is held to its earlier value by its Fisher information (LiRank). `out` then has
            it for the next step, in fisher.npz and fisher_cold.npz; where `folder` has none, it is measured on the earlier training rows of
            the log. Not with several devices or shards.
        learning_rate: of this step and the following ones; rates of tables and trunk keep their ratio to it. None: that of the step
            before, or the rate at which the training ended.

    Returns:
        The model, and the content of `history.json`.

    Raises:
        TypeError: `log` is not a `Log`.
        ValueError: no new event, `new` that is not one bool per row, a training that is not finished, or a log with another schema (other
            tasks, columns or kinds), naming the differences.
        FileNotFoundError: no checkpoint in `folder`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> model, history = kr.training.train(log, "lirank", "runs/day1", epochs=1, options=options, verbose=False)
        >>> new = (log.events["split"] == "validation").to_numpy()
        >>> model, history = kr.training.warm_start(log, "runs/day1", new, "runs/day2", verbose=False)
        >>> history["train_events"] == int(new.sum())
        True
    """
    if isinstance(log, ShardedLog):
        check_prepared(on_error)
        _refuse_penalty(penalty, "a ShardedLog", "read the new events as a log, with the history that they need")
        own: dict[str, Any] = {"callbacks": callbacks, "distribution": distribution, "learning_rate": learning_rate}
        step = Settings(out, -1 if seed is None else seed, verbose=verbose, **own)
        return warm_start_on_shards(log, folder, new, epochs, step, fit)
    log = as_log(log, Schema.load(Path(folder) / "schema.json") if isinstance(log, pd.DataFrame) else None, "train")
    if member_folders(folder):
        each: dict[str, Any] = {
            "new": new,
            "epochs": epochs,
            "seed": seed,
            "verbose": verbose,
            "callbacks": callbacks,
            "on_error": on_error,
            "distribution": distribution,
            "penalty": penalty,
            "learning_rate": learning_rate,
        }
        return warm_start_members(partial(warm_start, log), folder, out, **each)
    penalty = penalty_of(penalty)
    if distribution is not None:
        _refuse_penalty(penalty, "a `distribution`", "take the step on one device")
        with plan_for(distribution).scope() as plan:
            again: dict[str, Any] = {"callbacks": callbacks, "on_error": on_error, "learning_rate": learning_rate}
            return warm_start(log, folder, new, out, epochs, seed, verbose and plan.writes, **again)
    plan = active()
    checkpoint = read_checkpoint(folder)
    stored = checkpoint.about["fingerprint"].get("recipe", {})
    recipe = Recipe(**{name: stored[name] for name in _CONTINUED if name in stored})
    callbacks = checked_callbacks(callbacks, recipe.rate)
    if not checkpoint.about["finished"]:
        raise ValueError(f"the training in '{folder}' is not finished: resume it first (`train(..., resume=True)`).")
    marks = np.asarray(new)
    if marks.shape != (len(log.events),) or marks.dtype != bool:
        raise ValueError(
            f"`new` must have one bool for each row of the log. Received: {marks.dtype} {marks.shape} for {len(log.events)} rows"
        )
    if not marks.any():
        raise ValueError(f"`new` must be True for at least one row. Received: none of {len(marks)}")
    kept = marks | log.events["split"].isin(["train", HISTORY_SPLIT]).to_numpy()
    ranker = models.load(folder)
    check_schema(log.schema, ranker.schema, folder)
    log = counted_log(log, saved_counts(folder), on_error, ranker.schema, marks)
    before = checkpoint.about
    steps = before["progress"]["step"]
    seed = before["seed"] + steps if seed is None else seed
    keras.utils.set_random_seed(seed % 2**32)
    training = TrainingOptions(**{**before["fingerprint"]["training"], "epochs": epochs or 1})
    learning_rate, share = rate_of_step(learning_rate, before, training.learning_rate, recipe)
    sequences = checked_sequences(
        log.events[kept],
        ranker.schema,
        marks[kept],
        on_error,
        log.round,
        needed="new row",
        offers=("on_error", "log"),
        places=np.flatnonzero(kept),
    )
    tell_rows(sequences, verbose)
    rows = np.sort(sequences.rows)
    events, learned = log.events.iloc[rows], marks[rows]
    log_seed = before.get("log_seed", before["seed"])
    about = {**before, "log": log.name, "log_seed": log_seed, "seed": seed, "backend": keras.backend.backend()}
    about["on_error"] = on_error
    about |= {"warm": before.get("warm", 0) + 1, "learning_rate": learning_rate}
    # One day may be too small for an estimate of propensities: earlier training rows are included.
    estimated = events[learned | (events["split"] == "train").to_numpy()]
    weights = weights_for(sequences, training, estimated, ranker.schema, ranker.tasks)
    dataset, window = training_data(
        ranker, sequences, training, seed, weights.by_task, delays_for(events[learned], training, rows[learned])
    )
    length = len(dataset) * max(epochs, 1)
    compiled = partial(compile_for, training=training, steps=length, window=window, recipe=recipe, made=steps, share=share)
    compiled(ranker)
    tell_start(ranker, sequences, dataset, weights.report, plan.start(ranker, dataset), verbose)
    restore(checkpoint, ranker, weights=False, rates=share is None)
    start = time.perf_counter()
    counter = Progress(None, None, about, seed, len(dataset))
    counter.step = steps
    held, more = None, kept_files(folder) if not epochs else {}
    if penalty is not None and epochs:
        measure = partial(measured_on, ranker, training=training, samples=penalty.samples, seed=seed)
        held = HeldWeights(penalty, ranker, folder, _earlier(log, ranker, kept, on_error, measure, marks))
    if epochs:
        with nullcontext() if held is None else held.attached():
            fit(ranker, dataset, epochs, counter, callbacks, verbose)
        if held is not None:
            more = held.files(measure(sequences))
    ranker = plan.finished(ranker, partial(models.load, folder), compiled)
    history = history_of(ranker, about, counter, training, sequences, dataset, weights.report, time.perf_counter() - start, log.counts)
    if held is not None:
        history["penalty"] = held.about()
    if out is not None:
        write_folder(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()}, log.counts, more)
    return ranker, history


def _refuse_penalty(penalty: Any, what: str, way: str) -> None:
    if penalty is not None:
        raise NotImplementedError(f"`penalty` does not work with {what}: {way}.")


def _earlier(
    log: Log, ranker: models.RankingModel, kept: np.ndarray, on_error: str, measure: Callable[[Any], FisherSnapshot], new: np.ndarray
) -> Callable[[], FisherSnapshot] | None:
    """Measures the Fisher information of earlier training rows; None: there are no such rows."""
    target, places = (kept & ~new & (log.events["split"] == "train").to_numpy())[kept], np.flatnonzero(kept)

    def measured() -> FisherSnapshot:
        return measure(checked_sequences(log.events[kept], ranker.schema, target, on_error, log.round, places=places))

    return measured if target.any() else None


def _begin_as(source: models.RankingModel, path: str, ranker: models.RankingModel) -> dict[str, Any]:
    """Give a model the weights of one that was built alike."""
    check_built_alike(ranker, source, path)
    set_weights(source.get_weights(), ranker)
    return {"started_weights": weights_digest(source.get_weights())}
