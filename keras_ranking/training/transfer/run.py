"""transfer: a trained model is trained on another surface."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from keras_ranking import models
from keras_ranking.columns import SemanticId
from keras_ranking.data import Log, ShardedLog
from keras_ranking.data.readers.log import as_log, log_of
from keras_ranking.models.wiring import WITH_HEADS, freeze_parts, inner
from keras_ranking.schema import Schema
from keras_ranking.training.checkpoint import FILE, read_checkpoint
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.job import Job, run_job
from keras_ranking.training.options import MODELS, Settings, TrainingOptions, model_name, split_options
from keras_ranking.training.recipe import Recipe, as_plain, split_recipe
from keras_ranking.training.resumption import weights_digest
from keras_ranking.training.transfer.columns import arguments_for, schema_for
from keras_ranking.training.transfer.options import TRUNK_SHARE, WAYS, Transfer, split_transfer
from keras_ranking.training.transfer.weights import carry, trained_paths
from keras_ranking.values import require_kind

FIRST = "heads"  # folder of the first part of 'heads-then-all' in that of the whole


def transfer(
    log: Log | ShardedLog | pd.DataFrame,
    source: str | Path | models.RankingModel,
    out: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    train: str = "heads",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
    resume: bool = False,
    callbacks: Any = (),
    on_error: str = "raise",
    schema: Schema | None = None,
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a trained model on another surface: its trunk is kept, and heads for the tasks there are made.

    The trunk is all that lies below the layers of tasks: tables, history, blocks, cross nets, normalisations. It keeps its weights, and
    the constants by which its numbers are read (means, deviations, edges, words), so that it reads a value as it was trained to. What the
    log has in addition is fitted on the log:

    * words of a vocabulary that the source does not know get rows of their own, which begin as the mean of the others;
    * an `Id` or a hashed `Category` with 1 + k (buckets - 1) buckets in the log's schema grows: each id begins with the row that it had;
    * roles, tasks and the feedback delay are those of the log.

    A member's rows of the first surface may stand in the log as rows of split 'history'.

    Args:
        log: rows of the new surface, with the columns that the source reads. Its `train` rows are learned from. A DataFrame is cut as
            `train` does.
        source: folder that `train`, `warm_start` or `transfer` wrote, a `.keras` file, or a model.
        out: folder to write, as `train` does; None: nothing is written.
        tasks: of the log's schema; None: all.
        train: 'heads': the trunk is frozen, and keeps its weights and moving statistics to the bit. 'all': the trunk is trained too, at
            `trunk_learning_rate`, a tenth of `learning_rate` where it is not given (our choice). 'heads-then-all': first the heads for
            `heads_epochs`, in `out/heads`, then all.
        seed: of heads, shuffling and dropout.
        options: fields of `Transfer`, `TrainingOptions` and `Recipe`, and arguments of the builder that concern the heads, such as
            `tower_hidden`, by name. Where none are given, those of training are the source's, and those of the recipe the defaults.
        verbose, callbacks, on_error: as `train`.
        resume: resume from the checkpoint in `out`, as `train` does; in 'heads-then-all' from that of the part which was interrupted.
        schema: of a DataFrame. None: that of the source.

    Returns:
        The model, and the content of `history.json`, with what was kept, grown, new and frozen as `transfer`. The folder is like one of
        `train`: it is evaluated, exported, checked for skew, and trained on by `warm_start`. A model whose trunk is frozen is saved so.

    Raises:
        TypeError: `log` is not a `Log`.
        ValueError: a column that the source reads and the log lacks, or that is another one there, naming all of them; options that change
            the trunk; an ensemble, a model with a forest, or one in int8 as the source; otherwise as `train`.
        NotImplementedError: a `ShardedLog`.
        FileNotFoundError: as `train`.

    Example:
        >>> feed = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours", "topic"), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> source, _ = kr.training.train(feed, "lirank", epochs=1, options={**options, "tasks": ["click"]}, verbose=False)
        >>> other = kr.data.simulate(members=20, days=2, seed=1)
        >>> model, history = kr.training.transfer(other, source, tasks=["like"], options={"epochs": 1}, verbose=False)
        >>> model.tasks, all(history["transfer"]["frozen"])
        (['like'], True)
        >>> same = [np.array_equal(a, b) for a, b in zip(source.get_layer("ids").get_weights(), model.get_layer("ids").get_weights())]
        >>> all(same)
        True
    """
    if isinstance(log, ShardedLog):
        raise NotImplementedError("`transfer` reads a log in memory: `keras_ranking.data.open_log` reads one. Received: a ShardedLog")
    if schema is not None or not isinstance(log, pd.DataFrame):
        log = log_of(log, schema, verbose)
    require_kind(options or {}, Mapping, "options", "a mapping of names to values")
    _check(train, out, resume)
    rest, choices = split_transfer(options or {})
    if choices.heads_epochs is not None and train != "heads-then-all":
        raise ValueError(f"`heads_epochs` has no effect without train='heads-then-all'. Received: train={train!r}")
    model = source if isinstance(source, models.RankingModel) else models.load(source)
    _check_source(model)
    log = as_log(log, model.schema, verbose=verbose)
    name = model_name(MODELS[model_name(model.get_config()["builder"])])
    rest, recipe = split_recipe(rest)
    _check_recipe(recipe)
    recipe.require_out(out)
    active().check(recipe)
    given, training = chosen_options(name, model, source, rest, recipe, train)
    found = schema_for(model, log.schema, tasks, choices.columns)
    _check_tables(found, choices)
    arguments = arguments_for(model, found, choices.columns, given)
    call = {"source": str(source) if not isinstance(source, models.RankingModel) else None, "tasks": arguments["tasks"], "train": train}
    about = {"transfer": call}
    settings = Settings(out, seed, None, options, verbose, resume, callbacks)
    if train != "heads-then-all":
        job = _job(name, model, arguments, training, recipe, found, choices, train, about)
        return run_job(log, job, settings, on_error)
    first = None if out is None else Path(out) / FIRST
    one = replace(training, trunk_learning_rate=None, epochs=choices.heads_epochs or training.epochs)
    job = _job(name, model, arguments, one, recipe, found, choices, "heads", about)
    model, learned = _first_part(log, job, replace(settings, out=first), on_error)
    choices = Transfer(heads="kept", new_tables=())
    job = _job(name, model, model.arguments, training, recipe, model.schema, choices, "all", about)
    begun = resume and out is not None and (Path(out) / FILE).is_file()
    ranker, history = run_job(log, job, replace(settings, resume=begun), on_error)
    return ranker, {**history, "heads": {name: learned[name] for name in ("epochs", "seconds", "transfer")}}


def about_of(folder: str | Path) -> dict[str, Any]:
    """What the checkpoint of a training says; of a 'heads-then-all' in its first part, what that of the part says.

    Raises:
        FileNotFoundError: no checkpoint.
    """
    if not (Path(folder) / FILE).is_file() and (Path(folder) / FIRST / FILE).is_file():
        return {**read_checkpoint(Path(folder) / FIRST).about, "finished": False}
    return read_checkpoint(folder).about


def _first_part(log: Log, job: Job, given: Settings, on_error: str) -> tuple[models.RankingModel, dict[str, Any]]:
    """The heads alone; a part that is finished is read, where a training is resumed."""
    folder = None if given.out is None else Path(given.out)
    begun = given.resume and folder is not None and (folder / FILE).is_file()
    if given.resume and not begun and folder is not None and (folder.parent / FILE).is_file():
        raise ValueError(f"the training in '{folder.parent}' has no part '{FIRST}', and cannot be resumed as 'heads-then-all'.")
    if begun and folder is not None and read_checkpoint(folder).about["finished"]:
        return models.load(folder), json.loads((folder / "history.json").read_text(encoding="utf-8"))
    if folder is not None and not given.resume:
        (folder.parent / FILE).unlink(missing_ok=True)  # of an earlier training: that one is not to be resumed
    if given.verbose:
        print("heads alone", flush=True)
    try:
        made = run_job(log, job, replace(given, resume=begun), on_error)
    except KeyboardInterrupt:
        if folder is not None:
            print(f"this was the part '{FIRST}'; to go on with both: the same with out={str(folder.parent)!r}", file=sys.stderr, flush=True)
        raise
    if given.verbose:
        print("all, the trunk at a lower rate", flush=True)
    return made


def _job(
    name: str,
    source: models.RankingModel,
    arguments: Mapping[str, Any],
    training: TrainingOptions,
    recipe: Recipe,
    schema: Schema,
    choices: Transfer,
    train: str,
    about: Mapping[str, Any],
) -> Job:
    def build(fitted: Schema) -> models.RankingModel:
        ranker = MODELS[name](fitted, **arguments)
        if train == "heads":
            _freeze_but(ranker, trained_paths(ranker, choices.new_tables))
        return ranker

    def begin(ranker: models.RankingModel) -> dict[str, Any]:
        carried = carry(ranker, source, choices.columns, choices.new_tables, choices.heads)
        frozen = ranker.get_config().get("frozen", [])
        found = {
            "source": weights_digest(source.get_weights()),
            "train": train,
            **as_plain(asdict(choices)),
            **carried.plain(),
            "frozen": frozen,
        }
        return {"transfer": found}

    return Job(name, build, training, recipe, schema, begin, about)


def _freeze_but(ranker: models.RankingModel, trained: set[str]) -> None:
    """Freeze all layers with weights but some, given by path."""

    def paths(layers: Any, above: str = "") -> list[str]:
        found = []
        for layer in layers:
            path = f"{above}{layer.name}"
            if path in trained or not layer.weights:
                continue
            holds = any(other.startswith(f"{path}/") for other in trained)
            found += paths(inner(layer), f"{path}/") if holds else [path]
        return found

    list(freeze_parts(ranker.layers, paths(ranker.layers)))


def _check(train: str, out: Any, resume: bool) -> None:
    if train not in WAYS:
        raise ValueError(f"`train` must be one of {WAYS}. Received: train={train!r}")
    if resume and out is None:
        raise ValueError("`resume` needs `out`, the folder of the training to resume. Received: out=None")


def _check_source(source: models.RankingModel) -> None:
    builder = source.get_config()["builder"]
    if builder not in WITH_HEADS or source.quantized:
        kind = "a model with int8 tables" if source.quantized else f"a model made by {builder}"
        raise ValueError(f"`source` must be a trained {', '.join(WITH_HEADS[:-1])} or {WITH_HEADS[-1]}. Received: {kind}")


def _check_recipe(recipe: Recipe) -> None:
    for option, default in (("init_from", None), ("ensemble", 1)):
        if getattr(recipe, option) != default:
            raise ValueError(f"`{option}` does not go with a transfer. Received: {option}={getattr(recipe, option)!r}")


def _check_tables(schema: Schema, choices: Transfer) -> None:
    tables = [column.name for column in schema.features if column.dtype == "int32" and not isinstance(column, SemanticId)]
    if unknown := [name for name in choices.new_tables if name not in tables]:
        raise ValueError(f"`new_tables` must name ids or categories of the log, of {tables}. Received: {unknown}")


def chosen_options(
    name: str, model: models.RankingModel, source: Any, rest: Mapping[str, Any], recipe: Recipe, train: str
) -> tuple[dict[str, Any], TrainingOptions]:
    """Arguments of the builder that are chosen, and the options of training: those of the source, and what is chosen."""
    if "tasks" in rest:
        raise ValueError(f"`tasks` is an argument of `transfer`, and no option. Received: tasks={rest['tasks']!r}")
    if "number_bins" in rest:
        raise ValueError(f"`number_bins` is that of the source, whose edges are kept. Received: number_bins={rest['number_bins']!r}")
    default = TrainingOptions()
    before = {} if isinstance(source, models.RankingModel) else _training_of(Path(source))
    known = {one.name for one in fields(TrainingOptions)} - {"number_bins", "trunk_learning_rate"}
    before = {option: value for option, value in before.items() if option in known and value != as_plain(getattr(default, option))}
    given, training = split_options(name, {**before, **rest})
    if train == "heads":
        if training.trunk_learning_rate is not None:
            raise ValueError("`trunk_learning_rate` has no effect with train='heads', which freezes the trunk.")
    elif training.trunk_learning_rate is None and isinstance(recipe.optimizer, str) and isinstance(recipe.schedule, str):
        training = replace(training, trunk_learning_rate=TRUNK_SHARE * training.learning_rate)
    return given, training


def _training_of(folder: Path) -> dict[str, Any]:
    """The options of training that a folder was made with; none of a file."""
    if not (folder / FILE).is_file():
        return {}
    found: dict[str, Any] = read_checkpoint(folder).about["fingerprint"]["training"]
    return found
