"""Weights of a trained model in a model for another surface: its trunk, with tables that grow, and heads that stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.ops.tables import rows_without_spare
from keras_ranking.training.checkpoint import set_weight
from keras_ranking.training.transfer.columns import old_rows

_TABLE = "table_"


@dataclass
class Carried:
    """What became of the layers with weights.

    Attributes:
        kept: names of layers with the weights of the source.
        grown: path of a table -> rows in the source, rows now.
        new: names of layers, and paths of tables, that begin anew.
    """

    kept: list[str] = field(default_factory=list)
    grown: dict[str, list[int]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"kept": self.kept, "grown": self.grown, "new": self.new}


def carry(ranker: Any, source: models.RankingModel, columns: Mapping[str, str], new_tables: Collection[str], heads: str) -> Carried:
    """Give a model the weights of another one.

    Args:
        ranker: the new model.
        source: the trained one.
        columns: column of the log -> column of the source.
        new_tables: columns whose table begins anew.
        heads: 'new' or 'kept', as in `Transfer`.

    Raises:
        ValueError: a layer of the trunk with other weights than in the source.
    """
    theirs, of_tasks, found = {layer.name: layer for layer in source.layers}, ranker.head_layers, Carried()
    for layer in ranker.layers:
        if not layer.weights:
            continue
        old: Any = theirs.get(layer.name)
        if layer.name in of_tasks:
            # The weights of one head of several tasks are ordered by task.
            alike = old is not None and (ranker.tasks == source.tasks or any(layer.name.endswith(f"_{task}") for task in ranker.tasks))
            if heads == "kept" and alike and _shapes(old) == _shapes(layer):
                for before, variable in zip(old.weights, layer.weights, strict=True):
                    set_weight(_array(before), variable)
                found.kept.append(layer.name)
            else:
                found.new.append(layer.name)
            continue
        if old is None or len(old.weights) != len(layer.weights):
            has = "no such layer" if old is None else f"{len(old.weights)} weights, not {len(layer.weights)}"
            raise ValueError(
                f"layer '{layer.name}' is below the tasks, and the source has {has}: leave the options of the trunk as they are."
            )
        for before, variable in zip(old.weights, layer.weights, strict=True):
            _carry_one(before, variable, ranker, source, columns, new_tables, found)
        found.kept.append(layer.name)
    if heads == "kept" and not any(name in of_tasks for name in found.kept):
        raise ValueError(
            f"heads='kept' needs layers of tasks that the source has with the same sizes. It is trained on {source.tasks}, and here are "
            f"{ranker.tasks}: heads='new' makes new ones."
        )
    return found


def _carry_one(
    before: Any,
    variable: Any,
    ranker: models.RankingModel,
    source: models.RankingModel,
    columns: Mapping[str, str],
    new_tables: Collection[str],
    found: Carried,
) -> None:
    path = _path_of_table(variable.path)
    table = path.split("/")[-1].removeprefix(_TABLE)
    owners = [one for one in ranker.schema.features if one.dtype == "int32" and _table(one) == table]
    is_table = bool(path)
    if is_table and table in {_table(one) for one in ranker.schema.features if one.name in new_tables}:
        found.new += [path] if path not in found.new else []
        return
    rows, width = _array(before), rows_without_spare(variable) or (int(variable.shape[0]) if variable.shape else 0)
    if is_table and owners and len(rows) < width and rows.shape[1] == int(variable.shape[1]):
        column = next(one for one in source.schema.features if one.name == columns.get(owners[0].name, owners[0].name))
        places = np.asarray(old_rows(column, owners[0]))
        grown = np.where(places[:, None] >= 0, rows[places], rows[1:].mean(axis=0))
        found.grown[path] = [len(rows), width]
        rows = grown.astype(rows.dtype)
    if rows.shape != (*((width,) if variable.shape else ()), *map(int, variable.shape[1:])):
        raise ValueError(
            f"'{variable.path}' is below the tasks, and has shape {tuple(variable.shape)} here and {rows.shape} in the source: leave "
            "options of the trunk as they are."
        )
    set_weight(rows, variable)


def trained_paths(ranker: models.RankingModel, new_tables: Collection[str]) -> set[str]:
    """Names of the layers, and paths of the tables, that are trained where the trunk is frozen."""
    tables = {f"{_TABLE}{_table(one)}" for one in ranker.schema.features if one.name in new_tables}
    return {*ranker.head_layers, *(path for path in (_path_of_table(v.path) for v in ranker.weights) if path.split("/")[-1] in tables)}


def _path_of_table(path: str) -> str:
    """The path of the layer of a column's table that a weight belongs to; '': of none. A table may have several weights, as that of an
    `Id` without buckets has."""
    parts = path.split("/")
    places = [place for place, part in enumerate(parts[:-1]) if part.startswith(_TABLE)]
    return "/".join(parts[: places[0] + 1]) if places else ""


def _table(column: Any) -> str:
    return str(column.table or column.name)


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in layer.weights]


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable.value))
