"""Serving tensors of a request given as DataFrames. numpy and pandas only; shared by clients and offline evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.column_base import named_columns
from keras_ranking.id_columns import session_column
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema
from keras_ranking.serving.protocol.model_folder import CANDIDATE_COUNT, HISTORY_LENGTH, MEMBER, SESSIONS

_SIDES = {"history": "the history", "candidate": "the candidates"}


@dataclass(frozen=True)
class Request:
    """One request: the history of one member, and the candidates at one time.

    Args:
        history: the member's events, oldest first: the log's columns for items, context, actions and time. None or no rows: an
            empty history.
        candidates: one row per candidate: the log's columns for items and context.
        request_time: time of the request: Unix seconds or a datetime, as in the log's time column.
        session: id of the request's session, as in the log's session column, for a model whose mask reads it (`session_by='column'`).
            None: that of the candidates' column.
        utility: task -> weight of the output `score` for this request alone, in the place of all exported weights; a task without one
            has 0. None: the exported weights.
        member_values: values of the columns that describe the member (known='member'), by name. A column without one is read from
            `candidates`, whose rows must all have the same. None: all are.
        request_id: id of the request, as the log will have it; sent along for the access log of the server. None: none is sent.

    Example:
        >>> candidates = pd.DataFrame({"item_id": [4, 9]})
        >>> request = kr.serving.Request(history=None, candidates=candidates, request_time=1_790_000_000)
        >>> len(request.candidates)
        2
    """

    history: pd.DataFrame | None
    candidates: pd.DataFrame
    request_time: Any
    session: Any = None
    utility: Mapping[str, float] | None = None
    request_id: Any = None
    member_values: Mapping[str, Any] | None = None


def request_tensors(
    schema: Schema,
    history: pd.DataFrame | None,
    candidates: pd.DataFrame,
    request_time: Any,
    names: Sequence[str],
    session: Any = None,
    member_values: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Encode one request, with the schema that encoded the training data.

    Args:
        schema: of the model.
        history, candidates, request_time, session, member_values: see `Request`.
        names: names of the tensors, for example a model's inputs: `history_<column>`, `history_time`, `history_session`,
            `history_length`, `request_time`, `request_session`, `candidate_<column>`, `candidate_count`, `member_<column>`. Other columns
            of the frames are ignored.

    Returns:
        For each name: int32 or float32, `history_<name>` (L[, size]), `candidate_<name>` (N[, size]), `member_<name>` of the shape of a
        value, the others scalars.
        `pad_requests` makes a batch of several.

    Raises:
        ValueError: no candidate, a missing column, a column of the member with several values, no session where the model reads it, a
            value that violates the schema, a history of several members, not in order of time, or later than the request.
        TypeError: not a DataFrame.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> rows = log.events[log.events["request_id"] == 0]
        >>> names = ["candidate_age_hours", "candidate_count"]
        >>> tensors = kr.serving.request_tensors(schema, None, rows, int(rows["time"].iloc[0]), names)
        >>> tensors["candidate_count"] == len(tensors["candidate_age_hours"]) == len(rows)
        True
    """
    frames, times, now = checked_frames(schema, history, candidates, request_time, member_values)
    fixed = {
        "request_time": np.asarray(now, dtype=np.int32),
        "history_time": times,
        HISTORY_LENGTH: np.asarray(len(frames["history"]), dtype=np.int32),
        CANDIDATE_COUNT: np.asarray(len(candidates), dtype=np.int32),
    }

    def encode(name: str, column: Any, values: pd.Series | None) -> np.ndarray:
        if values is None:
            return np.zeros((0, *column.shape), dtype=column.dtype)
        encoded: np.ndarray = column.encode(values)
        return encoded

    for name, column, values in session_values(schema, frames, session, names):
        codes = column.encode(values) if len(values) else np.zeros(0, dtype=np.int32)
        fixed[name] = codes.reshape(() if name == SESSIONS[1] else -1)
    return tensors_of_frames(schema, frames, fixed, names, encode)


def session_values(
    schema: Schema, frames: Mapping[str, pd.DataFrame], session: Any, names: Iterable[str]
) -> Iterator[tuple[str, Any, pd.Series]]:
    """Those of `SESSIONS` that are in `names`: the name, the column, and its values: of the events, or the one of the request.

    Raises:
        ValueError: a schema or frame without the column, no session of the request, or candidates of several.
    """
    for name in (name for name in SESSIONS if name in names):
        if schema.session is None:
            raise ValueError(f"the model's input '{name}' needs a schema with a session. Received: session=None")
        frame, values = frames["candidate"], None
        if name == SESSIONS[0]:
            frame = frames["history"]
            if len(frame) and schema.session not in frame.columns:
                raise ValueError(f"column '{schema.session}' is missing in the history. There are: {sorted(map(str, frame.columns))}")
            values = frame[schema.session] if len(frame) else pd.Series([], dtype=object)
        elif session is not None:
            values = pd.Series([session])
        elif schema.session in frame.columns:
            values = frame[schema.session].drop_duplicates()
            if len(values) > 1:
                raise ValueError(f"the candidates must be of one session. Received: {len(values)} in column '{schema.session}'")
        if values is None:
            raise ValueError(f"the model reads the session of a request: give `session`, or the candidates' column '{schema.session}'.")
        missing = values.isna().to_numpy()
        if missing.any():
            raise ValueError(f"column '{schema.session}' must have no missing value. Received: one at row {int(missing.argmax())}")
        yield name, session_column(schema.session), values.reset_index(drop=True)


def tensors_of_frames(
    schema: Schema,
    frames: Mapping[str, pd.DataFrame],
    fixed: Mapping[str, np.ndarray],
    names: Iterable[str],
    encode: Callable[[str, Any, pd.Series | None], np.ndarray],
) -> dict[str, np.ndarray]:
    """The tensors with these names: those of `fixed`, and columns of the frames.

    Args:
        schema: names the columns.
        frames: 'history' and 'candidate', see `checked_frames`.
        fixed: tensors that do not come from a column.
        names: see `request_tensors`.
        encode: (name of the tensor, column of the schema, its values or None where a frame has no rows) -> tensor.

    Raises:
        ValueError, TypeError: a missing name or column; errors of `encode`, with the name of the frame.
    """
    inputs = {column.name: column for column in schema.inputs()}
    of_member = {name: inputs.pop(name) for name in schema.of_member}
    columns = {"history": {**inputs, **{column.name: column for column in schema.actions}}, "candidate": inputs}
    out: dict[str, np.ndarray] = {}
    for name in names:
        if name in fixed:
            out[name] = fixed[name]
            continue
        side, _, column = name.partition("_")
        if side == "member" and column in of_member:
            out[name] = _of_member(name, of_member[column], frames, encode)
            continue
        if side not in columns or column not in columns[side]:
            raise ValueError(f"the model's input '{name}' is not a column of the schema. The schema has: {sorted(columns['history'])}")
        frame, where = frames[side], _SIDES[side]
        if len(frame) and column not in frame.columns:
            raise ValueError(f"column '{column}' is missing in {where}. There are: {sorted(map(str, frame.columns))}")
        values = frame[column].reset_index(drop=True) if len(frame) else None
        with _error_in(where):
            out[name] = encode(name, columns[side][column], values)
    return out


def _of_member(
    name: str, column: Any, frames: Mapping[str, pd.DataFrame], encode: Callable[[str, Any, pd.Series | None], np.ndarray]
) -> np.ndarray:
    """The one value of a column of the member."""
    given, candidates = frames["member"], frames["candidate"]
    if column.name in given.columns:
        with _error_in("`member_values`"):
            return np.asarray(encode(name, column, given[column.name])[0])
    if column.name not in candidates.columns:
        raise ValueError(
            f"column '{column.name}' of the member is missing in `member_values` and in the candidates. "
            f"There are: {sorted(map(str, candidates.columns))}"
        )
    values = candidates[column.name].reset_index(drop=True)
    if all(value is values.iloc[0] for value in values):  # one object, such as one vector for all
        values = values.iloc[:1]
    with _error_in("the candidates"):
        found = encode(name, column, values)
    flat = found.reshape(len(found), -1)
    same = np.array([row == flat[0].tolist() for row in flat.tolist()]) if found.dtype.kind == "O" else _same_numbers(flat)
    if not same.all():
        rows = np.flatnonzero(~same)
        several = f"rows {', '.join(map(str, rows[:10]))}{', ...' if len(rows) > 10 else ''}" if len(rows) > 1 else f"row {rows[0]}"
        received = f"{shown(values.iloc[0])} at row 0, {shown(values.iloc[rows[0]])} at row {rows[0]}"
        raise ValueError(
            f"column '{column.name}' (known='member') must be the same for all candidates of a request, or be given once in "
            f"`member_values`. Received: {received}; other values than at row 0 in {several}"
        )
    return np.asarray(found[0])


def _same_numbers(flat: np.ndarray) -> np.ndarray:
    """Which rows equal the first, where two missing numbers are equal."""
    equal = flat == flat[:1]
    if flat.dtype.kind == "f":
        equal |= np.isnan(flat) & np.isnan(flat[:1])
    return np.asarray(equal.all(axis=1))


def pad_requests(requests: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Requests of different lengths as one batch: zeros up to the longest history and the longest list of candidates.

    Lists have at least one cell: servers differ in how they treat empty ones.

    Args:
        requests: results of `request_tensors` for the same names, at least one.

    Returns:
        The serving tensors: (B, L[, size]), (B, N[, size]) and (B,).

    Raises:
        ValueError: no request, or requests with different names.

    Example:
        >>> short, long = {"candidate_age": np.ones(2)}, {"candidate_age": np.ones(3)}
        >>> kr.serving.pad_requests([short, long])["candidate_age"].tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if not requests:
        raise ValueError("`requests` must hold at least one request. Received: none")
    for number, request in enumerate(requests):
        if request.keys() != requests[0].keys():
            names = sorted(request.keys() ^ requests[0].keys())
            raise ValueError(f"`requests` must have the same tensors. Request {number} and request 0 differ in {names}")
    batch: dict[str, np.ndarray] = {}
    for name, first in requests[0].items():
        values = [request[name] for request in requests]
        if first.ndim == 0 or name.startswith(MEMBER):
            batch[name] = np.stack(values)
            continue
        shape = (len(values), max(1, *map(len, values)), *first.shape[1:])
        out: np.ndarray = np.full(shape, b"", dtype=object) if first.dtype.kind == "O" else np.zeros(shape, dtype=first.dtype)
        for row, value in enumerate(values):
            out[row, : len(value)] = value
        batch[name] = out
    return batch


def checked_frames(
    schema: Schema,
    history: pd.DataFrame | None,
    candidates: pd.DataFrame,
    request_time: Any,
    member_values: Mapping[str, Any] | None = None,
) -> tuple[dict[str, pd.DataFrame], np.ndarray, np.int32]:
    """The frames of a request (history, candidates, and what is given of the member in one row), the times of its history and its own
    time, after the checks of times and members.

    Raises:
        ValueError, TypeError: as `request_tensors`.
    """
    for what, frame in (("history", history), ("candidates", candidates)):
        if not isinstance(frame, pd.DataFrame) and not (what == "history" and frame is None):
            raise TypeError(f"`{what}` must be a DataFrame. Received: {type(frame).__name__}")
    if not len(candidates):
        raise ValueError("`candidates` must have at least one row: a request needs a candidate. Received: 0 rows")
    with _error_in("the request time"):
        now = schema.encode_time(pd.Series([request_time]))[0]
    frames = {"history": history if history is not None else pd.DataFrame(), "candidate": candidates}
    # One cell a column, also of lists.
    given = {name: pd.Series([value], dtype=None if np.isscalar(value) else object) for name, value in (member_values or {}).items()}
    frames["member"] = pd.DataFrame(given)
    frames = {side: named_columns(schema, frame) for side, frame in frames.items()}
    known = {feature.name for feature in schema.features_known("member")} | {feature.column for feature in schema.features_known("member")}
    if unknown := [name for name in frames["member"].columns if name not in known]:
        raise ValueError(
            f"`member_values` must be of columns of the schema with known='member', {list(schema.of_member)}. Received: {unknown[0]!r}"
        )
    return frames, _history_times(schema, frames["history"], int(now)), now


def _history_times(schema: Schema, history: pd.DataFrame, now: int) -> np.ndarray:
    if not len(history):
        return np.zeros(0, dtype=np.int32)
    if schema.time not in history.columns:
        raise ValueError(f"the history must have the time column '{schema.time}'. It has: {sorted(map(str, history.columns))}")
    if schema.member in history.columns and history[schema.member].nunique(dropna=False) > 1:
        members = history[schema.member].nunique(dropna=False)
        raise ValueError(f"the history must be of one member. Received: {members} members in column '{schema.member}'")
    with _error_in("the history"):
        times: np.ndarray = schema.encode_time(history[schema.time])
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        row = int(back[0]) + 1
        raise ValueError(f"the history must be in order of time, oldest first. Column '{schema.time}' goes back at row {row}")
    if times[-1] > now:
        row = int((times > now).argmax())
        raise ValueError(
            f"the history must not be later than the request. Column '{schema.time}' is {int(times[row]) - now} s after it at row {row}"
        )
    return times


@contextlib.contextmanager
def _error_in(where: str) -> Iterator[None]:
    """Add the name of the frame to errors of an encoder."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"in {where}: {error}") from error
