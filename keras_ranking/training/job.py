"""One training on a log in memory, from checked options to a folder: what `train` and `transfer` have in common."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from keras_ranking.training.checkpoint import FILE, fingerprint
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.options import Settings, TrainingOptions
from keras_ranking.training.progress import Progress, Rest
from keras_ranking.training.recipe import Recipe, as_plain
from keras_ranking.training.record import history_of, write_folder
from keras_ranking.training.reporting import tell_counts, tell_rows, tell_start
from keras_ranking.training.resumption import Beginning, made_with, path_of
from keras_ranking.training.setup import build_for, compile_for, delays_for, training_data, weights_for
from keras_ranking.training.validation import Validation, validation_rows


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
    ranker.utility = recipe.utility
    weights = weights_for(sequences, training, events, schema, ranker.tasks)
    delays = delays_for(events, training, rows)
    named = {"model": job.model, "seed": given.seed, "backend": keras.backend.backend()}
    data = fingerprint(sequences, weights.by_task, delays)
    made = made_with(ranker, named, data, training, recipe, callbacks)
    if job.begin is not None:
        made |= job.begin(ranker)
    about: dict[str, Any] = {
        **named,
        "options": as_plain(dict(given.options or {})),
        "epochs": given.epochs,
        "checkpoint_every": recipe.checkpoint_every,
        "log": log.name,
        "log_seed": given.seed,
        "preset": log.preset,
        "on_error": on_error,
        **job.about,
        "fingerprint": made,
    }
    plan.agree(made)
    beginning = Beginning.of(given, made)
    average, validation = beginning.average(recipe), None
    if held is not None:
        validation = Validation(ranker, log, held, recipe, on_error, beginning.progress, beginning.best, average)
        callbacks = checked_callbacks(callbacks, recipe.rate, validation.names)
    dataset, window = training_data(ranker, sequences, training, given.seed, weights.by_task, delays, epoch=beginning.epoch)
    compiled = partial(compile_for, training=training, steps=len(dataset) * training.epochs, window=window, recipe=recipe)
    compiled(ranker)
    tell_start(ranker, sequences, dataset, weights.report, plan.start(ranker, dataset), given.verbose)
    beginning.restore(ranker)
    start, path = time.perf_counter(), path_of(given, FILE)
    counter = Progress(path, recipe.checkpoint_every, about, given.seed, len(dataset), beginning.progress, validation, average)
    fit(ranker, dataset, training.epochs, counter, callbacks, given.verbose)
    ranker = plan.finished(ranker, partial(job.build, schema), compiled)
    ranker.utility = recipe.utility
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
