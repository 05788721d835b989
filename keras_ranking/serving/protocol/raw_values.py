"""The types of the signature `raw`, and the encoding of its values by the data pipeline. numpy and pandas only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Ids, Number, Vector
from keras_ranking.id_columns import session_column
from keras_ranking.schema import Schema
from keras_ranking.serving.protocol.model_folder import AXES, MEMBER, SESSIONS, axis_of, column_name

Specs = Mapping[str, Mapping[str, Any]]


def columns_of(schema: Schema) -> dict[str, Any]:
    """The schema's columns that inputs have after `history_`, `candidate_` and `member_`, by that name: features, actions and `session`."""
    named: dict[str, Any] = {column.name: column for column in (*schema.features, *schema.actions)}
    return named if schema.session is None else {**named, "session": session_column(schema.session)}


def id_types(schema: Schema, events: pd.DataFrame) -> dict[str, str]:
    """How `raw` takes each id and category of this log: 'int64' for a column of integers without missing values, else 'string'.

    Sets of ids are texts always, and are left out.
    """
    types = {}
    for column in columns_of(schema).values():
        if isinstance(column, (Ids, Number, Vector)) or column.name not in events.columns:
            continue
        series = events[column.name]
        whole = pd.api.types.is_integer_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)
        fits = whole and not series.isna().any() and (series.dtype.kind != "u" or getattr(series.dtype, "itemsize", 8) < 8)
        types[column.name] = "int64" if fits else "string"
    return types


def raw_specs(schema: Schema, serving: Specs, ids: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Inputs of `raw`, with the same names as those of `serving_default`.

    Args:
        schema: of the model.
        serving: input name -> {"dtype", "shape", "axis", "rows"}.
        ids: column -> 'string' or 'int64', for ids and categories; the others are 'string', as are sets of ids.

    Raises:
        ValueError: another type, or a column that is not an id or category.
    """
    columns = columns_of(schema)
    by_name = {column.name: column for column in reversed(columns.values())}
    for name, kind in (ids or {}).items():
        if isinstance(by_name.get(name), Ids) and kind != "string":
            raise ValueError(f"`raw_ids` must be 'string' for a set of ids. Received: {name!r}: {kind!r}")
        if kind not in ("string", "int64") or isinstance(by_name.get(name), (Number, Vector, type(None))):
            raise ValueError(f"`raw_ids` must map ids and categories of the schema to 'string' or 'int64'. Received: {name!r}: {kind!r}")
    out = {}
    for name, spec in serving.items():
        column = column_of(columns, name)
        dtype, missing = spec["dtype"], False
        shape = list(spec["shape"])
        if name in ("request_time", "history_time"):
            dtype = "int64"
        elif isinstance(column, Number):
            dtype, missing = "float64", column.missing is not None
        elif isinstance(column, Ids):
            dtype, shape = "string", [*shape[: len(shape) - len(column.shape)], column.size]
        elif column is not None and not isinstance(column, Vector):
            dtype = (ids or {}).get(column.name, "string")
            shape = shape[: len(shape) - len(column.shape)]
        more = {"sets": True} if isinstance(column, Ids) else {"missing": True} if missing else {}
        out[name] = {"dtype": dtype, "shape": shape, "axis": spec["axis"], "rows": None, **more}
    return out


def column_of(columns: Mapping[str, Any], name: str) -> Any:
    """The schema's column of an input, or None for times, lengths and seeds."""
    if name in AXES.values() or name in ("request_time", "history_time"):
        return None
    if name == SESSIONS[1]:
        return columns.get("session")
    axis = axis_of(name, (None, None))
    return columns.get(column_name(name, axis)) if axis or name.startswith(MEMBER) else None


def encode_raw(schema: Schema, raw: Specs, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Encode a batch of raw tensors with the data pipeline, zero beyond the lengths: the reference for the graph's encoding."""
    columns = columns_of(schema)
    out = {}
    for name, values in batch.items():
        axis = raw[name]["axis"]
        counted = np.ones(values.shape[:1], dtype=bool)
        if axis is not None:
            counted = np.arange(values.shape[1]) < batch[AXES[axis]][:, None]
        column = column_of(columns, name)
        if column is None and raw[name]["dtype"] != "int64":
            out[name] = values
            continue
        dtype, shape = ("int32", ()) if column is None else (column.dtype, column.shape)
        encoded = np.zeros((*counted.shape, *shape), dtype=dtype)
        if counted.any():
            encoded[counted] = schema.encode_time(values[counted]) if column is None else column.encode(_series(values[counted]))
        out[name] = encoded
    return out


def _series(values: np.ndarray) -> pd.Series:
    if values.dtype == object and values.ndim == 2:
        return pd.Series([[text.decode("utf-8") for text in cell] for cell in values.tolist()], dtype=object)
    if values.dtype == object:  # an empty text is a missing value, in the log and in the graph
        return pd.Series([text.decode("utf-8") or None for text in values.tolist()], dtype=object)
    return pd.Series(list(values) if values.ndim > 1 else values)
