"""Training from a log to a folder, as `keras-ranking train` does; resuming an interrupted run; the daily step of a finished one."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.data import Log, ShardedLog, saved_counts
from keras_ranking.data.counted import counted_log
from keras_ranking.data.readers.log import as_log, require_log
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.schema import Schema
from keras_ranking.training.agreement import check_built_alike, check_schema, checked_callbacks
from keras_ranking.training.checkpoint import FILE, best_of, check_same, fingerprint, read_checkpoint, restore, set_weights
from keras_ranking.training.distribution.choice import plan_for
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.members import member_folders, train_members, warm_start_members
from keras_ranking.training.options import MODELS, TrainingOptions, model_name, split_options
from keras_ranking.training.presets import preset_options
from keras_ranking.training.progress import Progress, Rest
from keras_ranking.training.recipe import Recipe, as_plain, split_recipe
from keras_ranking.training.record import history_of, write_folder
from keras_ranking.training.reporting import tell_counts, tell_preset, tell_rows, tell_start
from keras_ranking.training.setup import build_for, compile_for, delays_for, training_data, weights_for
from keras_ranking.training.start_tables import StartTables
from keras_ranking.training.streaming.evaluate import check_prepared
from keras_ranking.training.streaming.run import Settings, train_on_shards, warm_start_on_shards
from keras_ranking.training.validation import Validation, validation_rows
from keras_ranking.training.weight_average import WeightAverage, averages_of
from keras_ranking.values import require_kind

HISTORY_SPLIT = "history"
_CONTINUED = ("optimizer", "schedule", "metrics")  # of the recipe, in a daily step


def train(
    log: Log | ShardedLog,
    model: str | Callable[..., models.RankingModel] = "cadet",
    out: str | Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
    checkpoint_every: int | None = None,
    resume: bool = False,
    callbacks: Any = (),
    on_error: str = "raise",
    distribution: Any = None,
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a ranker on the `train` rows of a log; `history` rows are read as history, other rows are ignored.

    Args:
        log: from `keras_ranking.data.open_log` or a reader, or a `Log` of your own. Rows out of the order of time are sorted into it, and
            counted. Columns that the schema states as `Count` are counted, see `keras_ranking.data.with_counts`. Or a `ShardedLog`, which
            is read one shard after the other, in a random order each epoch, and has been checked and fitted already.
        model: 'cadet', 'lirank', 'amortized', 'ligr' or 'feedsr', in any case; or the function that builds it, such as `kr.models.CADET`.
        out: folder for `model.keras`, `schema.json`, `history.json`, `checkpoint.npz` (weights and the optimiser's state, for
            `warm_start`) and, with counts, their states; None: nothing is written. Files of an earlier run are replaced after all new ones
            are written.
        seed: of weights, shuffling and dropout.
        epochs: None: that of `options`.
        options: arguments of the builder, and fields of `TrainingOptions` (such as `batch_size`) and `Recipe`, by name; where none is
            given, those of `log.preset`, if it has one.
        verbose: print progress.
        checkpoint_every: number of steps between writes of `checkpoint.npz`, which is then also written after each epoch; None: at the
            end alone.
        resume: resume from the checkpoint in `out`. With the same log, options and seed, on the same machine and backend, the weights
            are those of an uninterrupted run.
        callbacks: for `fit`. A callback that monitors a metric of a validation needs `Recipe.validation`, and one that sets the learning
            rate `schedule='constant'`. What they remember is not in a checkpoint.
        on_error: 'raise', or 'drop': bad rows are left out; how many, why and the first of each are printed (a warning if not `verbose`),
            and in `history["left_out"]`.
        distribution: 'data': each device has a part of each batch; 'tables': also a part of the rows of large embedding tables; or a
            `keras.distribution` object; None: one device. The guide "Several devices" says what each backend does. `resume` goes on with
            any other.

    With `out`, Ctrl-C ends the training after the step in progress and a checkpoint, from which `resume` goes on.

    Returns:
        The model, and the content of `history.json`: losses and metrics by epoch, seconds, counts, options.

    Raises:
        TypeError: `log` is not a `Log`.
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
    """
    if not isinstance(log, ShardedLog):
        require_log(log)
    require_kind(options or {}, Mapping, "options", "a mapping of names to values")
    if resume and out is None:
        raise ValueError("`resume` needs `out`, the folder of the training to resume. Received: out=None")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"`checkpoint_every` must be a positive integer. Received: checkpoint_every={checkpoint_every}")
    if checkpoint_every is not None and out is None:
        raise ValueError(f"`checkpoint_every` needs `out`, the folder to write. Received: checkpoint_every={checkpoint_every}, out=None")
    if epochs is not None and "epochs" in (options or {}):
        raise ValueError(f"`epochs` must be given once. Received: epochs={epochs} and options['epochs']={(options or {})['epochs']}")
    if isinstance(log, ShardedLog):
        check_prepared(on_error)
        arguments = Settings(out, seed, epochs, options, verbose, checkpoint_every, resume, callbacks, distribution)
        return train_on_shards(log, model, arguments, _fit)
    model = model_name(model)
    rest, recipe = split_recipe(options or {}, preset_options(model, log.preset))
    if recipe.ensemble > 1:
        each: dict[str, Any] = {
            "epochs": epochs,
            "options": {**(options or {}), "ensemble": 1},
            "verbose": verbose,
        }
        each |= {"checkpoint_every": checkpoint_every, "callbacks": callbacks, "on_error": on_error, "distribution": distribution}
        return train_members(partial(train, counted_log(log, on_error=on_error), model), recipe.ensemble, seed, out, resume, **each)
    if distribution is not None:
        with plan_for(distribution).scope() as plan:
            settings = {"checkpoint_every": checkpoint_every, "resume": resume, "callbacks": callbacks, "on_error": on_error}
            return train(log, model, out, seed, epochs, options, verbose and plan.writes, **settings)
    plan = active()
    plan.check(recipe)
    if recipe.validation is None:
        callbacks = checked_callbacks(callbacks, recipe.rate)
    model_options, training = split_options(model, rest, log.preset)
    training = training if epochs is None else replace(training, epochs=epochs)
    log.is_split("train")
    log = counted_log(log, on_error=on_error)
    held = validation_rows(log, recipe.validation)
    kept = log.events["split"].isin(["train", HISTORY_SPLIT]).to_numpy() & (True if held is None else ~held)
    learned = (log.events["split"][kept] == "train").to_numpy()
    schema = log.schema if training.number_bins is None else log.schema.binned(training.number_bins)
    source = None if recipe.init_from is None else models.load(recipe.init_from)
    if source is not None:
        check_schema(log.schema, source.schema, str(recipe.init_from))
    keras.utils.set_random_seed(seed)
    sequences = checked_sequences(
        log.events[kept],
        schema if source is None else source.schema,
        learned,
        on_error,
        log.round,
        fit=source is None,
        needed="training row",
        offers=("on_error", "log"),
        places=np.flatnonzero(kept),
    )
    rows, schema = np.sort(sequences.rows[sequences.target]), sequences.schema
    events = log.events.iloc[rows]
    if verbose:
        tell_preset(model, log.preset, options or {})
        tell_counts(log)
    tell_rows(sequences, verbose)
    given = {"options": as_plain(dict(options or {})), "epochs": epochs, "checkpoint_every": checkpoint_every}
    named = {"model": model, "seed": seed, "backend": keras.backend.backend()}
    ranker = MODELS[model](schema, **model_options)
    weights = weights_for(sequences, training, events, schema, ranker.tasks)
    delays = delays_for(events, training, rows)
    made_with = {**named, "data": fingerprint(sequences, weights.by_task, delays)}
    settings = {name: value for name, value in asdict(training).items() if (name, value) != ("number_bins", None)}
    made_with |= {"training": as_plain(settings), "arguments": as_plain(ranker.arguments)}
    if started := _started(callbacks):
        made_with["started_tables"] = started
    if chosen := recipe.plain():
        made_with["recipe"] = chosen
    if source is not None:
        check_built_alike(ranker, source, str(recipe.init_from))
        set_weights(source.get_weights(), ranker)
        made_with["started_weights"] = _digest(source.get_weights())
    about: dict[str, Any] = {**named, **given, "log": log.name, "log_seed": seed, "preset": log.preset, "on_error": on_error}
    about["fingerprint"] = made_with
    plan.agree(made_with)
    stopped = None
    if resume and out is not None:
        stopped = read_checkpoint(out)
        if stopped.about["finished"]:
            raise ValueError(f"the training in '{out}' is finished and cannot be resumed; `warm_start` trains it on new events.")
        check_same(stopped.about["fingerprint"], made_with, out)
    progress = None if stopped is None else stopped.about["progress"]
    validation = average = None
    if recipe.ema is not None:
        arrays = {} if stopped is None else averages_of(stopped.arrays)
        average = WeightAverage(recipe.ema, recipe.ema_every, 0 if progress is None else progress["step"], arrays)
    if held is not None:
        best = None if stopped is None else best_of(stopped)
        validation = Validation(ranker, log, held, recipe, on_error, progress, best, average)
        callbacks = checked_callbacks(callbacks, recipe.rate, validation.names)
    first = 0 if progress is None else progress["epoch"]
    dataset, window = training_data(ranker, sequences, training, seed, weights.by_task, delays, epoch=first)
    compiled = partial(compile_for, training=training, steps=len(dataset) * training.epochs, window=window, recipe=recipe)
    compiled(ranker)
    tell_start(ranker, sequences, dataset, weights.report, plan.start(ranker, dataset), verbose)
    if stopped is not None:
        restore(stopped, ranker)
    start = time.perf_counter()
    path = None if out is None else Path(out) / FILE
    counter = Progress(path, checkpoint_every, about, seed, len(dataset), progress, validation, average)
    _fit(ranker, dataset, training.epochs, counter, callbacks, verbose)
    ranker = plan.finished(ranker, lambda: MODELS[model](schema, **model_options), compiled)
    history = history_of(ranker, about, counter, training, sequences, dataset, weights.report, time.perf_counter() - start, log.counts)
    if out is not None:
        write_folder(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()}, log.counts)
    return ranker, history


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
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a finished model further, on newer events: the daily step.

    Feed-SR (stated): from the previous checkpoint; the full history is read, the loss is on newly arrived events alone; a warm start
    uses the learning rate at which the cold start ended. The rate is constant here, and the optimiser's state is kept, both *our
    reading*. After a training with `ema` the step begins at the averages, and makes none. An interrupted step leaves `out` unchanged:
    run it again.

    Args:
        log: old and new events, with the schema of the model; the fitted constants may be missing in the log's. Or a DataFrame, which
            is read by the schema in `folder`. Counts go on from the states in `folder` with the rows later than those that these have read;
            older rows are counted from the log's first row.
        folder: of the finished training.
        new: one bool per row of `log.events`: whether it is a target. Of the other rows, those with split 'train' or 'history' are
            history, the rest is ignored. Of a `ShardedLog`, the Unix time of the first new event among the training rows, or a split.
        out: folder to write, as `train` does; it may be `folder`. None: nothing is written.
        epochs: passes over the new events. Not known from the paper; our choice: 1.
        seed: of shuffling and dropout; None: the seed of `folder` plus the number of its steps.
        verbose, callbacks, on_error, distribution: as `train`.

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
        step = Settings(out, -1 if seed is None else seed, verbose=verbose, callbacks=callbacks, distribution=distribution)
        return warm_start_on_shards(log, folder, new, epochs, step, _fit)
    if isinstance(log, pd.DataFrame):
        made: Log = as_log(log, Schema.load(Path(folder) / "schema.json"), "train")
        log = made
    require_log(log)
    if member_folders(folder):
        each: dict[str, Any] = {
            "new": new,
            "epochs": epochs,
            "seed": seed,
            "verbose": verbose,
            "callbacks": callbacks,
            "on_error": on_error,
            "distribution": distribution,
        }
        return warm_start_members(partial(warm_start, log), folder, out, **each)
    if distribution is not None:
        with plan_for(distribution).scope() as plan:
            return warm_start(log, folder, new, out, epochs, seed, verbose and plan.writes, callbacks, on_error)
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
    training = TrainingOptions(**{**before["fingerprint"]["training"], "epochs": epochs})
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
    about["warm"] = before.get("warm", 0) + 1
    # One day may be too small for an estimate of propensities: earlier training rows are included.
    estimated = events[learned | (events["split"] == "train").to_numpy()]
    weights = weights_for(sequences, training, estimated, ranker.schema, ranker.tasks)
    dataset, window = training_data(
        ranker, sequences, training, seed, weights.by_task, delays_for(events[learned], training, rows[learned])
    )
    compiled = partial(compile_for, training=training, steps=len(dataset) * epochs, window=window, recipe=recipe, made=steps)
    compiled(ranker)
    tell_start(ranker, sequences, dataset, weights.report, plan.start(ranker, dataset), verbose)
    restore(checkpoint, ranker, weights=False)
    start = time.perf_counter()
    counter = Progress(None, None, about, seed, len(dataset))
    counter.step = steps
    _fit(ranker, dataset, epochs, counter, callbacks, verbose)
    ranker = plan.finished(ranker, partial(models.load, folder), compiled)
    history = history_of(ranker, about, counter, training, sequences, dataset, weights.report, time.perf_counter() - start, log.counts)
    if out is not None:
        write_folder(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()}, log.counts)
    return ranker, history


def _fit(ranker: models.RankingModel, dataset: Any, epochs: int, counter: Progress, callbacks: Any, verbose: bool) -> None:
    # If `fit` has something to build, it reads one batch first, two for JAX on an accelerator. The rest of a resumed epoch may have no
    # more batches than that, so everything is built here.
    if keras.backend.backend() == "tensorflow" or (counter.batch and len(dataset) - counter.batch <= 2):
        counter.plan.build(ranker, dataset[0], build_for)
    validation, average = counter.validation, counter.average
    first = [one for one in (average, validation, counter) if one is not None]
    settings: dict[str, Any] = {"shuffle": False, "verbose": 1 if verbose else 0, "callbacks": [*first, *callbacks]}

    def stopped() -> bool:
        return validation is not None and validation.stopped

    with contextlib.nullcontext() if counter.path is None else counter.interrupt:
        if counter.batch:  # in the middle of an epoch
            ranker.fit(Rest(dataset, counter.batch), initial_epoch=counter.epoch, epochs=counter.epoch + 1, **settings)
        if counter.epoch < epochs and not stopped():
            ranker.fit(dataset, initial_epoch=counter.epoch, epochs=epochs, **settings)
    if average is not None:
        average.finish(ranker)
    if validation is not None:
        validation.finish(ranker)


def _started(callbacks: Any) -> dict[str, str]:
    """Digests of the factors from which tables start, by column."""
    listed = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else callbacks
    return {column: digest for one in listed if isinstance(one, StartTables) for column, digest in one.digests.items()}


def _digest(weights: list[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for weight in weights:
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()
