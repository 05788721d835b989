"""What is computed of one part of a log, all rows of some members: checks, sums, and the shard. Engines call nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Id
from keras_ranking.data.checks import Report, checked_rows
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.member_values import HeldOnce
from keras_ranking.data.readers.log import SPLITS
from keras_ranking.data.readers.splits import held_out, split_of_held_out
from keras_ranking.data.sequences import Sequences, encoded, within_float32
from keras_ranking.data.shards.container import read_arrays, write_arrays
from keras_ranking.data.shards.ids import ids_as_arrays
from keras_ranking.ops.hashing import distinct_ids, fingerprint64
from keras_ranking.schema import Schema
from keras_ranking.schema_sums import SchemaSums
from keras_ranking.values import native_frame, native_series, numbers_of, raise_first

ReadPart = Callable[[int, "tuple[str, ...] | None"], tuple[pd.DataFrame, np.ndarray]]
"""Reads the rows of a part, in the order of the log, and the number of each row in the log; of some columns, or of all."""


@dataclass(frozen=True)
class Plan:
    """How a log is prepared.

    Attributes:
        schema: what the columns are.
        shards: number of shards.
        name: of the log.
        keep: further columns of numbers that are kept, such as one of delays.
        round, on_error: as `build_sequences`.
        train_share: of the requests by time, where the log has no column `split`.
        holdout: share of the members that are held out, and a seed; None: none.
        preset: of the log.
        has_split: whether the log has a column `split`.
    """

    schema: Schema
    shards: int
    name: str
    keep: tuple[str, ...] = ()
    round: str | None = None
    on_error: str = "raise"
    train_share: float = 0.8
    holdout: tuple[float, int] | None = None
    preset: str | None = None
    has_split: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the log that are read."""
        return tuple(dict.fromkeys([*self.schema.columns, *self.keep, *(["split"] if self.has_split else [])]))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**{name: value for name, value in asdict(self).items() if name != "schema"}, "schema": self.schema.model_dump(mode="json")}


def request_times(number: int, read: ReadPart, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The distinct times of the requests of a part, and how many requests have each; rows without a usable time have none."""
    schema = plan.schema
    events, _ = read(number, (schema.time, schema.request))
    time, faults = schema.model_seconds(events[schema.time], round="floor")
    usable = ~np.any([rows for rows, _ in faults], axis=0) if faults else np.ones(len(events), dtype=bool)
    requests = native_series(events[schema.request])[usable]
    times, counts = np.unique(time[usable][~requests.duplicated().to_numpy()], return_counts=True)
    return times, counts


def check_part(number: int, read: ReadPart, plan: Plan, edge: int | None, left_out: np.ndarray, to: Path) -> None:
    """Check the rows of a part and sum its numbers; write what was found to a file of arrays.

    Args:
        number: of the part.
        read: reads it.
        plan: how the log is prepared.
        edge: model time from which requests are validation, in a log without a column `split`.
        left_out: rows of the log that are not read: of requests with several members.
        to: the file.
    """
    events, places = _rows(number, read, plan, left_out)
    words = _splits(events, plan, edge)
    unknown = {str(word): int(count) for word, count in pd.Series(words).value_counts(dropna=False).items() if word not in SPLITS}
    rows, report = checked_rows(events, plan.schema, plan.on_error, True, plan.round, (), places, whole=False)
    for name in plan.keep:
        _kept(events, name, places)
    sums = SchemaSums.of(plan.schema, events.iloc[rows[words[rows] == "train"]])
    keys, first = _requests_of(events[plan.schema.request].iloc[rows])
    found = {"report": report_as_plain(report), "sums": sums.plain(), "splits": unknown, "train": int((words[rows] == "train").sum())}
    arrays = {"rows": rows, "keys": keys, "first": places[rows][first] if len(first) else places[:0]}
    write_arrays(to, arrays, found)


def write_part(number: int, read: ReadPart, plan: Plan, edge: int | None, left_out: np.ndarray, facts: Path, to: Path) -> Report | None:
    """Encode a part that was checked, and write its shard.

    Args:
        number, read, edge, left_out: as `check_part`.
        plan: with a schema whose means and standard deviations are fitted.
        facts: what `check_part` wrote.
        to: the shard, which is there when it is whole; `to`.json has its digest and its sizes.

    Returns:
        A report of values that are beyond float32 after standardising, where they are errors; else None.
    """
    events, places = _rows(number, read, plan, left_out)
    words = _splits(events, plan, edge)
    about, known = read_arrays(facts)
    rows, report, schema = known["rows"], report_of_plain(about["report"]), plan.schema
    if not all(within_float32(schema, feature.name, events[feature.name].iloc[rows]) for feature in _standardised(schema)):
        rows, report = checked_rows(events, schema, plan.on_error, True, plan.round, (), places, whole=False)
        if plan.on_error == "raise":
            return report
    checked = native_frame(events, schema.columns)
    checked = checked if np.array_equal(rows, np.arange(len(events))) else checked.iloc[rows]
    sequences = encoded(checked, places[rows], np.ones(len(rows), dtype=bool), schema, plan.round, report)
    place = np.searchsorted(places, sequences.rows)  # parts are in the order of the log
    streams = events.iloc[place]
    arrays, about = _arrays(sequences, streams, words[place], plan)
    digest = write_arrays(to, arrays, about)
    about |= {"file": to.name, "digest": digest, "bytes": to.stat().st_size, "report": report_as_plain(report)}
    write_text(to.with_suffix(".json"), json.dumps(about))
    return None


def suspects(number: int, read: ReadPart, plan: Plan, keys: np.ndarray) -> pd.DataFrame:
    """The rows of a part whose request has one of these keys, as (member, request, row of the log)."""
    schema = plan.schema
    events, places = read(number, tuple(dict.fromkeys([schema.member, schema.request])))
    chosen = np.isin(_keys(events[schema.request]), keys) & events[[schema.member, schema.request]].notna().all(axis=1).to_numpy()
    return events[chosen].set_axis(places[chosen])


def report_as_plain(report: Report) -> dict[str, Any]:
    """For JSON."""
    plain: dict[str, Any] = {"rows": report.rows, "dropped": report.dropped, "examples": report.examples, "reordered": report.reordered}
    return {**plain, "notes": list(report.notes), "places": {name: rows.tolist() for name, rows in report.places.items()}}


def report_of_plain(plain: Mapping[str, Any]) -> Report:
    """What `report_as_plain` wrote."""
    places = {name: np.array(rows, dtype=np.int64) for name, rows in plain["places"].items()}
    return Report(plain["rows"], dict(plain["dropped"]), dict(plain["examples"]), places, plain["reordered"], tuple(plain["notes"]))


def item_column(schema: Schema) -> Id | None:
    """The first `Id` among the features, by which propensities tell items apart."""
    return next((feature for feature in schema.features if isinstance(feature, Id)), None)


def _rows(number: int, read: ReadPart, plan: Plan, left_out: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    events, places = read(number, plan.columns)
    if len(left_out):
        chosen = ~np.isin(places, left_out)
        events, places = events[chosen], places[chosen]
    return events.set_axis(pd.Index(places)), places


def _splits(events: pd.DataFrame, plan: Plan, edge: int | None) -> np.ndarray:
    if plan.has_split:
        words = events["split"].to_numpy(dtype=object)
    else:
        time, faults = plan.schema.model_seconds(events[plan.schema.time], round="floor")
        usable = ~np.any([rows for rows, _ in faults], axis=0) if faults else np.ones(len(events), dtype=bool)
        later = np.zeros(len(events), dtype=bool) if edge is None else usable & (time >= edge)
        words = np.where(later, "validation", "train").astype(object)
    if plan.holdout is not None:
        words = split_of_held_out(words, held_out(events[plan.schema.member], *plan.holdout)[0])
    return words


def _standardised(schema: Schema) -> list[Any]:
    return [feature for feature in (*schema.features, *schema.actions) if getattr(feature, "transform", "").endswith("standardise")]


def _keys(requests: pd.Series) -> np.ndarray:
    return pd.util.hash_pandas_object(native_series(requests), index=False, categorize=True).to_numpy(dtype=np.uint64)


def _requests_of(requests: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys of requests, sorted, and the first row of each."""
    return np.unique(_keys(requests), return_index=True)


def _kept(events: pd.DataFrame, name: str, places: np.ndarray) -> np.ndarray:
    require_column(events, name, "of `keep` is not in the log")
    numbers, wrong = numbers_of(events[name])
    raise_first(name, events[name], [(wrong, "is kept and must hold numbers")], places=places)
    return numbers


def _arrays(sequences: Sequences, events: pd.DataFrame, words: np.ndarray, plan: Plan) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    schema, starts = plan.schema, sequences.request_starts
    split = np.zeros(len(words), dtype=np.uint8)
    for code, word in enumerate(SPLITS):
        split[words == word] = code
    arrays = {
        "offsets": sequences.offsets,
        "time": sequences.time,
        "starts": starts,
        "request": sequences.request[starts[:-1]],
        "position": sequences.position,
        "rows": sequences.rows,
        "split": split,
    }
    if sequences.session is not None:
        arrays["session"] = sequences.session
    for name, values in sequences.columns.items():
        arrays[f"column/{name}"] = values.values if isinstance(values, HeldOnce) else values
        if isinstance(values, HeldOnce):  # the same runs for all columns of the member
            arrays["member_run"] = values.run
    arrays |= {f"label/{name}": values for name, values in sequences.labels.items()}
    arrays |= {f"weight/{name}": values for name, values in sequences.weights.items()}
    arrays |= {f"keep/{name}": _kept(events, name, sequences.rows) for name in plan.keep}
    arrays |= ids_as_arrays(events[schema.member].iloc[sequences.offsets[:-1]], "member_id")
    arrays |= ids_as_arrays(events[schema.request].iloc[starts[:-1]], "request_id")
    item = item_column(schema)
    if item is not None and schema.position is not None:
        found = distinct_ids(events[item.name])
        hashed = np.where(found.texts == "", np.uint64(0), fingerprint64(found.texts) if len(found.texts) else np.zeros(0, dtype=np.uint64))
        arrays["item"] = found.at_rows(hashed.astype(np.uint64), np.uint64(0))
    of_split = {word: split == code for code, word in enumerate(SPLITS)}
    about = {
        "events": sequences.num_events,
        "members": sequences.num_members,
        "requests": len(starts) - 1,
        "longest_request": int(np.diff(starts).max(initial=0)),
        "splits": {word: int(chosen.sum()) for word, chosen in of_split.items() if chosen.any()},
        "newest": {word: int(sequences.time[chosen].max()) for word, chosen in of_split.items() if chosen.any()},
        "oldest": {word: int(sequences.time[chosen].min()) for word, chosen in of_split.items() if chosen.any()},
        "known": {name: int((~np.isnan(label)).sum()) for name, label in sequences.labels.items()},
    }
    return arrays, about


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name when it is whole."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def fitted_plan(plan: Plan, sums: SchemaSums) -> Plan:
    """The plan with the constants of the schema."""
    return replace(plan, schema=sums.fitted(plan.schema))
