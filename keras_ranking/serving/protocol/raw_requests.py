"""Tensors of the signature `raw` for a request with values of the log: text, integers and floats, which the graph encodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Ids
from keras_ranking.ops.hashing import canonical_text
from keras_ranking.schema import Schema
from keras_ranking.serving.protocol.model_folder import CANDIDATE_COUNT, HISTORY_LENGTH, MEMBER, SESSIONS
from keras_ranking.serving.protocol.requests import checked_frames, session_values, tensors_of_frames
from keras_ranking.serving.protocol.signature import Signature


def raw_request_tensors(
    schema: Schema,
    history: pd.DataFrame | None,
    candidates: pd.DataFrame,
    request_time: Any,
    signature: Signature,
    session: Any = None,
    member_values: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Tensors of one request for a signature on values of the log.

    Args:
        schema: of the model; names the columns.
        history, candidates, request_time, session, member_values: see `Request`.
        signature: from the server's metadata, with the inputs and their types. Times are Unix seconds in inputs of 64 bits, seconds
            after the schema's epoch in inputs of 32.

    Returns:
        As `request_tensors`, in the types of the signature; text is an object array of `bytes`.

    Raises:
        ValueError: as `request_tensors`; a value that the type cannot represent, with column and row.
        TypeError: not a DataFrame.
    """
    frames, times, now = checked_frames(schema, history, candidates, request_time, member_values)
    counts = {HISTORY_LENGTH: np.asarray(len(frames["history"])), CANDIDATE_COUNT: np.asarray(len(candidates))}
    fixed = {name: value.astype(signature.inputs[name].dtype) for name, value in counts.items() if name in signature.inputs}
    for name, value in (("request_time", np.asarray(now)), ("history_time", times)):
        if name in signature.inputs:
            dtype = signature.inputs[name].dtype
            fixed[name] = value.astype(dtype) + (schema.epoch if dtype == np.int64 else 0)

    def encode(name: str, column: Any, values: pd.Series | None) -> np.ndarray:
        tensor = signature.inputs[name]
        size = tuple(int(cells) for cells in (tensor.shape or ())[1 if name.startswith(MEMBER) else 2 :] if cells is not None)
        return np.zeros((0, *size), dtype=tensor.dtype) if values is None else _values(column, values, tensor.dtype, size)

    for name, column, values in session_values(schema, frames, session, signature.inputs):
        fixed[name] = _values(column, values, signature.inputs[name].dtype, ()).reshape(() if name == SESSIONS[1] else -1)
    return tensors_of_frames(schema, frames, fixed, signature.inputs, encode)


def _values(column: Any, values: pd.Series, dtype: np.dtype, size: tuple[int, ...]) -> np.ndarray:
    if dtype.kind == "O":  # a missing value is the empty text, as in the hash of an id
        texts = column.texts(values) if isinstance(column, Ids) else canonical_text(values, column.name)
        encoded = np.empty(texts.size, dtype=object)
        encoded[:] = [text.encode() for text in texts.reshape(-1)]
        return encoded.reshape(texts.shape)
    if size:
        values = pd.Series(list(column.encode(values))) if getattr(column, "missing", None) is not None else values
        rows = [np.asarray(row, dtype=dtype) for row in values]
        wrong = next((row for row, value in enumerate(rows) if value.shape != size), None)
        if wrong is not None:
            raise ValueError(f"column '{column.name}' must hold vectors of {size[0]}. Received: shape {rows[wrong].shape} at row {wrong}")
        return np.stack(rows)
    if dtype.kind in "iu":
        return _whole(column.name, values, dtype)
    numbers: np.ndarray = pd.to_numeric(values, errors="coerce").to_numpy(dtype=dtype, na_value=np.nan)
    bad = ~np.isfinite(numbers)
    if getattr(column, "missing", None) is not None:  # the graph replaces missing values
        bad &= values.notna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"column '{column.name}' must hold finite numbers. Received: {values.tolist()[row]!r} at row {row}")
    return numbers


def _whole(column: str, values: pd.Series, dtype: np.dtype) -> np.ndarray:
    texts = canonical_text(values, column).tolist()  # not via floats, which have 53 bits
    bounds = np.iinfo(dtype)
    for row, text in enumerate(texts):
        # "007" is another id than 7: the data pipeline hashes the text.
        if not text.removeprefix("-").isdecimal() or str(int(text)) != text or not bounds.min <= int(text) <= bounds.max:
            raise ValueError(f"column '{column}' must hold whole numbers of {dtype}. Received: {values.tolist()[row]!r} at row {row}")
    return np.array([int(text) for text in texts], dtype=dtype)
