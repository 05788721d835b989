"""Training on a sharded log, and the daily step of such a training, as `train` and `warm_start` do them on a log in memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.columns import Number
from keras_ranking.configuration import is_integer
from keras_ranking.data import ShardedLog
from keras_ranking.data.shards.log import TRAINING, Chosen
from keras_ranking.number_edges import checked_edges, quantile_edges
from keras_ranking.schema import Schema
from keras_ranking.training.agreement import check_built_alike, checked_callbacks
from keras_ranking.training.checkpoint import FILE, read_checkpoint, restore, set_weights
from keras_ranking.training.distribution.choice import plan_for
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.members import member_folders, train_members, warm_start_members
from keras_ranking.training.options import MODELS, Settings, TrainingOptions, model_name, split_options
from keras_ranking.training.presets import preset_of, preset_options
from keras_ranking.training.progress import Progress
from keras_ranking.training.recipe import Recipe, as_plain, rate_of_step, split_recipe
from keras_ranking.training.record import history_with, read_of, stamps, write_folder
from keras_ranking.training.reporting import tell_preset, tell_sessions, tell_tables
from keras_ranking.training.resumption import Beginning, made_with, path_of, weights_digest
from keras_ranking.training.scoring.pairs import plain
from keras_ranking.training.setup import compile_for
from keras_ranking.training.streaming.data import Facts, StreamedData, Weigher, logged_delays
from keras_ranking.training.streaming.evaluate import StreamedValidation, check_encoding, validation_of

Fit = Callable[[models.RankingModel, Any, int, Progress, Any, bool], None]
_CONTINUED = ("optimizer", "schedule", "metrics")  # of the recipe, in a daily step


def train_on_shards(log: ShardedLog, model: Any, given: Settings, fit: Fit) -> tuple[models.RankingModel, dict[str, Any]]:
    """`train` of a sharded log; its arguments are checked.

    Args:
        log: the shards.
        model: as in `train`.
        given: the other arguments.
        fit: runs the epochs.

    Raises:
        ValueError: as `train`.
    """
    model, seed, out = model_name(model), given.seed, given.out
    options, preset = preset_of(given.options or {}, log.preset, log.schema)
    rest, recipe = split_recipe(options, preset_options(model, preset))
    recipe.require_out(out)
    if recipe.ensemble > 1:
        one = partial(_member, log, model, replace(given, options={**(given.options or {}), "ensemble": 1}), fit)
        return train_members(one, recipe.ensemble, seed, out, given.resume, verbose=given.verbose)
    if given.distribution is not None:
        with plan_for(given.distribution).scope() as plan:
            return train_on_shards(log, model, replace(given, distribution=None, verbose=given.verbose and plan.writes), fit)
    plan = active()
    plan.check(recipe)
    callbacks = checked_callbacks(given.callbacks, recipe.rate) if recipe.validation is None else given.callbacks
    model_options, training = split_options(model, rest, preset)
    training = training if given.epochs is None else replace(training, epochs=given.epochs)
    chosen, held = validation_of(log, recipe.validation)
    schema = binned_schema(log, chosen, training)
    source = None if recipe.init_from is None else models.load(recipe.init_from)
    if source is not None:
        check_encoding(log, source.schema, f"'{recipe.init_from}'")
        schema = source.schema
    if given.verbose:
        tell_preset(model, preset, options)
    keras.utils.set_random_seed(seed)
    ranker = MODELS[model](schema, **model_options)
    ranker.utility = recipe.utility
    facts = Facts.of(log, chosen, ranker)
    weigher = Weigher(log, chosen, training, ranker.tasks, facts.learned[1])
    delays = logged_delays(log, chosen, training.delay_column)
    named = {"model": model, "seed": seed, "backend": keras.backend.backend()}
    data = hashlib.blake2b(f"{log.digest} {schema.digest} {chosen}".encode(), digest_size=16).hexdigest()
    made = made_with(ranker, named, data, training, recipe, callbacks)
    if source is not None:
        check_built_alike(ranker, source, str(recipe.init_from))
        set_weights(source.get_weights(), ranker)
        made["started_weights"] = weights_digest(source.get_weights())
    about: dict[str, Any] = {
        **named,
        "epochs": given.epochs,
        "checkpoint_every": recipe.checkpoint_every,
        "options": as_plain(dict(given.options or {})),
        "log": log.name,
        "log_seed": seed,
        "preset": preset,
        "on_error": log.manifest["on_error"],
        "shards": log.shards,
        "fingerprint": made,
    }
    plan.agree(made)
    beginning = Beginning.of(given, made)
    average, validation = beginning.average(recipe), None
    if held is not None:
        validation = StreamedValidation(ranker, log, held, recipe, beginning.progress, beginning.best, average)
        callbacks = checked_callbacks(callbacks, recipe.rate, validation.names)
    streamed = StreamedData(ranker, log, chosen, facts, training, seed, weigher, delays, beginning.epoch)
    steps = len(streamed.dataset)
    if given.verbose:
        print(described(ranker, streamed), flush=True)
        tell_sessions(ranker, log.all_sequences(chosen, columns=()))
    compiled = partial(compile_for, training=training, steps=steps * training.epochs, window=streamed.window, recipe=recipe)
    compiled(ranker)
    _tell_devices(ranker, plan.start(ranker, streamed.dataset), given.verbose)
    beginning.restore(ranker)
    start = time.perf_counter()
    counter = Progress(path_of(given, FILE), recipe.checkpoint_every, about, seed, steps, beginning.progress, validation, average)
    fit(ranker, streamed.dataset, training.epochs, counter, callbacks, given.verbose)
    ranker = plan.finished(ranker, lambda: MODELS[model](schema, **model_options), compiled)
    ranker.utility = recipe.utility
    return ranker, _recorded(ranker, streamed, about, counter, time.perf_counter() - start, out)


def warm_start_on_shards(
    log: ShardedLog, folder: str | Path, new: Any, epochs: int, given: Settings, fit: Fit
) -> tuple[models.RankingModel, dict[str, Any]]:
    """`warm_start` of a sharded log.

    Args:
        log: the shards, encoded with the model's schema.
        folder: of the finished training.
        new: Unix time of the first new event among the training rows, or the split of the new events.
        epochs: passes over the new events.
        given: `out`, `seed` (a negative one: the default of `warm_start`), `verbose`, `callbacks`, `distribution`, `learning_rate`.
        fit: runs the epochs.

    Raises:
        ValueError: as `warm_start`.
    """
    if member_folders(folder):
        step = partial(_member_step, log, new, epochs, given, fit)
        return warm_start_members(step, folder, given.out)
    if given.distribution is not None:
        with plan_for(given.distribution).scope() as plan:
            step_of = replace(given, distribution=None, verbose=given.verbose and plan.writes)
            return warm_start_on_shards(log, folder, new, epochs, step_of, fit)
    plan = active()
    checkpoint = read_checkpoint(folder)
    stored = checkpoint.about["fingerprint"].get("recipe", {})
    recipe = Recipe(**{name: stored[name] for name in _CONTINUED if name in stored})
    callbacks = checked_callbacks(given.callbacks, recipe.rate)
    if not checkpoint.about["finished"]:
        raise ValueError(f"the training in '{folder}' is not finished: resume it first (`train(..., resume=True)`).")
    ranker = models.load(folder)
    check_encoding(log, ranker.schema, f"'{folder}'")
    chosen = _of_new(log, new)
    before = checkpoint.about
    steps = before["progress"]["step"]
    seed = before["seed"] + steps if given.seed < 0 else given.seed
    keras.utils.set_random_seed(seed % 2**32)
    training = TrainingOptions(**{**before["fingerprint"]["training"], "epochs": epochs})
    learning_rate, share = rate_of_step(given.learning_rate, before, training.learning_rate, recipe)
    facts = Facts.of(log, chosen, ranker)
    if not facts.targets:
        raise ValueError(f"`new` must choose at least one event. Received: new={new!r}")
    log_seed = before.get("log_seed", before["seed"])
    about = {**before, "log": log.name, "log_seed": log_seed, "seed": seed, "backend": keras.backend.backend()}
    about |= {"on_error": log.manifest["on_error"], "warm": before.get("warm", 0) + 1, "learning_rate": learning_rate}
    # One day may be too small for an estimate of propensities: earlier training rows are included.
    estimated = replace(chosen, since=None, target=tuple(dict.fromkeys(["train", *(chosen.target or ())])))
    weigher = Weigher(log, estimated, training, ranker.tasks, facts.learned[1])
    delays = logged_delays(log, chosen, training.delay_column)
    streamed = StreamedData(ranker, log, chosen, facts, training, seed, weigher, delays)
    if given.verbose:
        print(described(ranker, streamed), flush=True)
    length = len(streamed.dataset) * epochs
    compiled = partial(compile_for, training=training, steps=length, window=streamed.window, recipe=recipe, made=steps, share=share)
    compiled(ranker)
    _tell_devices(ranker, plan.start(ranker, streamed.dataset), given.verbose)
    restore(checkpoint, ranker, weights=False, rates=share is None)
    start = time.perf_counter()
    counter = Progress(None, None, about, seed, len(streamed.dataset))
    counter.step = steps
    fit(ranker, streamed.dataset, epochs, counter, callbacks, given.verbose)
    ranker = plan.finished(ranker, partial(models.load, folder), compiled)
    return ranker, _recorded(ranker, streamed, about, counter, time.perf_counter() - start, given.out)


def _member(log: ShardedLog, model: str, given: Settings, fit: Fit, out: Any, seed: int, resume: bool, verbose: bool) -> Any:
    return train_on_shards(log, model, replace(given, out=out, seed=seed, resume=resume, verbose=verbose), fit)


def _member_step(log: ShardedLog, new: Any, epochs: int, given: Settings, fit: Fit, folder: Any, out: Any) -> Any:
    return warm_start_on_shards(log, folder, new, epochs, replace(given, out=out), fit)


def _of_new(log: ShardedLog, new: Any) -> Chosen:
    if isinstance(new, str):
        log.require_split(new)
        return replace(TRAINING, target=(new,))
    if not is_integer(new):
        raise ValueError(
            "`new` must be the Unix time of the first new event, or the split of the new events, where the log is in shards. "
            f"Received: {type(new).__name__}"
        )
    return replace(TRAINING, since=int(new) - log.schema.epoch)


def binned_schema(log: ShardedLog, chosen: Chosen, training: TrainingOptions) -> Schema:
    """The schema of a model: with bins of `number_bins`, whose edges are quantiles of the encoded values that are trained on."""
    schema = log.schema if training.number_bins is None else log.schema.binned(training.number_bins)

    def binned(column: Any) -> Any:
        if not isinstance(column, Number) or column.bins is None or column.edges is not None:
            return column
        parts = [each.columns[column.name][each.target] for each in log.all_sequences(chosen, columns=[column.name])]
        edges = quantile_edges(np.concatenate(parts), column.bins)
        return column.model_copy(update={"edges": checked_edges(edges, f"edges of column '{column.name}'")})

    return schema.model_copy(update={"features": tuple(map(binned, schema.features)), "actions": tuple(map(binned, schema.actions))})


def _recorded(
    ranker: models.RankingModel, streamed: StreamedData, about: Mapping[str, Any], counter: Progress, seconds: float, out: str | Path | None
) -> dict[str, Any]:
    facts, schema = streamed.facts, ranker.schema
    span = {"learned": stamps(schema, *facts.learned), "read": stamps(schema, *facts.read)}
    read = read_of(streamed.log.report, facts.targets, span, streamed.efficiency)
    read["pairs"] = plain(streamed.pairs())
    history = history_with(ranker, about, counter, streamed.training, read, streamed.weigher.report, seconds)
    history["shards"] = {"folder": str(streamed.log.folder), "number": streamed.log.shards, "digest": streamed.log.digest}
    if out is not None:
        write_folder(Path(out), ranker, history, {**about, "finished": True, "progress": counter.state()})
    return history


def described(ranker: models.RankingModel, streamed: StreamedData) -> str:
    """One line: model, data, and what was left out or clipped."""
    facts, report = streamed.facts, streamed.weigher.report
    weighed = "".join(f"; inverse propensities of {task}: {r['clipped']:,} of {r['of']:,} clipped" for task, r in report.items())
    return (
        f"{ranker.name}: {ranker.count_params():,} parameters; {facts.events:,} events of {facts.members:,} members "
        f"in {streamed.log.shards} shards, {facts.targets:,} target events; {streamed.rows:,} rows, {streamed.efficiency:.1%} filled"
        + (f"; {streamed.skipped} pieces without a target left out" if streamed.skipped else "")
        + weighed
    )


def _tell_devices(ranker: models.RankingModel, devices: str | None, verbose: bool) -> None:
    if verbose and devices is not None:
        print(devices, flush=True)
    if verbose:
        tell_tables(ranker)
