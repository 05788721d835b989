"""Two small surfaces, and a small source trained on the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

import keras_ranking as kr
from keras_ranking.data import Log
from tests.compiling import JIT

TRAINING: dict[str, Any] = {"row_length": 64, "batch_size": 4, "jit_compile": JIT}
LIRANK: dict[str, Any] = {
    "features": ("item_id", "topic", "age_hours", "editor_score"),
    "history_features": (),
    "hidden": (8,),
    "cross_layers": 1,
    "id_dim": 4,
    "tasks": ["click"],
    **TRAINING,
}
CADET: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tower_hidden": (8,), "tasks": ["click"], **TRAINING}
SOURCES = {"lirank": LIRANK, "cadet": CADET}


def first() -> Log:
    return kr.data.simulate(members=30, days=3, seed=0)


def second(**changes: Any) -> Log:
    """Another log; `changes` are columns of its schema by name, in place of those that it has."""
    return changed(kr.data.simulate(members=24, days=3, seed=1), **changes)


def changed(log: Log, **changes: Any) -> Log:
    """The log with other columns in its schema, by name."""
    schema = log.schema.model_copy(update={"features": tuple(changes.get(one.name, one) for one in log.schema.features)})
    return Log(log.events, schema, "second")


def renamed(log: Log, names: dict[str, str]) -> Log:
    """The log with other names of columns."""

    def named(columns: Any) -> tuple[Any, ...]:
        return tuple(column.model_copy(update={"name": names.get(column.name, column.name)}) for column in columns)

    update = {"features": named(log.schema.features), "actions": named(log.schema.actions)}
    update["tasks"] = tuple(kr.Task(name=task.name, label=names.get(task.label, task.label)) for task in log.schema.tasks)
    return Log(log.events.rename(columns=names), log.schema.model_copy(update=update), log.name)


def source(name: str, folder: Path, log: Log | None = None) -> Path:
    """The folder of a source with one epoch."""
    kr.training.train(log or first(), name, folder, 0, 1, SOURCES[name], verbose=False)
    return folder


def with_word(log: Log, word: str) -> Log:
    """The log with some rows of a topic that no other surface has."""
    events: pd.DataFrame = log.events.copy()
    events.loc[events["item_id"] % 3 == 0, "topic"] = word
    topic = next(one for one in log.schema.features if one.name == "topic")
    grown = topic.model_copy(update={"vocabulary": (word, *topic.vocabulary[:-1])})
    schema = log.schema.model_copy(update={"features": tuple(grown if one.name == "topic" else one for one in log.schema.features)})
    return Log(events, schema, log.name)
