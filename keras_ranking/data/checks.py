"""Checks of a log: a fault raises an error that names column, row and value, or its rows are left out and counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Id, Number, Vector
from keras_ranking.schema import Schema

_INT32_MAX = 2**31 - 1


@dataclass
class Report:
    """What `check_events` found.

    Args:
        rows: rows received.
        dropped: rows left out, by reason. A row with several faults counts once, under the first of them.
        examples: for each reason the first such row: its place in the frame, its index label and its value.
        reordered: rows that came after a later row of their member and were sorted into place (`sort=True`).

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> events = log.events.head(100).assign(click=[7] + [0] * 99)
        >>> rows, report = kr.data.check_events(events, log.schema, on_error="drop")
        >>> report.kept, report.dropped
        (99, {"column 'click' of task 'click' must hold 0 or 1": 1})
    """

    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    reordered: int = 0

    @property
    def kept(self) -> int:
        """Rows that passed."""
        return self.rows - sum(self.dropped.values())

    def __str__(self) -> str:
        lines = [f"{self.kept} of {self.rows} rows kept"]
        lines += [f"  {count} left out: {reason} (first: {self.examples[reason]})" for reason, count in self.dropped.items()]
        if self.reordered:
            lines.append(f"  {self.reordered} rows sorted into time order")
        return "\n".join(lines)


class _Checker:
    """Keeps a mask of the rows without a fault so far; `fault` raises an error or removes rows from it."""

    def __init__(self, events: pd.DataFrame, on_error: str) -> None:
        self.events = events
        self.on_error = on_error
        self.alive = np.ones(len(events), dtype=bool)
        self.report = Report(rows=len(events))

    def fault(self, bad: np.ndarray, column: str, reason: str, values: Any = None) -> None:
        """Report the rows of the mask `bad`. `values` are shown as received; None: those of the column."""
        bad = bad & self.alive
        count = int(bad.sum())
        if not count:
            return
        row = int(bad.argmax())
        shown = (self.events[column] if values is None else pd.Series(values)).iloc[row]
        shown = shown.item() if isinstance(shown, np.generic) else shown
        example = f"{shown!r} at row {row} (index {self.events.index[row]!r})"
        if self.on_error == "raise":
            example += f"; {count} such rows" if count > 1 else ""
            raise ValueError(f"column '{column}' {reason}. Received: {example}. on_error='drop' leaves such rows out and counts them.")
        key = f"column '{column}' {reason}"
        self.report.dropped[key] = self.report.dropped.get(key, 0) + count
        self.report.examples.setdefault(key, example)
        self.alive &= ~bad


def _as_numbers(series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The values as float64 (NaN where there is none), and which of them are not numbers at all."""
    if series.dtype == object or pd.api.types.is_string_dtype(series.dtype):
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        return numbers, np.isnan(numbers) & series.notna().to_numpy()
    return series.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(series), dtype=bool)


def _seconds(series: pd.Series, checker: _Checker, schema: Schema) -> np.ndarray:
    """Unix seconds as int64, 0 where the row was found faulty."""
    missing = series.isna().to_numpy()
    checker.fault(missing, schema.time, "must hold a time in every row")
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        stamps = series.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(series.dt, "tz", None) is not None else series
        seconds = np.where(missing, 0, stamps.to_numpy().astype("datetime64[s]").astype(np.int64))
    else:
        numbers, _ = _as_numbers(series)
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**62)
        checker.fault(~whole & ~missing, schema.time, "must hold whole Unix seconds or datetimes")
        seconds = np.where(whole, numbers, 0).astype(np.int64)
    after = seconds - schema.epoch
    checker.fault((after < 0) & ~missing, schema.time, f"must not be before the schema's epoch ({schema.epoch})")
    checker.fault((after > _INT32_MAX) & ~missing, schema.time, f"must be at most {_INT32_MAX} s after the schema's epoch ({schema.epoch})")
    return seconds


def _check_ids(series: pd.Series, checker: _Checker, name: str) -> None:
    types = pd.api.types
    if types.is_float_dtype(series.dtype):
        numbers, _ = _as_numbers(series)
        with np.errstate(invalid="ignore"):
            bad = ~np.isnan(numbers) & (~np.isfinite(numbers) | (numbers != np.floor(numbers)) | (np.abs(numbers) > 2**53))
    elif series.dtype == object:
        known = series.notna().to_numpy()
        bad = known.copy()
        bad[known] = [not isinstance(value, (str, bytes, int, np.integer)) for value in series.to_numpy()[known]]
    else:
        usable = (types.is_integer_dtype, types.is_bool_dtype, types.is_string_dtype, lambda dtype: isinstance(dtype, pd.CategoricalDtype))
        bad = np.full(len(series), not any(test(series.dtype) for test in usable))
    checker.fault(bad, name, "is an id and must hold integers or strings")


def _check_numbers(feature: Number, series: pd.Series, checker: _Checker) -> None:
    numbers, text = _as_numbers(series)
    checker.fault(text, feature.name, "must hold numbers")
    checker.fault(np.isinf(numbers), feature.name, "must hold finite numbers")
    if feature.missing is None:
        stated = f"state Number('{feature.name}', missing=...) to replace missing values"
        checker.fault(np.isnan(numbers), feature.name, f"must not be missing; {stated}")
    if feature.transform.startswith("log1p"):
        with np.errstate(invalid="ignore"):
            checker.fault(numbers < 0, feature.name, f"has transform={feature.transform!r} and must not be negative")


def _check_vectors(feature: Vector, series: pd.Series, checker: _Checker) -> None:
    sized = series.map(lambda value: len(value) if hasattr(value, "__len__") else -1).to_numpy()
    checker.fault(sized != feature.size, feature.name, f"must hold vectors of {feature.size} numbers")
    good = np.flatnonzero(sized == feature.size)
    if len(good):
        block = np.asarray(list(series.iloc[good]), dtype=np.float64)
        bad = np.zeros(len(series), dtype=bool)
        bad[good] = ~np.isfinite(block).all(axis=1)
        checker.fault(bad, feature.name, "must hold finite numbers")


def _check_labels(schema: Schema, events: pd.DataFrame, checker: _Checker) -> None:
    for task in schema.tasks:
        labels, text = _as_numbers(events[task.label])
        missing = np.isnan(labels) & ~text
        if task.missing == "error":
            stated = "Task(missing='unknown') gives such rows weight 0"
            checker.fault(missing, task.label, f"must hold a label of task '{task.name}' in every row; {stated}")
        checker.fault(~missing & (labels != 0) & (labels != 1), task.label, f"of task '{task.name}' must hold 0 or 1")


def _check_duplicates(schema: Schema, events: pd.DataFrame, checker: _Checker) -> None:
    """Rows equal to an earlier one in every column of the schema."""
    ids = [feature.name for feature in schema.features if isinstance(feature, (Id, Category))]
    rows = np.flatnonzero(checker.alive)
    # Almost no row shares member, request and ids with another, so the wide comparison runs on few rows.
    near = events.iloc[rows].duplicated(subset=list(dict.fromkeys([schema.member, schema.request, *ids])), keep=False).to_numpy()
    rows = rows[near]
    if not len(rows):
        return
    few = events.iloc[rows][list(schema.columns)].copy()
    for feature in (*schema.features, *schema.actions):
        if isinstance(feature, Vector):
            few[feature.name] = [np.asarray(value, dtype=np.float64).tobytes() for value in few[feature.name]]
    bad = np.zeros(len(events), dtype=bool)
    bad[rows] = few.duplicated().to_numpy()
    checker.fault(bad, schema.request, "has a row that repeats an earlier row exactly (same member, request, item and all other values)")


def _first_rows(codes: np.ndarray) -> np.ndarray:
    """For every row the first row of its group."""
    first = np.empty(int(codes.max()) + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of repeated indices the last assignment stays: the first row
    return np.asarray(first[codes])


def _check_requests(schema: Schema, events: pd.DataFrame, seconds: np.ndarray, checker: _Checker) -> None:
    rows = np.flatnonzero(checker.alive)
    if not len(rows):
        return
    request = pd.factorize(events[schema.request].iloc[rows])[0]
    member = pd.factorize(events[schema.member].iloc[rows])[0]
    first = _first_rows(request)
    for values, column, what in ((member, schema.member, "member"), (seconds[rows], schema.time, "time")):
        differs = values != values[first]
        faulty = np.zeros(int(request.max()) + 1, dtype=bool)
        faulty[request[differs]] = True
        bad = np.zeros(len(events), dtype=bool)
        # The right value is unknown: all rows of the request are left out, but the error shows a row that differs.
        bad[rows] = differs if checker.on_error == "raise" else faulty[request]
        checker.fault(bad, column, f"must hold one {what} for all rows of a request")


def _check_positions(schema: Schema, events: pd.DataFrame, checker: _Checker) -> None:
    if schema.position is None:
        return
    positions, text = _as_numbers(events[schema.position])
    known = ~np.isnan(positions)
    with np.errstate(invalid="ignore"):
        bad = text | (known & ((positions != np.floor(positions)) | (positions < 1) | (positions > _INT32_MAX)))
    checker.fault(bad, schema.position, "must hold whole numbers, 1 = shown first (or be missing = not known)")
    rows = np.flatnonzero(checker.alive & known)
    request = pd.factorize(events[schema.request].iloc[rows])[0]
    repeated = np.zeros(len(events), dtype=bool)
    repeated[rows] = pd.DataFrame({"request": request, "position": positions[rows]}).duplicated().to_numpy()
    checker.fault(repeated, schema.position, "must not repeat inside a request")


def check_events(events: pd.DataFrame, schema: Schema, on_error: str = "raise", sort: bool = False) -> tuple[pd.DataFrame, Report]:
    """Check a log against its schema.

    Faults, in this order: a missing column; a missing member, request or session; a time that is missing, not whole,
    before the schema's epoch or too late for int32; ids that are neither integers nor strings; numbers that are text, not finite,
    negative under a logarithm, or missing without a stated substitute; vectors of a wrong size or not finite; labels other than 0 and 1;
    a row that is equal to an earlier one; a request with two members or two times; a position that is not a whole number
    >= 1 or repeats inside its request; a row that comes after a later row of the same member.

    Args:
        events: one row per impression.
        schema: what the columns are.
        on_error: "raise", or "drop": faulty rows are left out and counted in the report. A repeated row keeps its first
            copy; of a request with two members or times all rows are left out, since the right value is unknown; of a repeated
            position the first row is kept.
        sort: True sorts the rows by time (stable) where some member's rows are out of order, and reports how many were.
            False (default): such rows are faults.

    Returns:
        The rows that passed, in their order (unless sorted) and with their index labels, and a `Report`.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: a missing or doubled column always; the other faults with on_error="raise". The message names the
            column, the row (0-based place in the frame, and index label) and the value.

    Example:
        >>> schema = kr.Schema(member="m", time="t", request="r", features=[kr.Id("item")], tasks=["click"])
        >>> events = pd.DataFrame({"m": [1, 1], "t": [1_600_000_000, 7], "r": [1, 2], "item": [5, 6], "click": [0, 1]})
        >>> rows, report = kr.data.check_events(events, schema, on_error="drop")
        >>> report.kept
        1
    """
    if not isinstance(events, pd.DataFrame):
        raise TypeError(f"`events` must be a pandas DataFrame. Received: {type(events).__name__}")
    if on_error not in ("raise", "drop"):
        raise ValueError(f"`on_error` must be 'raise' or 'drop'. Received: on_error={on_error!r}")
    names = list(map(str, events.columns))
    for column in schema.columns:
        if column not in events.columns:
            raise ValueError(f"column '{column}' of the schema is not in the log. It has: {sorted(names)}")
        if names.count(column) > 1:
            raise ValueError(f"column '{column}' is in the log {names.count(column)} times.")

    checker = _Checker(events, on_error)
    for role, name in (("member", schema.member), ("request", schema.request), ("session", schema.session)):
        if name is not None:
            checker.fault(events[name].isna().to_numpy(), name, f"must hold a {role} in every row")
    seconds = _seconds(events[schema.time], checker, schema)
    for feature in (*schema.features, *schema.actions):
        series = events[feature.name]
        if isinstance(feature, Number):
            _check_numbers(feature, series, checker)
        elif isinstance(feature, Vector):
            _check_vectors(feature, series, checker)
        else:
            _check_ids(series, checker, feature.name)
    _check_labels(schema, events, checker)
    _check_duplicates(schema, events, checker)
    _check_requests(schema, events, seconds, checker)
    _check_positions(schema, events, checker)
    return _order(events, schema, seconds, checker, sort)


def _order(events: pd.DataFrame, schema: Schema, seconds: np.ndarray, checker: _Checker, sort: bool) -> tuple[pd.DataFrame, Report]:
    rows = np.flatnonzero(checker.alive)
    member = pd.factorize(events[schema.member].iloc[rows])[0]
    latest = pd.Series(seconds[rows]).groupby(member).cummax().to_numpy()
    late = np.zeros(len(events), dtype=bool)
    late[rows] = seconds[rows] < latest
    if sort and late.any():
        checker.report.reordered = int(late.sum())
        return events.iloc[rows[np.argsort(seconds[rows], kind="stable")]], checker.report
    checker.fault(late, schema.time, "must not go back in time within a member; sort the rows, or pass sort=True")
    if checker.alive.all():
        return events, checker.report
    return events.iloc[np.flatnonzero(checker.alive)], checker.report
