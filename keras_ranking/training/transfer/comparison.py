"""What a transfer gives: the source as it is, a model from scratch, the heads alone, all weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.columns import Task
from keras_ranking.data import Log
from keras_ranking.data.counted import counted_log
from keras_ranking.data.readers.log import as_log, log_of
from keras_ranking.schema import Schema
from keras_ranking.training.options import MODELS, model_name
from keras_ranking.training.recipe import split_recipe
from keras_ranking.training.run import train
from keras_ranking.training.streaming.evaluate import evaluate
from keras_ranking.training.transfer.columns import arguments_for, schema_for
from keras_ranking.training.transfer.options import WAYS, split_transfer
from keras_ranking.training.transfer.run import chosen_options, transfer
from keras_ranking.training.transfer.weights import carry

AS_IT_IS, SCRATCH = "source", "scratch"
ALL_WAYS = (AS_IT_IS, SCRATCH, *WAYS)
_SHOWN = ("auc", "impression_auc", "log_loss")


@dataclass(frozen=True)
class TransferReport:
    """Metrics of each way, task and seed on rows that none of them was trained on.

    Attributes:
        rows: a frame with `way`, `task`, `seed`, `scored_by` (the source's task whose head the source was scored by) and the metrics of
            `evaluate`.
        split: rows that were scored.

    Example:
        >>> rows = pd.DataFrame({"way": ["scratch", "heads"], "task": "like", "seed": 0, "auc": [0.5, 0.6]})
        >>> print(kr.training.TransferReport(rows, "validation").table(("auc",)))
        task  way      seeds  auc
        like  scratch  1      0.5000
        like  heads    1      0.6000 (+0.1000)
    """

    rows: pd.DataFrame
    split: str

    def summary(self, metric: str = "auc") -> pd.DataFrame:
        """Of a metric, by task and way: the number of seeds, mean and standard deviation over them; the mean difference from scratch at
        equal seeds, and its standard error.

        Raises:
            ValueError: a metric that the report does not have.
        """
        if metric not in self.rows:
            raise ValueError(f"`metric` must be one of {[*self.rows.columns[4:]]}. Received: metric={metric!r}")
        found = []
        tasks, ways = self.rows["task"].unique(), self.rows["way"].unique()
        for task, way in ((task, way) for task in tasks for way in ways):
            part = self.rows[(self.rows["task"] == task) & (self.rows["way"] == way)]
            values = part.set_index("seed")[metric].astype(float)
            base = self.rows[(self.rows["task"] == task) & (self.rows["way"] == SCRATCH)].set_index("seed")[metric].astype(float)
            # The source has no seed: it is compared with each.
            away = (values.iloc[0] - base if way == AS_IT_IS else values - base).dropna()
            error = float(away.std(ddof=1) / math.sqrt(len(away))) if len(away) > 1 else math.nan
            spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            of_way = {"task": task, "way": way, "seeds": len(values), "mean": float(values.mean()), "deviation": spread}
            found.append({**of_way, "difference": float(away.mean()) if len(away) else math.nan, "error": error})
        return pd.DataFrame(found)

    def table(self, metrics: Sequence[str] = _SHOWN) -> str:
        """Text: the means by task and way, and in brackets the difference from scratch, with its standard error for several seeds."""
        parts = {metric: self.summary(metric) for metric in metrics}
        first = parts[metrics[0]]
        lines = [["task", "way", "seeds", *metrics]]
        for place in range(len(first)):
            cells = [str(first["task"][place]), str(first["way"][place]), str(first["seeds"][place])]
            for metric in metrics:
                mean, away, error = (float(parts[metric][name][place]) for name in ("mean", "difference", "error"))
                plus = "" if math.isnan(error) else f" ± {error:.4f}"
                cells.append(f"{mean:.4f}" + ("" if cells[1] == SCRATCH or math.isnan(away) else f" ({away:+.4f}{plus})"))
            lines.append(cells)
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)

    def save(self, path: str | Path) -> None:
        """Write the rows as JSON."""
        rows = [{name: _plain(value) for name, value in row.items()} for row in self.rows.to_dict("records")]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({"split": self.split, "rows": rows}, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def compare_transfer(
    log: Log | pd.DataFrame,
    source: str | Path | models.RankingModel,
    tasks: Sequence[str] | None = None,
    split: str = "validation",
    seeds: Sequence[int] = (0,),
    ways: Sequence[str] = (AS_IT_IS, SCRATCH, "heads", "all"),
    options: Mapping[str, Any] | None = None,
    made: Mapping[str, models.RankingModel] | None = None,
    verbose: bool = False,
    schema: Schema | None = None,
) -> TransferReport:
    """Compare what a transfer gives with what is had without one, on rows of the new surface that no model was trained on.

    * 'source': the source as it is, by the head of the task with the same name, or of its first one. Where it orders candidates well, no
      training is needed; its probabilities are those of the first surface.
    * 'scratch': the same architecture and options, random weights, constants of the new surface.
    * 'heads', 'all', 'heads-then-all': as `transfer`.

    Args:
        log, source, tasks: as `transfer`.
        split: rows of the metrics.
        seeds: each way but the first is trained once for each.
        ways: some of these, in this order.
        options: of `transfer`, for all ways alike; learning rates too.
        made: way -> model, where it is trained already with the first of the seeds.
        verbose: print the progress of each training.
        schema: of a DataFrame, as `transfer`.

    Returns:
        The report.

    Raises:
        ValueError: an unknown way, no seed, or as `transfer`.

    Example:
        >>> feed = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours", "topic"), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> source, _ = kr.training.train(feed, "lirank", epochs=1, options=options, verbose=False)
        >>> other = kr.data.simulate(members=20, days=2, seed=1)
        >>> report = kr.training.compare_transfer(other, source, ["click"], options={"epochs": 1})
        >>> report.summary("auc")["way"].tolist()
        ['source', 'scratch', 'heads', 'all']
    """
    if schema is not None or not isinstance(log, pd.DataFrame):
        log = log_of(log, schema, verbose)
    if unknown := [way for way in ways if way not in ALL_WAYS]:
        raise ValueError(f"`ways` must be of {ALL_WAYS}. Received: {unknown}")
    if not ways or not seeds:
        raise ValueError(f"`ways` and `seeds` must not be empty. Received: ways={list(ways)}, seeds={list(seeds)}")
    model = source if isinstance(source, models.RankingModel) else models.load(source)
    log = as_log(log, model.schema, verbose=verbose)
    log.is_split(split)
    names = [task.name for task in log.schema.tasks] if tasks is None else list(tasks)
    rows = []
    for way in ways:
        for place, seed in enumerate(seeds if way != AS_IT_IS else [None]):
            if verbose:
                print(way if seed is None else f"{way}, seed {seed}", flush=True)
            if seed is None:
                scored = _as_it_is(log, model, names, split, options or {})
            elif made is not None and way in made and not place:
                scored = {task: ("", found) for task, found in evaluate(made[way], log, split).items() if task in names}
            else:
                ranker = _trained(log, source, model, names, way, seed, options or {}, verbose)
                scored = {task: ("", found) for task, found in evaluate(ranker, log, split).items() if task in names}
            rows += [{"way": way, "task": task, "seed": seed, "scored_by": by, **found} for task, (by, found) in scored.items()]
    return TransferReport(pd.DataFrame(rows), split)


def _trained(
    log: Log, source: Any, model: models.RankingModel, tasks: list[str], way: str, seed: int, options: Mapping[str, Any], verbose: bool
) -> models.RankingModel:
    if way != SCRATCH:
        return transfer(log, source, None, tasks, way, seed, _of_way(options, way), verbose)[0]
    name = model_name(MODELS[model_name(model.get_config()["builder"])])
    rest, choices = split_transfer(options)
    rest, recipe = split_recipe({option: value for option, value in rest.items() if option != "trunk_learning_rate"})
    given, training = chosen_options(name, model, source, rest, recipe, "heads")
    schema = schema_for(model, log.schema, tasks, choices.columns)
    arguments = arguments_for(model, schema, choices.columns, given)
    settings = {option: getattr(training, option) for option in training.__dataclass_fields__}
    changed = {option: value for option, value in settings.items() if value != type(training).__dataclass_fields__[option].default}
    return train(replace(log, preset=None), name, None, seed, options={**arguments, **changed, **recipe.plain()}, verbose=verbose)[0]


def _of_way(options: Mapping[str, Any], way: str) -> dict[str, Any]:
    """Options without those that have no effect on this way."""
    without = {"heads": ("trunk_learning_rate", "heads_epochs"), "all": ("heads_epochs",)}.get(way, ())
    return {name: value for name, value in options.items() if name not in without}


def _as_it_is(
    log: Log, source: models.RankingModel, tasks: list[str], split: str, options: Mapping[str, Any]
) -> dict[str, tuple[str, dict[str, float]]]:
    """By task of the log the task of the source that scored it, and the metrics of its probabilities against the log's labels."""
    _, choices = split_transfer(options)
    choices = replace(choices, new_tables=())
    name, found = model_name(MODELS[model_name(source.get_config()["builder"])]), {}
    schema = schema_for(source, log.schema, tasks, choices.columns)
    log = counted_log(log, schema=schema)
    fitted = schema.fit(log.split("train"))
    for task in fitted.tasks:
        by = task.name if task.name in source.tasks else source.tasks[0]
        # The source's tasks, with the labels of this one.
        own = fitted.model_copy(update={"tasks": tuple(Task(name=other, label=task.label) for other in source.tasks)})
        arguments = {**arguments_for(source, own, choices.columns, {}), "tasks": source.arguments["tasks"]}
        ranker = MODELS[name](own, **arguments)
        carry(ranker, source, choices.columns, (), "kept")
        found[task.name] = (by, evaluate(ranker, log, split)[by])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
