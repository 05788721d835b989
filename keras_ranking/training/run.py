"""Training from a log to a folder, as `keras-ranking train` does; resuming an interrupted run; the daily step of a finished one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.data import Log, PackedDataset, PackedRequests, Sequences
from keras_ranking.data.readers.log import require_log
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.schema import Schema
from keras_ranking.training.agreement import check_schema, checked_callbacks
from keras_ranking.training.checkpoint import (
    FILE,
    Progress,
    Rest,
    check_same,
    checkpoint_writer,
    fingerprint,
    read_checkpoint,
    restore,
    write_whole,
)
from keras_ranking.training.options import MODELS, TrainingOptions, split_options
from keras_ranking.training.reporting import describe, filled, tell_preset, tell_rows, tell_tables
from keras_ranking.training.setup import build_for, compile_for, delays_for, training_data, weights_for
from keras_ranking.training.start_tables import StartTables
from keras_ranking.values import require_kind

HISTORY_SPLIT = "history"


def train(
    log: Log,
    model: str = "cadet",
    out: str | Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
    checkpoint_every: int | None = None,
    resume: bool = False,
    callbacks: Any = (),
    on_error: str = "raise",
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a ranker on the `train` rows of a log; `history` rows are read as history, other rows are ignored.

    Args:
        log: from `keras_ranking.data.open_log` or a reader, or a `Log` of your own. Rows out of the order of time are sorted into it, and
            counted.
        model: 'cadet', 'lirank', 'amortized', 'ligr' or 'feedsr'.
        out: folder for `model.keras`, `schema.json`, `history.json` and `checkpoint.npz` (weights and the optimiser's state, for
            `warm_start`); None: nothing is written. Files of an earlier run are replaced after all new ones are written.
        seed: of weights, shuffling and dropout.
        epochs, batch_size: None: those of `options`.
        options: arguments of the builder and fields of `TrainingOptions`; where none is given, those of `log.preset`, if it has one.
        verbose: print progress.
        checkpoint_every: number of steps between writes of `checkpoint.npz`, which is then also written after each epoch; None: at the
            end alone.
        resume: resume from the checkpoint in `out`. With the same log, options and seed, on the same machine and backend, the weights
            are those of an uninterrupted run.
        callbacks: for `fit`. There are no validation metrics in training: a callback that monitors one is an error.
        on_error: 'raise', or 'drop': bad rows are left out; how many, why and the first of each are printed (a warning if not `verbose`),
            and in `history["left_out"]`.

    Returns:
        The model, and the content of `history.json`: losses by epoch, seconds, counts, options.

    Raises:
        TypeError: `log` is not a `Log`.
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
    require_log(log)
    require_kind(options or {}, Mapping, "options", "a mapping of names to values")
    if resume and out is None:
        raise ValueError("`resume` needs `out`, the folder of the training to resume. Received: out=None")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"`checkpoint_every` must be a positive integer. Received: checkpoint_every={checkpoint_every}")
    if checkpoint_every is not None and out is None:
        raise ValueError(f"`checkpoint_every` needs `out`, the folder to write. Received: checkpoint_every={checkpoint_every}, out=None")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value is not None and name in (options or {}):
            raise ValueError(f"`{name}` must be given once. Received: {name}={value} and options[{name!r}]={(options or {})[name]}")
    callbacks = checked_callbacks(callbacks)
    model_options, training = split_options(model, options or {}, log.preset)
    training = replace(
        training,
        epochs=training.epochs if epochs is None else epochs,
        batch_size=training.batch_size if batch_size is None else batch_size,
    )
    log.is_split("train")
    kept = log.events["split"].isin(["train", HISTORY_SPLIT]).to_numpy()
    learned = (log.events["split"][kept] == "train").to_numpy()
    keras.utils.set_random_seed(seed)
    sequences = checked_sequences(
        log.events[kept],
        log.schema,
        learned,
        on_error,
        log.round,
        fit=True,
        needed="training row",
        offers=("on_error", "log"),
        places=np.flatnonzero(kept),
    )
    rows, schema = np.sort(sequences.rows[sequences.target]), sequences.schema
    events = log.events.iloc[rows]
    if verbose:
        tell_preset(model, log.preset, options or {})
    tell_rows(sequences, verbose)
    given = {"options": _plain(dict(options or {})), "epochs": epochs, "batch_size": batch_size, "checkpoint_every": checkpoint_every}
    named = {"model": model, "seed": seed, "backend": keras.backend.backend()}
    ranker = MODELS[model](schema, **model_options)
    weights = weights_for(sequences, training, events, schema, ranker.tasks)
    delays = delays_for(events, training, rows)
    made_with = {**named, "data": fingerprint(sequences, weights.by_task, delays)}
    made_with |= {"training": _plain(asdict(training)), "arguments": _plain(ranker.arguments)}
    if started := _started(callbacks):
        made_with["started_tables"] = started
    about: dict[str, Any] = {**named, **given, "log": log.name, "log_seed": seed, "preset": log.preset, "on_error": on_error}
    about["fingerprint"] = made_with
    stopped = None
    if resume and out is not None:
        stopped = read_checkpoint(out)
        if stopped.about["finished"]:
            raise ValueError(f"the training in '{out}' is finished and cannot be resumed; `warm_start` trains it on new events.")
        check_same(stopped.about["fingerprint"], made_with, out)
    progress = None if stopped is None else stopped.about["progress"]
    first = 0 if progress is None else progress["epoch"]
    dataset, window = training_data(ranker, sequences, training, seed, weights.by_task, delays, epoch=first)
    if verbose:
        print(describe(ranker, sequences, dataset, weights.report), flush=True)
    compile_for(ranker, training, steps=len(dataset) * training.epochs, window=window)
    if verbose:
        tell_tables(ranker)
    if stopped is not None:
        restore(stopped, ranker)
    start = time.perf_counter()
    path = None if out is None else Path(out) / FILE
    counter = Progress(path, checkpoint_every, about, seed, len(dataset), progress)
    _fit(ranker, dataset, training.epochs, counter, callbacks, verbose)
    history = _history(ranker, about, counter, training, sequences, dataset, weights.report, time.perf_counter() - start)
    if out is not None:
        _write(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()})
    return ranker, history


def warm_start(
    log: Log,
    folder: str | Path,
    new: Any,
    out: str | Path | None = None,
    epochs: int = 1,
    seed: int | None = None,
    verbose: bool = True,
    callbacks: Any = (),
    on_error: str = "raise",
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a finished model further, on newer events: the daily step.

    Feed-SR (stated): from the previous checkpoint; the full history is read, the loss is on newly arrived events alone; a warm start
    uses the learning rate at which the cold start ended. The rate is constant here, and the optimiser's state is kept, both *our
    reading*. An interrupted step leaves `out` unchanged: run it again.

    Args:
        log: old and new events, with the schema of the model; the fitted constants may be missing in the log's.
        folder: of the finished training.
        new: one bool per row of `log.events`: whether it is a target. Of the other rows, those with split 'train' or 'history' are
            history, the rest is ignored.
        out: folder to write, as `train` does; it may be `folder`. None: nothing is written.
        epochs: passes over the new events. Not known from the paper; our choice: 1.
        seed: of shuffling and dropout; None: the seed of `folder` plus the number of its steps.
        verbose, callbacks, on_error: as `train`.

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
    require_log(log)
    callbacks = checked_callbacks(callbacks)
    checkpoint = read_checkpoint(folder)
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
    if verbose:
        print(describe(ranker, sequences, dataset, weights.report), flush=True)
    compile_for(ranker, training, steps=len(dataset) * epochs, window=window, warm=True)
    if verbose:
        tell_tables(ranker)
    restore(checkpoint, ranker, weights=False)
    start = time.perf_counter()
    counter = Progress(None, None, about, seed, len(dataset))
    counter.step = steps
    _fit(ranker, dataset, epochs, counter, callbacks, verbose)
    history = _history(ranker, about, counter, training, sequences, dataset, weights.report, time.perf_counter() - start)
    if out is not None:
        _write(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()})
    return ranker, history


def _fit(ranker: models.RankingModel, dataset: Any, epochs: int, counter: Progress, callbacks: Any, verbose: bool) -> None:
    # If `fit` has something to build, it reads one batch first, two for JAX on an accelerator. The rest of a resumed epoch may have no
    # more batches than that, so everything is built here.
    if keras.backend.backend() == "tensorflow" or (counter.batch and len(dataset) - counter.batch <= 2):
        build_for(ranker, dataset[0])
    settings: dict[str, Any] = {"shuffle": False, "verbose": 1 if verbose else 0, "callbacks": [counter, *callbacks]}
    if counter.batch:  # in the middle of an epoch
        ranker.fit(Rest(dataset, counter.batch), initial_epoch=counter.epoch, epochs=counter.epoch + 1, **settings)
    if counter.epoch < epochs:
        ranker.fit(dataset, initial_epoch=counter.epoch, epochs=epochs, **settings)


def _started(callbacks: Any) -> dict[str, str]:
    """Digests of the factors from which tables start, by column."""
    return {column: digest for one in callbacks if isinstance(one, StartTables) for column, digest in one.digests.items()}


def _plain(values: Any) -> Any:
    """The values after a round trip through JSON: lists for tuples and ranges, plain numbers for numpy's."""
    return json.loads(json.dumps(values, default=lambda value: value.tolist() if hasattr(value, "tolist") else list(value)))


def _history(
    ranker: models.RankingModel,
    about: Mapping[str, Any],
    counter: Progress,
    training: TrainingOptions,
    sequences: Sequences,
    dataset: PackedDataset | PackedRequests,
    report: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    checks = sequences.report
    return {
        **{name: about[name] for name in ("model", "log", "seed", "backend")},
        "log_seed": about.get("log_seed", about["seed"]),
        "epochs": counter.epochs,
        "seconds": seconds,
        "train_events": int(sequences.target.sum()),
        "preset": about.get("preset"),
        "left_out": {
            reason: {"rows": rows, "first": checks.examples[reason], "places": checks.places[reason][:100].tolist()}
            for reason, rows in checks.dropped.items()
        },
        "reordered": checks.reordered,
        "data_span": _span(ranker.schema, sequences),
        "parameters": int(ranker.count_params()),
        "packing_efficiency": filled(dataset),
        "propensities": dict(report),
        "training": asdict(training),
        "arguments": ranker.arguments,
        **{name: about["fingerprint"][name] for name in ("started_tables",) if name in about["fingerprint"]},
    }


def _span(schema: Schema, sequences: Sequences) -> dict[str, list[str]]:
    """First and last time, UTC, of the target events and of all events read."""
    times = {"learned": sequences.time[sequences.target], "read": sequences.time}
    return {
        name: [datetime.fromtimestamp(schema.epoch + int(at), UTC).isoformat() for at in (found.min(), found.max())]
        for name, found in times.items()
    }


def _write(folder: Path, ranker: models.RankingModel, history: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(history, indent=2) + "\n"
    write_whole(
        {
            folder / "model.keras": ranker.save,
            folder / "schema.json": ranker.schema.save,
            folder / "history.json": lambda path: path.write_text(text, encoding="utf-8"),
            folder / FILE: checkpoint_writer(ranker, about),
        }
    )
