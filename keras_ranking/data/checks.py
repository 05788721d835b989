"""Checks of a log: a fault raises an error that names column, row and value, or its rows are left out and counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from keras_ranking.column_base import named_columns
from keras_ranking.columns import Category, Id, Ids, Vector
from keras_ranking.data.log_columns import at_row, key_faults, require_column, require_frame
from keras_ranking.data.member_values import value_codes
from keras_ranking.data.vocabularies import vocabulary_notes
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema
from keras_ranking.task import counting_rows
from keras_ranking.values import FRACTION, INT32_MAX, Faults, native_frame, numbers_of, require_kind

_ROUNDING = {"round": "round='floor' rounds down to whole seconds.", "log": "`Log(..., round='floor')` rounds down to whole seconds."}
_MOST_PROBLEMS = 10


@dataclass
class Report:
    """What `check_events` found.

    Args:
        rows: rows received.
        dropped: rows left out, by reason. A row with several faults counts once, under the first of them.
        examples: for each reason the first such row: its place in the frame, its index label and its value.
        places: for each reason the places of all such rows in the frame.
        reordered: rows that came after a later row of their member and were sorted into place (`sort=True`).
        notes: what is not wrong but probably not meant, such as values that differ from the vocabulary in case alone. Also warned of.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> events = log.events.head(100).assign(click=[7] + [0] * 99)
        >>> rows, report = kr.data.check_events(events, log.schema, on_error="drop")
        >>> report.kept, report.dropped
        (99, {"column 'click' of task 'click' must hold 0 or 1": 1})
        >>> [places.tolist() for places in report.places.values()]
        [[0]]
    """

    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    places: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    reordered: int = 0
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Rows that passed."""
        return self.rows - sum(self.dropped.values())

    def _rows(self, reason: str) -> str:
        places = self.places.get(reason, ())
        if len(places) < 2:
            return ""
        return f"; rows {', '.join(map(str, places[:_MOST_PROBLEMS]))}{', ...' if len(places) > _MOST_PROBLEMS else ''}"

    def __str__(self) -> str:
        lines = [f"{self.kept} of {self.rows} rows kept"]
        lines += [
            f"  {count} left out: {reason} (first: {self.examples[reason]}{self._rows(reason)})" for reason, count in self.dropped.items()
        ]
        if self.reordered:
            lines.append(f"  {self.reordered} rows sorted into time order")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


class _Checker:
    """Keeps a mask of the rows without a fault so far; `fault` notes a problem and removes its rows from the mask.

    `places` are the places of the rows in the frame that the user has, which may hold more rows than are checked.
    """

    def __init__(self, events: pd.DataFrame, on_error: str, places: np.ndarray | None = None) -> None:
        self.events = events
        self.on_error = on_error
        self.places = np.arange(len(events)) if places is None else places
        self.alive = np.ones(len(events), dtype=bool)
        self.report = Report(rows=len(events))

    def fault(self, bad: np.ndarray, column: str, reason: str) -> None:
        """Report the rows of the mask `bad`."""
        bad = bad & self.alive
        if not bad.any():
            return
        row = int(bad.argmax())
        key = f"column '{column}' {reason}"
        self.report.dropped[key] = self.report.dropped.get(key, 0) + int(bad.sum())
        example = f"{shown(self.events[column].iloc[row])} at {at_row(int(self.places[row]), self.events.index, row)}"
        self.report.examples.setdefault(key, example)
        self.report.places[key] = np.union1d(self.report.places.get(key, np.zeros(0, dtype=np.int64)), self.places[bad])
        self.alive &= ~bad

    def faults(self, column: str, faults: Faults) -> None:
        """Report several faults of one column, in their order."""
        for bad, reason in faults:
            self.fault(bad, column, reason)

    def finish(self, offers: tuple[str, ...]) -> None:
        """Raise one error with all problems, unless their rows are to be left out.

        Raises:
            ValueError: there are problems, and `on_error` is 'raise'.
        """
        if self.on_error == "raise":
            raise_problems(self.report, offers)


def raise_problems(report: Report, offers: tuple[str, ...] = ()) -> None:
    """Raise one error with all problems of a report.

    Args:
        report: of the checks.
        offers: as `checked_rows`.

    Raises:
        ValueError: there are problems.
    """
    problems = report.dropped
    if not problems:
        return
    lines = []
    for reason, count in list(problems.items())[:_MOST_PROBLEMS]:
        lines.append(f"{reason}. Received: {report.examples[reason]}" + (f"; {count} such rows" if count > 1 else ""))
    hints = []
    if any(FRACTION in reason for reason in problems):
        argument = next((offer for offer in offers if offer in _ROUNDING), "")
        hints.append(_ROUNDING.get(argument, "Remove fractions first, with `.dt.floor('s')`."))
    if "sort" in offers and any("go back in time" in reason for reason in problems):
        hints.append("sort=True sorts them.")
    if "on_error" in offers:
        hints.append("on_error='drop' leaves such rows out and counts them.")
    if len(problems) == 1:
        raise ValueError(" ".join([f"{lines[0]}.", *hints]))
    more = f"\n  and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
    numbered = "".join(f"\n  ({number}) {line}." for number, line in enumerate(lines, start=1))
    raise ValueError("\n".join([f"the log has {len(problems)} problems:{numbered}{more}", *([" ".join(hints)] if hints else [])]))


def merged_reports(reports: Iterable[Report]) -> Report:
    """One report of the checks of several parts of a log, with the first row of each reason."""
    made = Report(rows=0)
    for report in reports:
        made.rows += report.rows
        made.reordered += report.reordered
        made.notes = tuple(dict.fromkeys([*made.notes, *report.notes]))
        order: list[str] = list(made.dropped)
        for place, reason in enumerate(report.dropped):
            if reason not in order:  # after the reason that is before it in this report
                before = list(report.dropped)[place - 1] if place else None
                order.insert(0 if before is None else order.index(before) + 1, reason)
        for reason, count in report.dropped.items():
            rows, known = report.places[reason], made.places.get(reason)
            if known is None or (len(rows) and rows[0] < known[0]):
                made.examples[reason] = report.examples[reason]
            made.places[reason] = rows if known is None else np.union1d(known, rows)
            made.dropped[reason] = made.dropped.get(reason, 0) + count
        made.dropped = {reason: made.dropped[reason] for reason in order}
    return made


def check_members(events: pd.DataFrame, schema: Schema, on_error: str, places: np.ndarray) -> Report:
    """Of whole requests, in the order of the log, those that have two members; as the checks of the whole log report them."""
    checker = _Checker(events, on_error, places)
    _check_requests(schema, events, np.zeros(len(events), dtype=np.int64), checker)
    return checker.report


def _check_keys(schema: Schema, events: pd.DataFrame, checker: _Checker) -> None:
    for role, name in (("member", schema.member), ("request", schema.request), ("session", schema.session)):
        if name is None:
            continue
        checker.fault(events[name].isna().to_numpy(dtype=bool), name, f"must hold a {role} in every row")
        if name != schema.time:
            checker.faults(name, key_faults(events[name]))


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
        elif isinstance(feature, Ids):
            few[feature.name] = [tuple(row) for row in feature.texts(few[feature.name]).tolist()]
    bad = np.zeros(len(events), dtype=bool)
    bad[rows] = few.duplicated().to_numpy()
    checker.fault(bad, schema.request, "has a row that repeats an earlier row exactly (same member, request, item and all other values)")


def _first_rows(codes: np.ndarray) -> np.ndarray:
    """For every row the first row of its group."""
    first = np.empty(int(codes.max()) + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of repeated indices the last assignment stays: the first row
    return np.asarray(first[codes])


def _check_requests(schema: Schema, events: pd.DataFrame, seconds: np.ndarray, checker: _Checker) -> None:
    for column, what in ((schema.member, "member"), (schema.time, "time")):
        rows = np.flatnonzero(checker.alive)
        if not len(rows):
            return
        request = pd.factorize(events[schema.request].iloc[rows])[0]
        values = seconds[rows] if what == "time" else pd.factorize(events[column].iloc[rows])[0]
        differs = values != values[_first_rows(request)]
        faulty = np.zeros(int(request.max()) + 1, dtype=bool)
        faulty[request[differs]] = True
        bad = np.zeros(len(events), dtype=bool)
        # The right value is unknown: all rows of the request are left out, but the error shows a row that differs.
        bad[rows] = differs if checker.on_error == "raise" else faulty[request]
        checker.fault(bad, column, f"must hold one {what} for all rows of a request")
        if checker.on_error == "raise":
            checker.alive[rows[faulty[request]]] = False


def _check_members(schema: Schema, events: pd.DataFrame, checker: _Checker) -> None:
    """Columns of the member have one value in a request; between requests they may change."""
    for feature in schema.features_known("member"):
        rows = np.flatnonzero(checker.alive)
        if not len(rows):
            return
        request, values = pd.factorize(events[schema.request].iloc[rows])[0], events[feature.name].iloc[rows]
        codes, first = value_codes(feature, values), _first_rows(request)
        differs = codes != codes[first]
        faulty = np.zeros(int(request.max()) + 1, dtype=bool)
        faulty[request[differs]] = True
        bad = np.zeros(len(events), dtype=bool)
        bad[rows] = differs if checker.on_error == "raise" else faulty[request]  # as in `_check_requests`
        reason = "must be the same in all rows of a request (known='member')"
        checker.fault(bad, feature.name, reason)
        if differs.any():
            row = int(differs.argmax())
            places = checker.places[rows[differs]]
            listed = ", ".join(map(str, places[:_MOST_PROBLEMS])) + (", ..." if len(places) > _MOST_PROBLEMS else "")
            found = f"{shown(values.iloc[row])} at {at_row(int(places[0]), events.index, int(rows[row]))}"
            found += f", the first of rows {listed}" if len(places) > 1 else ""
            other = f"{shown(values.iloc[first[row]])} at row {int(checker.places[rows[first[row]]])}"
            checker.report.examples[f"column '{feature.name}' {reason}"] = f"{found}, and {other} of the same request"
        if checker.on_error == "raise":
            checker.alive[rows[faulty[request]]] = False


def _check_positions(schema: Schema, events: pd.DataFrame, checker: _Checker) -> np.ndarray | None:
    """The positions as numbers, NaN where there is none."""
    if schema.position is None:
        return None
    positions, wrong = numbers_of(events[schema.position])
    known = ~np.isnan(positions)
    with np.errstate(invalid="ignore"):
        bad = wrong | (known & ((positions != np.floor(positions)) | (positions < 1) | (positions > INT32_MAX)))
    checker.fault(bad, schema.position, "must hold whole numbers, 1 = shown first (or be missing = not known)")
    return positions


def _check_places(schema: Schema, events: pd.DataFrame, positions: np.ndarray | None, checker: _Checker) -> None:
    if schema.position is None or positions is None:
        return
    rows = np.flatnonzero(checker.alive & ~np.isnan(positions))
    request = pd.factorize(events[schema.request].iloc[rows])[0]
    repeated = np.zeros(len(events), dtype=bool)
    repeated[rows] = pd.DataFrame({"request": request, "position": positions[rows]}).duplicated().to_numpy()
    checker.fault(repeated, schema.position, "must not repeat inside a request")


def check_events(
    events: pd.DataFrame, schema: Schema, on_error: str = "raise", sort: bool = False, round: str | None = None
) -> tuple[pd.DataFrame, Report]:
    """Check a log against its schema.

    Faults, in this order: a missing column; a member, request or session that is missing or no key (float16 and float32, floats of 2**53 or
    more, lists); a time that is missing, not whole, in float16 or float32, before the schema's epoch or too late for int32; every value
    that the encoder of its column refuses: ids that are neither integers nor strings, bytes and texts that are not Unicode, sets of ids
    that are no lists or are too long, numbers that are text, not finite, beyond float32, negative under a logarithm, or missing without a
    stated substitute, vectors of a wrong size or type or not finite, labels other than 0 and 1; a position that is not a whole number >= 1;
    a row that is equal to an earlier one; a request with two members or two times; a position that repeats inside its request, or a column
    known='member' that does not stay the same in it; a row that comes after a later row of the same member. The rows that pass can be
    encoded.

    A warning names values of a `Category` that its vocabulary probably means but spells in another way, and a vocabulary that has less
    than half of the values.

    Args:
        events: one row per impression.
        schema: what the columns are.
        on_error: "raise": one error with up to ten problems. "drop": faulty rows are left out and counted in the report. A repeated row
            keeps its first copy; of a request with two members, times or values of a member's column all rows are left out, since the right
            value is unknown; of a repeated position the first row is kept.
        sort: True sorts the rows by time (stable) where some member's rows are out of order, and reports how many were.
            False (default): such rows are faults.
        round: 'floor', 'ceil' or 'nearest': times are checked as rounded to whole seconds. The rows keep their own times;
            `build_sequences` takes the same argument. None: a fraction of a second is a fault.

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
    rows, report = checked_rows(events, schema, on_error, sort, round, offers=("on_error", "sort", "round"))
    whole = len(rows) == len(events) and not report.reordered
    return events if whole else events.iloc[rows], report


def checked_rows(
    events: pd.DataFrame,
    schema: Schema,
    on_error: str = "raise",
    sort: bool = False,
    round: str | None = None,
    offers: tuple[str, ...] = (),
    places: np.ndarray | None = None,
    whole: bool = True,
) -> tuple[np.ndarray, Report]:
    """The places of the rows that pass the checks of `check_events`, in the order that it returns, and its report.

    Args:
        events, schema, on_error, sort, round: as `check_events`.
        offers: those of the arguments `on_error`, `sort` and `round` that the caller's caller can give, 'log' for the `round` of its `Log`:
            errors name no other.
        places: (rows,) where each row is in the frame that the user has; None: this is it.
        whole: whether faults and notes are raised and warned of here; False: of a part of a log, they are in the report alone.
    """
    require_frame(events)
    require_kind(schema, Schema, "schema", "`Schema.load(path)` reads a file")
    if on_error not in ("raise", "drop"):
        raise ValueError(f"`on_error` must be 'raise' or 'drop'. Received: on_error={on_error!r}")
    events = named_columns(schema, events)
    for column in schema.columns:
        require_column(events, column, f"of the schema is not in the log{schema.count_hint(column)}")
    events = native_frame(events, schema.columns)
    checker = _Checker(events, on_error, places)
    _check_keys(schema, events, checker)
    seconds, faults = schema.model_seconds(events[schema.time], round)
    checker.faults(schema.time, faults)
    for feature in (*schema.features, *schema.actions):
        checker.faults(feature.name, feature.faults(events[feature.name]))
    for task in schema.tasks:
        counts = counting_rows(schema.tasks, task, events)
        checker.faults(task.label, [(rows & counts, reason) for rows, reason in task.faults(events[task.label])])
        if task.weight is not None:
            checker.faults(task.weight, task.row_weights(events[task.weight])[1])
    positions = _check_positions(schema, events, checker)
    _check_duplicates(schema, events, checker)
    _check_requests(schema, events, seconds, checker)
    _check_members(schema, events, checker)
    _check_places(schema, events, positions, checker)
    rows = _in_order(schema, events, seconds, checker, sort)
    if whole:
        checker.finish(offers)
    checker.report.notes = vocabulary_notes(schema, events, checker.alive)
    for note in checker.report.notes if whole else ():
        warnings.warn(note, UserWarning, stacklevel=3)
    return rows, checker.report


def _in_order(schema: Schema, events: pd.DataFrame, seconds: np.ndarray, checker: _Checker, sort: bool) -> np.ndarray:
    rows = np.flatnonzero(checker.alive)
    member = pd.factorize(events[schema.member].iloc[rows])[0]
    latest = pd.Series(seconds[rows]).groupby(member).cummax().to_numpy()
    late = np.zeros(len(events), dtype=bool)
    late[rows] = seconds[rows] < latest
    if sort and late.any():
        checker.report.reordered = int(late.sum())
        return np.asarray(rows[np.argsort(seconds[rows], kind="stable")])
    checker.fault(late, schema.time, "must not go back in time within a member")
    return np.flatnonzero(checker.alive)
