"""`Count` columns that the files of a log lack: an engine divides the rows by key, and `keras_ranking.data` counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Count
from keras_ranking.data.counted import Counting
from keras_ranking.data.log_columns import key_faults
from keras_ranking.data.shards.ids import shard_of
from keras_ranking.data.shards.parts import Plan, ReadPart
from keras_ranking.data.shards.prepare import Run
from keras_ranking.schema import Schema
from keras_ranking.values import raise_first

PartOf = Callable[[Sequence[Any], int], np.ndarray]
"""The number of the part of each row, from the columns of its key and the number of parts."""
_MIXED = 2**31 - 1


@dataclass(frozen=True)
class KeyGroup:
    """Counts of one key, which are counted together.

    Attributes:
        counts: they.
        key: their columns.
        read: all counts, whose columns say which rows can be read.
        columns: all columns that are read.
    """

    counts: tuple[Count, ...]
    key: tuple[str, ...]
    read: tuple[Count, ...]
    columns: tuple[str, ...]


def key_groups(schema: Schema, columns: Sequence[str]) -> list[KeyGroup]:
    """The counts of a schema that a log lacks, by key.

    Args:
        schema: what the columns are.
        columns: of the log.

    Raises:
        ValueError: the log has some of the counts, and not all.
    """
    there = [count.name for count in schema.counts if count.name in columns]
    lacking = [count for count in schema.counts if count.name not in columns]
    if there and lacking:
        names = [count.name for count in lacking]
        raise ValueError(
            f"the log must have all counts of its schema, which are then taken as they are, or none. It has {there}, not {names}"
        )
    groups: dict[tuple[str, ...], list[Count]] = {}
    for count in lacking:
        groups.setdefault(count.key_columns, []).append(count)
    amounts = [name for count in lacking for name in (count.action, count.where) if name is not None]
    return [
        KeyGroup(tuple(counts), key, tuple(lacking), tuple(dict.fromkeys([schema.time, *key, *amounts]))) for key, counts in groups.items()
    ]


def part_of_keys(columns: Sequence[pd.Series], parts: int) -> np.ndarray:
    """The number of the part of each key, int32: equal keys have the same."""
    mixed = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        mixed = (mixed * 31 + shard_of(column, _MIXED)) % _MIXED
    return (mixed % parts).astype(np.int32)


def part_of_members(columns: Sequence[pd.Series], parts: int) -> np.ndarray:
    """The number of the shard of each member, who is in the only column."""
    return shard_of(columns[0], parts)


def count_parts(run: Run, read: ReadPart, group: KeyGroup, plan: Plan, row: str, to: Path) -> None:
    """Count the rows of parts, each of which has all rows of some keys, and write the columns with the numbers of the rows.

    The numbers are those of `kr.data.with_counts` of the whole log, bit for bit: other keys change no bit of a sum.

    Args:
        run: calls a function with each number of a part.
        read: reads a part.
        group: what is counted.
        plan: how the log is prepared.
        row: name of the column of row numbers.
        to: folder of the columns.

    Raises:
        ValueError: a bad value, with its row in the log.
    """
    for error in run(partial(_tried, read=read, group=group, plan=plan, row=row, to=to), range(plan.shards)):
        if error is not None:
            raise ValueError(error)


def _tried(number: int, **settings: Any) -> str | None:
    """What is wrong with a part: an exception of a worker would come as one of its engine."""
    try:
        _count_part(number, **settings)
    except ValueError as error:
        return str(error)
    return None


def _count_part(number: int, read: ReadPart, group: KeyGroup, plan: Plan, row: str, to: Path) -> None:
    events, places = read(number, group.columns)
    if not len(events):
        return
    for column in group.key:
        raise_first(column, events[column], key_faults(events[column]), places=places)
    # A row that one of the counts cannot read counts for none of them.
    good, _ = Counting(plan.schema.model_copy(update={"features": group.read}), plan.round, plan.on_error, places).readable(events)
    counting = Counting(plan.schema.model_copy(update={"features": group.counts}), plan.round, plan.on_error, places[good])
    counted, _ = counting.columns(events[good].reset_index(drop=True), None, False, np.zeros(int(good.sum()), dtype=bool), None)
    to.mkdir(parents=True, exist_ok=True)
    temporary = to / f".{os.getpid()}.{number:05d}"
    columns = pd.DataFrame(counted).set_axis(np.flatnonzero(good)).reindex(np.arange(len(events)))
    columns.assign(**{row: places}).to_parquet(temporary, index=False)
    os.replace(temporary, to / f"{number:05d}.parquet")
