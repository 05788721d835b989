"""Scores of rows that have no labels, each list from the history of its member."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.column_base import named_columns
from keras_ranking.columns import Number, Task, Vector
from keras_ranking.data import Log, Requests, Sequences
from keras_ranking.data.counted import counted_log, saved_counts
from keras_ranking.data.log_columns import require_frame
from keras_ranking.data.member_values import one_after_another
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.id_columns import session_column
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema
from keras_ranking.training.reporting import tell_rows
from keras_ranking.training.scoring.events import model_of
from keras_ranking.training.scoring.served import served_scores
from keras_ranking.values import native_series, seconds_of

# Columns that are added for the checks; the log's columns of the model have names of other forms.
_NO_LABEL, _PLACE = "label of a row to score", "place of a row to score"
_UNKNOWN = (Task("unknown", label=_NO_LABEL, missing="unknown"),)


def predict(
    model: str | Path | models.RankingModel,
    rows: pd.DataFrame | Log,
    history: pd.DataFrame | Log | None = None,
    max_history: int | None = None,
    batch_size: int = 64,
    on_error: str = "raise",
    round: str | None = None,
) -> pd.DataFrame:
    """Score rows that need no label, no action and no position, as serving scores them.

    Rows of one request are one list of candidates. Where the column of the request is missing, rows of one member at one time are. The
    history of a list has the member's past events that are earlier than it, the newest `max_history` of them; younger ones than the
    model's `delay` are not read. The scores are those of the exported model and of `predict_served`.

    Args:
        model: a `RankingModel`, or the folder that `train` wrote.
        rows: the rows to score, in any order, with the columns of member and time, and those of items and context. Counts that the schema
            states and the rows lack are read from the states in the folder of `model`, continued by `history`; no row may be older than
            these.
        history: past events, with their actions. None: the rows of `rows` that have their actions: a value for each action whose column
            states no substitute for missing ones, and for at least one. Rows without are scored and read by no other.
        max_history: most events of a history; None: as many as the model reads, or all.
        batch_size: lists scored together.
        on_error: 'raise', or 'drop': bad rows to score have no scores (NaN), bad past events are left out, and a warning says how many, why
            and the first of each.
        round: 'floor', 'ceil' or 'nearest': how times with a fraction of a second are rounded. None: that of the `Log`, else such a time is
            a fault.

    Returns:
        One row for each of `rows`, in their order and with their index; a column for each task that is served, and `score` for a model
        with a utility: `rows.join(scores)`, or
        `scores.add_prefix("predicted_")` where the rows have columns of these names.

    Raises:
        TypeError: `rows` or `history` of another kind.
        ValueError: a missing column, or bad values, naming column, row and value.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), history_features=())
        >>> today = log.events.tail(30).drop(columns=["click", "like", "position"])
        >>> scores = kr.training.predict(model, today, history=log.events.head(200))
        >>> scores.index.equals(today.index), list(scores.columns)
        (True, ['click', 'like'])
    """
    ranker = model_of(model)
    if max_history is not None and max_history < 0:
        raise ValueError(f"`max_history` must be at least 0, or None. Received: max_history={max_history}")
    schema, named = ranker.schema, {"rows": rows, "history": history}
    frames: dict[str, Any] = {name: value.events if isinstance(value, Log) else value for name, value in named.items()}
    if round is None and isinstance(rows, Log):
        round = rows.round
    for name, frame in frames.items():
        if frame is not None:
            require_frame(frame, name)
    frame = _listed(frames["rows"], schema, round)
    if frames["history"] is None:
        known = acted(frame, schema)
        past, places = frame[known], np.flatnonzero(known)
    else:
        past, places = _listed(frames["history"], schema, round), None
    past, frame = _counted(model, schema, past, frame, on_error, round)
    lists = _read(frame, _of_lists(schema), on_error, round, None, "rows")
    events = None
    if len(past):
        events = _read(past, _of_past(schema), on_error, round, places, "rows" if places is not None else "history")
    lists, events = _with_sessions(ranker, {"rows": (lists, frame), "history": (events, past)})
    found = _requests(ranker, lists, events, max_history, frames["history"] is not None)
    scores = served_scores(ranker, found, batch_size)
    out = pd.DataFrame(np.nan, index=frame.index, columns=list(scores), dtype=np.float64)
    target = found.sequences.target
    for column, values in enumerate(scores.values()):
        out.iloc[found.sequences.rows[target], column] = values[target]
    return out


def acted(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Which rows have their actions, bool: a value for each whose column states no substitute, and for at least one.

    All rows, where the schema has no actions.
    """
    some, whole = np.zeros(len(frame), dtype=bool), np.ones(len(frame), dtype=bool)
    for action in schema.actions:
        given = native_series(frame[action.name]).notna().to_numpy() if action.name in frame else np.zeros(len(frame), dtype=bool)
        some |= given
        if isinstance(action, (Number, Vector)) and action.missing is None:
            whole &= given
    return whole & some if schema.actions else whole


def _listed(frame: pd.DataFrame, schema: Schema, round: str | None) -> pd.DataFrame:
    """The rows with a column of the request, and columns under the names of features."""
    frame = named_columns(schema, frame)
    if schema.request in frame or not {schema.member, schema.time} <= set(frame.columns):
        return frame
    seconds, _ = seconds_of(frame[schema.time], round)
    keys = pd.DataFrame({"member": frame[schema.member].map(shown).to_numpy(), "time": seconds})
    return frame.assign(**{schema.request: keys.groupby(["member", "time"], sort=False).ngroup().to_numpy()})


def _of_lists(schema: Schema) -> Schema:
    """What the checks read of rows to score."""
    features = (*schema.inputs(), Number.model_construct(name=_PLACE))
    return schema.model_copy(update={"position": None, "session": None, "actions": (), "features": features, "tasks": _UNKNOWN})


def _of_past(schema: Schema) -> Schema:
    """What the checks read of past events."""
    features = schema.features_known("item", "context")
    return schema.model_copy(update={"position": None, "session": None, "features": features, "tasks": _UNKNOWN})


def _read(frame: pd.DataFrame, schema: Schema, on_error: str, round: str | None, places: np.ndarray | None, name: str) -> Sequences:
    """The streams of rows that pass the checks; each row to score is one of its own, also if it repeats another."""
    try:
        added: dict[str, Any] = {_NO_LABEL: np.nan, _PLACE: np.arange(len(frame), dtype=np.float64)}
        frame = frame.assign(**added)
        found = checked_sequences(frame, schema, None, on_error, round, offers=("on_error", "round"), places=places)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None
    tell_rows(found, verbose=False)
    return found


def _with_sessions(ranker: models.RankingModel, parts: dict[str, tuple[Any, pd.DataFrame]]) -> tuple[Any, ...]:
    """The streams with ids of sessions, where the model reads them: hashed, so that they are the same in rows and history."""
    name = ranker.schema.session
    read = {argument: f"{side}_session" in ranker.serving_model.input for argument, side in (("rows", "request"), ("history", "history"))}
    if name is None or not any(read.values()):
        return tuple(streams for streams, _ in parts.values())
    made = []
    for argument, (streams, frame) in parts.items():
        if streams is not None and not read[argument]:
            made.append(replace(streams, session=np.zeros(streams.num_events, dtype=np.int32)))
            continue
        if streams is not None and name not in frame:
            raise ValueError(f"`{argument}` must have the column '{name}', the session, which the model reads. There are: {list(frame)}")
        made.append(None if streams is None else replace(streams, session=session_column(name).encode(frame[name])[streams.rows]))
    return tuple(made)


def _requests(ranker: models.RankingModel, lists: Sequences, past: Sequences | None, max_history: int | None, other: bool) -> Requests:
    """Lists with their histories: the events of `past` come first in the streams, then the rows to score."""
    starts = lists.request_starts
    begin, end = starts[:-1], starts[1:]
    member, time = lists.member[begin], lists.time[begin]
    first = np.zeros(len(begin), dtype=np.int64)
    last = first
    if past is not None and past.num_events:
        at = pd.Index(past.members).get_indexer(pd.Index(lists.members))
        if other and len(at) and (at < 0).all():
            warnings.warn(
                f"no member of `rows` is in `history`: all are scored without one. Received: members such as {shown(lists.members[0])} "
                f"({lists.members.dtype}) in `rows` and {shown(past.members[0])} ({past.members.dtype}) in `history`",
                UserWarning,
                stacklevel=3,
            )
        owner = at[member]
        clock = (past.member.astype(np.int64) << 32) + past.time  # increasing over the streams
        now = (owner.astype(np.int64) << 32) + time
        delay = ranker.arguments.get("delay") if ranker.form == "requests" else None  # the graph of other models has it
        seen = np.searchsorted(clock, now, side="left") if delay is None else np.searchsorted(clock, now - delay, side="right")
        first = np.where(owner < 0, 0, past.offsets[np.maximum(owner, 0)])
        last = np.where(owner < 0, 0, np.maximum(first, seen))
    reads = "history_length" in ranker.serving_model.input
    limits = [size for size in (max_history, ranker.arguments.get("max_history")) if size is not None]
    if limits or not reads:
        first = np.maximum(first, last - (min(limits) if reads else 0))
    order = np.argsort(last - first, kind="stable")  # lists of one batch have histories of like length
    sequences = _one_after_another(ranker.schema, lists, past)
    shift = sequences.num_events - lists.num_events
    return Requests(sequences, first[order], last[order], begin[order] + shift, end[order] + shift, time[order])


def _one_after_another(schema: Schema, lists: Sequences, past: Sequences | None) -> Sequences:
    """Streams of past events, then those of rows to score, whose actions are zero."""
    parts = [lists] if past is None else [past, lists]
    columns = {}
    for column in (*schema.inputs(), *schema.actions):
        blank = np.zeros((1, *column.shape), dtype=column.dtype)
        columns[column.name] = one_after_another([part.columns.get(column.name, blank) for part in parts], [p.num_events for p in parts])
    sizes = np.cumsum([0, *(part.num_events for part in parts)])
    offsets = np.concatenate([part.offsets[:-1] + size for part, size in zip(parts, sizes, strict=False)] + [sizes[-1:]])
    return Sequences(
        schema=schema,
        members=np.concatenate([part.members.astype(object) for part in parts]),
        offsets=offsets.astype(np.int64),
        time=np.concatenate([part.time for part in parts]),
        request=np.concatenate([part.request for part in parts]),
        session=None if lists.session is None else np.concatenate([part.session for part in parts]),
        position=np.zeros(int(sizes[-1]), dtype=np.int32),
        columns=columns,
        labels={},
        target=np.concatenate([np.full(part.num_events, part is lists) for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        report=lists.report,
    )


def _counted(
    model: Any, schema: Schema, past: pd.DataFrame, rows: pd.DataFrame, on_error: str, round: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Past events and rows with the counts that the schema states and the rows lack."""
    states = None if isinstance(model, models.RankingModel) else saved_counts(model)
    named = [count.name for count in schema.counts] + list(states.columns if states is not None else ())
    inputs = {feature.name for feature in schema.inputs()}
    lacking = [name for name in dict.fromkeys(named) if name in inputs and name not in rows]
    if not lacking:
        return past, rows
    if len(past):
        log = counted_log(Log(past.assign(split="train"), schema, round=round), states, on_error, schema)
        past, states = log.events, log.counts
    if states is None:
        raise ValueError(
            f"`rows` must have the counts {lacking}, or `model` be the folder of a run with its states, or `history` hold the events to "
            f"count. Received: none of these"
        )
    seconds, faults = seconds_of(rows[schema.time], round)
    good = ~np.any([bad for bad, _ in faults], axis=0) if faults else np.ones(len(rows), dtype=bool)
    if good.any() and states.last is not None and seconds[good].min() < states.last:
        raise ValueError(
            f"`rows` must not be older than the newest event that is counted, at {states.last}. Received: a row at "
            f"{int(seconds[good].min())}. `training.score_log` scores a log whose rows are counted in turn"
        )
    values = np.full((len(rows), len(lacking)), np.nan)
    places = pd.DataFrame({"time": seconds, "request": rows[schema.request].map(shown).to_numpy()})[good]
    for _, group in places.groupby(["time", "request"] if states.relative else ["time"], sort=False):
        found = states.features(rows.iloc[group.index], int(group["time"].iloc[0]))
        values[group.index] = found[lacking].to_numpy()
    return past, rows.assign(**dict(zip(lacking, values.T, strict=True)))
