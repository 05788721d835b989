"""One training on a log in memory, from checked options to a folder: what `train` and `transfer` have in common."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.data import Log
from keras_ranking.data.counted import counted_log
from keras_ranking.data.readers.log import HISTORY
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.schema import Schema
from keras_ranking.training.agreement import checked_callbacks
from keras_ranking.training.checkpoint import FILE, best_of, check_same, fingerprint, read_checkpoint, restore
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.options import NEWER, TrainingOptions
from keras_ranking.training.progress import Progress, Rest
from keras_ranking.training.recipe import Recipe, as_plain
from keras_ranking.training.record import history_of, write_folder
from keras_ranking.training.reporting import tell_counts, tell_rows, tell_start
from keras_ranking.training.setup import build_for, compile_for, delays_for, training_data, weights_for
from keras_ranking.training.start_tables import StartTables
from keras_ranking.training.streaming.run import Settings
from keras_ranking.training.validation import Validation, validation_rows
from keras_ranking.training.weight_average import WeightAverage, averages_of


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        model: name of the architecture.
        build: makes the model of a fitted schema; which of its weights are trained is set.
        training, recipe: the options.
        schema: of the log. Constants that it has are kept, and the others fitted on the training rows.
        begin: sets the first weights of the model, and returns what the checkpoint says of them, so that a training is resumed from the
            same ones; None: random weights.
        about: further entries of the checkpoint.
    """

    model: str
    build: Callable[[Schema], models.RankingModel]
    training: TrainingOptions
    recipe: Recipe
    schema: Schema
    begin: Callable[[models.RankingModel], dict[str, Any]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def run_job(log: Log, job: Job, given: Settings, on_error: str = "raise") -> tuple[models.RankingModel, dict[str, Any]]:
    """Train on the `train` rows of a log.

    Args:
        log: the log.
        job: what is trained.
        given: the other arguments of `train`.
        on_error: as `train`.

    Returns:
        The model, and the content of `history.json`.

    Raises:
        ValueError: as `train`.
    """
    plan, training, recipe, out, callbacks = active(), job.training, job.recipe, given.out, given.callbacks
    if recipe.validation is None:
        callbacks = checked_callbacks(callbacks, recipe.rate)
    log.is_split("train")
    log = counted_log(log, on_error=on_error, schema=job.schema)
    held = validation_rows(log, recipe.validation)
    kept = log.events["split"].isin(["train", HISTORY]).to_numpy() & (True if held is None else ~held)
    learned = (log.events["split"][kept] == "train").to_numpy()
    keras.utils.set_random_seed(given.seed)
    sequences = checked_sequences(
        log.events[kept],
        job.schema,
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
    if given.verbose:
        tell_counts(log)
    tell_rows(sequences, given.verbose)
    ranker = job.build(schema)
    weights = weights_for(sequences, training, events, schema, ranker.tasks)
    delays = delays_for(events, training, rows)
    named = {"model": job.model, "seed": given.seed, "backend": keras.backend.backend()}
    made_with = {**named, "data": fingerprint(sequences, weights.by_task, delays)}
    settings = {name: value for name, value in asdict(training).items() if name not in NEWER or value is not None}
    made_with |= {"training": as_plain(settings), "arguments": as_plain(ranker.arguments)}
    if started := _started(callbacks):
        made_with["started_tables"] = started
    if chosen := recipe.plain():
        made_with["recipe"] = chosen
    if job.begin is not None:
        made_with |= job.begin(ranker)
    about: dict[str, Any] = {
        **named,
        "options": as_plain(dict(given.options or {})),
        **{name: getattr(given, name) for name in ("epochs", "checkpoint_every")},
        "log": log.name,
        "log_seed": given.seed,
        "preset": log.preset,
        "on_error": on_error,
        **job.about,
        "fingerprint": made_with,
    }
    plan.agree(made_with)
    stopped = None
    if given.resume and out is not None:
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
    dataset, window = training_data(ranker, sequences, training, given.seed, weights.by_task, delays, epoch=first)
    compiled = partial(compile_for, training=training, steps=len(dataset) * training.epochs, window=window, recipe=recipe)
    compiled(ranker)
    tell_start(ranker, sequences, dataset, weights.report, plan.start(ranker, dataset), given.verbose)
    if stopped is not None:
        restore(stopped, ranker)
    start = time.perf_counter()
    path = None if out is None else Path(out) / FILE
    counter = Progress(path, given.checkpoint_every, about, given.seed, len(dataset), progress, validation, average)
    fit(ranker, dataset, training.epochs, counter, callbacks, given.verbose)
    ranker = plan.finished(ranker, partial(job.build, schema), compiled)
    history = history_of(ranker, about, counter, training, sequences, dataset, weights.report, time.perf_counter() - start, log.counts)
    if out is not None:
        write_folder(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()}, log.counts)
    return ranker, history


def fit(ranker: models.RankingModel, dataset: Any, epochs: int, counter: Progress, callbacks: Any, verbose: bool) -> None:
    """Run the epochs that are left, with validation and checkpoints."""
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


def digest(weights: list[np.ndarray]) -> str:
    """A digest of weights."""
    found = hashlib.blake2b(digest_size=16)
    for weight in weights:
        found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()
