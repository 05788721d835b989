"""A log with the counts that its schema states, the states that go on, and those that a run has saved."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.counts import ColumnCounts, PointInTime
from keras_ranking.data.counts.column_counts import counted_amounts, shown_rows
from keras_ranking.data.counts.point_in_time import FILE
from keras_ranking.data.log_columns import require_column, require_frame, unix_seconds
from keras_ranking.data.readers.log import HISTORY, Log, log_of, require_log
from keras_ranking.schema import Schema
from keras_ranking.values import numbers_of, require_kind, seconds_of

COUNTS = "counts"  # folder of the states in that of a run


def with_counts(log: Log | pd.DataFrame, counts: PointInTime | None = None, on_error: str = "raise", schema: Schema | None = None) -> Log:
    """The log with the columns that its schema states as `Count`, each as it was known at its row's time, and the states that go on.

    `kr.training.train`, `evaluate` and `warm_start` call it by themselves. All rows count, whatever their split: an impression of a
    validation row, of the history or of a held-out member was an impression. `Count(where=)` leaves rows out. A log that has all the
    columns is taken as it is: the columns of a service that has logged them, or of a larger log from which rows were drawn. States of other
    kinds go on too where `counts` has them; for them rows of split 'history' do not count, as in `PointInTime.added_to`.

    Args:
        log: a `Log`, or a DataFrame with `schema`; rows in any order.
        counts: states that have read earlier rows, such as those of a run; they stay as they are, and a copy goes on with the rows later
            than the newest that they have read. Older rows of the log are counted from the first row of the log. None: all are.
        on_error: 'raise', or 'drop': rows without a time, or without a finite action, count for nothing and have no counts (NaN).
        schema: of a DataFrame.

    Returns:
        A `Log` with the columns, and with the states as its `counts`.

    Raises:
        TypeError: `log` is neither, or a DataFrame without a schema; `counts` is no `PointInTime`.
        ValueError: a column that is not in the log, some of the columns but not all, or a bad value, with its row.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> clicks = kr.Count("author_id", action="click", window=3600)
        >>> schema = log.schema.model_copy(update={"features": (*log.schema.features, clicks)})
        >>> counted = kr.data.with_counts(kr.data.Log(log.events, schema, "mine"))
        >>> bool(counted.events["author_id_click_rate_1h"].between(0, 1).all())
        True
        >>> now = int(log.events["time"].max()) + 60
        >>> counted.counts.with_features(pd.DataFrame({"author_id": [3]}), now).columns.tolist()
        ['author_id', 'author_id_click_rate_1h']
    """
    return counted_log(log_of(log, schema), counts, on_error)


def counted_log(
    log: Log,
    counts: PointInTime | None = None,
    on_error: str = "raise",
    schema: Schema | None = None,
    matter: np.ndarray | None = None,
) -> Log:
    """`with_counts` for callers with other arguments.

    Args:
        log, counts, on_error: as `with_counts`.
        schema: of a model; None: that of the log.
        matter: rows whose counts are needed: a warning says so where their past is not in the log. None: all rows.
    """
    require_log(log)
    require_kind(counts, (PointInTime, type(None)), "counts", "`PointInTime.load(folder)` reads one")
    if log.counts is not None and all(name in log.events for name in log.counts.columns):
        counts = None  # they have read these rows already
    history = (log.events["split"] == HISTORY).to_numpy(dtype=bool)
    counting = Counting(log.schema if schema is None else schema, log.round, on_error)
    columns, states = counting.columns(log.events, log.counts if counts is None else counts, counts is not None, history, matter)
    if columns is None:
        return log if states is log.counts else replace(log, counts=states)
    return replace(log, events=pd.concat([log.events, columns], axis=1), counts=states)


def counted_events(events: pd.DataFrame, schema: Schema, counts: PointInTime | None) -> pd.DataFrame:
    """`with_counts` for rows without splits: the rows with the columns that they lack."""
    require_frame(events)
    if all(name in events for name in schema.columns):
        return events
    columns, _ = Counting(schema, None, "raise").columns(events, counts, counts is not None, np.zeros(len(events), dtype=bool), None)
    return events if columns is None else pd.concat([events, columns], axis=1)


def saved_counts(run: str | Path) -> PointInTime | None:
    """The states that a training has saved with its run.

    Args:
        run: folder of the run, or a file in it.

    Returns:
        `PointInTime`, or None for a run without.

    Raises:
        ValueError: states that are not those of the run's `history.json`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> views = kr.Count("author_id", of="views")
        >>> schema = log.schema.model_copy(update={"features": (*log.schema.features, views)})
        >>> options = {"features": ("author_id_views_all",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> log = kr.data.Log(log.events, schema, "mine")
        >>> model, history = kr.training.train(log, "lirank", "runs/counted", epochs=1, options=options, verbose=False)
        >>> kr.data.saved_counts("runs/counted").columns
        ('author_id_views_all',)
    """
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    if not (folder / COUNTS / FILE).is_file():
        return None
    counts = PointInTime.load(folder / COUNTS)
    history = folder / "history.json"
    kept = json.loads(history.read_text(encoding="utf-8")).get("counts") if history.is_file() else None
    if kept is not None and kept["digest"] != counts.digest:
        raise ValueError(f"the states in '{folder / COUNTS}' are not those of the run: their digest differs from that in {history.name}.")
    return counts


class Counting:
    """Columns for the rows of a log by its schema and by states.

    Args:
        schema, round, on_error: see `with_counts`.
        places: numbers of the rows in messages; None: their places.
    """

    def __init__(self, schema: Schema, round: str | None, on_error: str, places: np.ndarray | None = None) -> None:
        if on_error not in ("raise", "drop"):
            raise ValueError(f"`on_error` must be 'raise' or 'drop'. Received: on_error={on_error!r}")
        self.schema, self.round, self.on_error, self.places = schema, round, on_error, places

    def columns(
        self, events: pd.DataFrame, states: PointInTime | None, go_on: bool, history: np.ndarray, matter: np.ndarray | None
    ) -> tuple[pd.DataFrame | None, PointInTime | None]:
        """The columns that the rows lack, or None, and the states after them.

        Args:
            events: the rows.
            states: those there are.
            go_on: whether they have read earlier rows, and go on with these; else these rows.
            history: which rows count for `ColumnCounts` alone.
            matter: which rows need their past, for a warning; None: all.
        """
        named = set(self.schema.columns)
        wanted = [count.name for count in self.schema.counts]
        wanted += [name for name in (states.columns if states is not None and go_on else ()) if name in named and name not in wanted]
        lacking = [name for name in wanted if name not in events]
        if lacking and len(lacking) < len(wanted):
            there = [name for name in wanted if name in events]
            raise ValueError(
                f"the log must have all counts of its schema, which are then taken as they are, or none. It has {there}, not {lacking}"
            )
        if not lacking and not (go_on and states is not None):
            return None, states
        if not go_on and states is not None and set(lacking) & set(states.columns):
            states = None  # the columns were taken out
        own = [count for count in self.schema.counts if states is None or count.name not in states.columns]
        for name in dict.fromkeys([self.schema.time, *(source for count in self.schema.counts for source in count.sources)]):
            counts = [count.name for count in self.schema.counts if name in count.sources]
            require_column(events, name, f"of count '{counts[0]}' is not in the log" if counts else "of the schema is not in the log")
        made = None if not own else PointInTime([ColumnCounts(own, self.schema.time, self.schema.feedback_delay)])
        good, seconds = self.readable(events)
        found = []
        if states is not None and go_on:
            columns, states = self._gone_on(events, states, good, seconds, history, matter, bool(lacking))
            found.append(columns)
        if made is not None:
            found.append(_read(made, events, good, history, self.round))
            states = made if states is None else _joined(states, made)
        table = pd.concat(found, axis=1)[lacking].set_axis(events.index) if lacking else None
        return table, states

    def _gone_on(
        self,
        events: pd.DataFrame,
        states: PointInTime,
        good: np.ndarray,
        seconds: np.ndarray,
        history: np.ndarray,
        matter: np.ndarray | None,
        needed: bool,
    ) -> tuple[pd.DataFrame, PointInTime]:
        """The columns of rows that the states have read, counted from the first of the log, and of later ones."""
        after = good & (seconds > (states.last if states.last is not None else -(2**62)))
        before, on, found = good & ~after, states.copied(), []
        if needed and before.any():
            anew = states.anew()
            found.append(_read(anew, events, before, history, self.round))
            if anew.rows != states.rows and (before if matter is None else before & matter).any():
                warnings.warn(
                    f"rows up to the newest one that the counts have read, {states.last}, are counted from the first row of the log: "
                    f"it has {anew.rows:,} of the {states.rows:,} rows that were read",
                    UserWarning,
                    stacklevel=4,
                )
        found.append(_read(on, events, after, history, self.round))
        if len(found) == 1:
            return found[0], on
        values = np.where(before[:, None], found[0].to_numpy(), found[1].to_numpy())
        return pd.DataFrame(values, columns=found[0].columns), on

    def readable(self, events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Which rows can be counted, and their Unix seconds; all of them, where a bad row is an error."""
        good = np.ones(len(events), dtype=bool)
        if self.on_error == "raise":
            for count in self.schema.counts:
                counted_amounts(events, [count], good, self.places)
            seconds = unix_seconds(events, self.schema.time, self.round, self.places) if len(events) else np.zeros(0, dtype=np.int64)
            return good, seconds
        seconds, faults = seconds_of(events[self.schema.time], self.round)
        for bad, _ in faults:
            good &= ~bad
        for count in self.schema.counts:
            if count.action is not None:
                amounts, _ = numbers_of(events[count.action])
                good &= np.isfinite(amounts) | ~shown_rows(events, count.where, good)
        return good, seconds


def _read(states: PointInTime, events: pd.DataFrame, rows: np.ndarray, history: np.ndarray, round: str | None) -> pd.DataFrame:
    """The columns of all rows; NaN for those that are not read."""
    places = np.flatnonzero(rows)
    whole = len(places) == len(events)
    frame = (events if whole else events.iloc[places]).reset_index(drop=True)
    found = states.go_on(frame, ~history[places], np.ones(len(places), dtype=bool), round)
    return found if whole else found.set_axis(places).reindex(np.arange(len(events)))


def _joined(states: PointInTime, more: PointInTime) -> PointInTime:
    made = PointInTime([*states.parts, *more.parts], states.request, states.relative)
    made.rows = states.rows
    return made


def about_counts(counts: Any) -> dict[str, Any]:
    """For the record of a run."""
    return {"columns": list(counts.columns), "rows": counts.rows, "newest": counts.last, "digest": counts.digest}
