"""An event log as one stream of events per member: ordered by time, columnar, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.column_base import named_columns
from keras_ranking.data.checks import Report, checked_rows
from keras_ranking.data.log_columns import require_frame
from keras_ranking.data.member_values import held_once
from keras_ranking.schema import Schema
from keras_ranking.task import encoded_labels
from keras_ranking.values import native_frame, numbers_of, require_kind


@dataclass(frozen=True)
class Sequences:
    """Streams of E events of M members. Member m owns the events `offsets[m]:offsets[m + 1]`, oldest first.

    Within a member, events are ordered by time, then by request, then as in the log; the impressions of one request are
    contiguous.

    Attributes:
        schema: what the columns are.
        members: (M,) member ids as in the log.
        offsets: (M + 1,) int64.
        time: (E,) int32 seconds after `schema.epoch`.
        request: (E,) int64 codes, equal exactly where the request id is equal.
        session: (E,) int32 codes, or None where the schema names no session.
        position: (E,) int32, 1 = first, 0 = none known.
        columns: encoded features and actions by name, (E,) or (E, size); those known='member' are held once for a run of events in which
            they stay the same, and are read like the others.
        labels: float32 (E,) by task, NaN = unknown; grades as shares, numbers transformed (see `Task`).
        weights: float32 (E,) by task whose rows have weights.
        target: (E,) bool: whether the event is a target of training or scoring. False: history only.
        rows: (E,) int64, the row of the log that each event came from.
        report: what was left out of the log, and why.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> sequences.num_members, sequences.columns["age_hours"].dtype
        (20, dtype('float32'))
    """

    schema: Schema
    members: np.ndarray
    offsets: np.ndarray
    time: np.ndarray
    request: np.ndarray
    session: np.ndarray | None
    position: np.ndarray
    columns: dict[str, Any]
    labels: dict[str, np.ndarray]
    target: np.ndarray
    rows: np.ndarray
    report: Report = field(repr=False)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_events(self) -> int:
        """E."""
        return len(self.time)

    @property
    def num_members(self) -> int:
        """M."""
        return len(self.members)

    @property
    def member(self) -> np.ndarray:
        """(E,) int64: index of each event's member."""
        return np.repeat(np.arange(self.num_members), np.diff(self.offsets))

    @property
    def request_starts(self) -> np.ndarray:
        """(R + 1,) int64: where each request's impressions begin in the stream, and E at the end."""
        if not self.num_events:
            return np.zeros(1, dtype=np.int64)
        change = (self.request[1:] != self.request[:-1]) | (self.member[1:] != self.member[:-1])
        return np.concatenate([[0], np.flatnonzero(change) + 1, [self.num_events]]).astype(np.int64)

    def by_column(self, name: str | None) -> Sequences:
        """The same streams with the values of a column of whole numbers, or of a category's rows, in the place of positions.

        What losses and metrics read of an impression's tower is its position; a model with `tower_by` has another column for it. A value
        that is missing, or no word of the vocabulary, is 0.

        Args:
            name: of a feature; None: the position, as it is.

        Raises:
            ValueError: a number that is not whole, or below 0.
        """
        if name is None:
            return self
        values = np.asarray(self.columns[name])
        wrong = ~((values >= 0) & (values == np.floor(values)))
        if wrong.any():
            row = int(wrong.argmax())
            received = f"{values[row]} at row {int(self.rows[row])}"
            raise ValueError(f"column '{name}', which the towers go by, must hold whole numbers from 1 on. Received: {received}")
        return replace(self, position=values.astype(np.int32))

    def with_target(self, target: Any) -> Sequences:
        """The same streams with other targets; `target` has one bool for each row of the log."""
        return replace(self, target=_mask(target, self.report.rows)[self.rows])


def require_sequences(sequences: Any) -> None:
    """Check that these are `Sequences`.

    Raises:
        TypeError: with the way to make them.
    """
    require_kind(sequences, Sequences, "sequences", "`keras_ranking.data.build_sequences(events, schema)` makes them of a DataFrame")


def _mask(target: Any, rows: int) -> np.ndarray:
    mask = pd.Series(target, dtype=bool if len(target) == 0 else None) if hasattr(target, "__len__") else pd.Series([], dtype=object)
    if len(mask) != rows or not pd.api.types.is_bool_dtype(mask.dtype) or mask.isna().any():
        received = f"{len(mask)} values of type {mask.dtype}, {int(mask.isna().sum())} of them missing, for {rows} rows"
        raise ValueError(f"`target` must have one bool for each row of the log. Received: {received}")
    return mask.to_numpy(dtype=bool)


def build_sequences(
    events: pd.DataFrame,
    schema: Schema,
    target: Sequence[bool] | np.ndarray | pd.Series | None = None,
    on_error: str = "raise",
    round: str | None = None,
) -> Sequences:
    """Sort a log into per-member streams and encode every column of the schema.

    Args:
        events: one row per impression, in any order; impressions of one request keep their order. `Sequences.report` has the number of
            rows that came after a later row of their member.
        schema: what the columns are.
        target: one bool per row: whether it is a target of training or scoring. None: all rows. The other rows are history only.
        on_error: 'raise', or 'drop': bad rows are left out, counted and reported in `Sequences.report`.
        round: 'floor', 'ceil' or 'nearest': how times with a fraction of a second are rounded. None: a fraction is a fault.

    Returns:
        `Sequences`.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: a missing column, or bad values, naming column, row and value; a `target` that is not one bool per row; a number
            whose mean and standard deviation are not fitted.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> int(sequences.offsets[-1]) == len(log.events)
        True
    """
    return checked_sequences(events, schema, target, on_error, round, offers=("on_error", "round"))


def checked_sequences(
    events: pd.DataFrame,
    schema: Schema,
    target: Sequence[bool] | np.ndarray | pd.Series | None = None,
    on_error: str = "raise",
    round: str | None = None,
    fit: bool = False,
    needed: str = "",
    offers: tuple[str, ...] = (),
    places: np.ndarray | None = None,
) -> Sequences:
    """`build_sequences` for callers with other arguments.

    Args:
        events, schema, target, on_error, round: as `build_sequences`.
        fit: measure the constants of the schema on the target rows that passed the checks; `Sequences.schema` has them.
        needed: what the target rows are, where it is an error that none of them passes; '' where it is none.
        offers, places: as `checked_rows`. With `places`, `Sequences.rows` are these.
    """
    require_frame(events)
    require_kind(schema, Schema, "schema", "`Schema.load(path)` reads a file")
    events = named_columns(schema, events)
    wanted = np.ones(len(events), dtype=bool) if target is None else _mask(target, len(events))
    rows, report = checked_rows(events, schema, on_error, True, round, offers, places)
    if needed and not wanted[rows].any():
        raise ValueError(f"no {needed} passed the checks: {report}")
    if fit:
        unfitted = [feature.name for feature in (*schema.features, *schema.actions) if not getattr(feature, "fitted", True)]
        tasks = [task.label for task in schema.tasks if not task.fitted]
        schema = schema.fit(events.iloc[rows[wanted[rows]]])
        if tasks or (unfitted and not all(within_float32(schema, name, events[name].iloc[rows]) for name in unfitted)):
            rows, report = checked_rows(events, schema, on_error, True, round, offers, places)
    checked = native_frame(events, schema.columns)
    if not np.array_equal(rows, np.arange(len(events))):
        checked = checked.iloc[rows]
    return encoded(checked, rows if places is None else places[rows], wanted[rows], schema, round, report)


def _columns(schema: Schema, checked: pd.DataFrame, order: np.ndarray, member: np.ndarray, request: np.ndarray) -> dict[str, Any]:
    """Features and actions of rows in the order of the streams; those of the member once for a run of events."""
    members = schema.features_known("member")
    held = held_once(members, checked[[one.name for one in members]].iloc[order], member, request)
    of_events = {one.name: one for one in (*schema.features, *schema.actions)}
    return {name: held[name] if name in held else column.encode(checked[name])[order] for name, column in of_events.items()}


def within_float32(schema: Schema, name: str, values: pd.Series) -> bool:
    """Whether a number of the schema stays within float32 after standardising."""
    column = next(feature for feature in (*schema.features, *schema.actions) if feature.name == name)
    return not any(rows.any() for rows, _ in column.faults(values))


def encoded(checked: pd.DataFrame, rows: np.ndarray, wanted: np.ndarray, schema: Schema, round: str | None, report: Report) -> Sequences:
    """The streams of rows that have passed the checks."""
    time = schema.encode_time(checked[schema.time], round)
    member, _ = pd.factorize(checked[schema.member])
    request, _ = pd.factorize(checked[schema.request])
    # A request belongs to one member and one time (checked above), so ordering by its first row keeps it together.
    order = np.lexsort((np.arange(len(checked)), request, time, member))
    member, rows = member[order], rows[order]
    starts = np.flatnonzero(np.diff(member, prepend=-1)) if len(member) else np.zeros(0, dtype=np.int64)

    def column(name: str) -> pd.Series:
        return checked[name].iloc[order]

    session = None
    if schema.session is not None:
        part, known = pd.factorize(column(schema.session))
        session = pd.factorize(member.astype(np.int64) * len(known) + part)[0].astype(np.int32)
    position = np.zeros(len(order), dtype=np.int32)
    if schema.position is not None:
        position = np.nan_to_num(numbers_of(column(schema.position))[0]).astype(np.int32)
    return Sequences(
        schema=schema,
        members=column(schema.member).to_numpy()[starts],
        offsets=np.append(starts, len(member)).astype(np.int64),
        time=time[order],
        request=request[order].astype(np.int64),
        session=session,
        position=position,
        columns=_columns(schema, checked, order, member, request[order]),
        labels={task.name: encoded_labels(schema.tasks, task, checked)[order] for task in schema.tasks},
        weights={task.name: task.row_weights(checked[task.weight])[0][order] for task in schema.tasks if task.weight is not None},
        target=wanted[order],
        rows=rows,
        report=report,
    )
