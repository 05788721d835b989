"""Parquet files of a log and of its parts."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from keras_ranking.column_base import named_columns
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.shards.parts import Plan, ReadPart
from keras_ranking.data.shards.prepare import shard_count
from keras_ranking.engines.counting import KeyGroup, key_groups
from keras_ranking.schema import Schema

ROW, PART = "__row", "__part"  # columns that engines add: the number of a row in the log, and that of its part


@dataclass(frozen=True)
class ParquetLog:
    """Parquet files that are one log, in the order of their paths.

    Attributes:
        files: absolute paths.
        first: number of the first row of each file in the log.
        rows: of all files.
        columns: names that all files have.

    Example:
        >>> from keras_ranking.engines.files import parquet_log
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> Path("logs").mkdir()
        >>> log.events.to_parquet("logs/day1.parquet", index=False)
        >>> parquet_log("logs").rows == len(log.events)
        True
    """

    files: tuple[str, ...]
    first: tuple[int, ...]
    rows: int
    columns: tuple[str, ...]

    def plan(self, schema: Schema, name: str, shards: int | None = None, memory: float | None = None, **settings: Any) -> Plan:
        """How this log is prepared; `settings` are those of `Plan`.

        Raises:
            ValueError: a column that a file lacks.
        """
        made = Plan(schema, shard_count(self.rows, shards, memory), name, has_split="split" in self.columns, **settings)
        counted = {count.name for group in self.counts(schema) for count in group.counts}
        empty = pd.DataFrame(columns=list(self.columns))
        for column in dict.fromkeys([*made.columns, *(name for group in self.counts(schema) for name in group.columns)]):
            if column not in counted and not self.sources([column], schema):
                require_column(empty, column, f"is not in all of the {len(self.files)} files{schema.count_hint(column)}")
        return made

    def counts(self, schema: Schema) -> list[KeyGroup]:
        """The counts of the schema that the files lack."""
        return key_groups(schema, self.columns)

    def sources(self, names: Sequence[str], schema: Schema) -> list[str]:
        """The columns of the files that these are read from (`column=`)."""
        return source_columns(names, schema, self.columns)

    @property
    def source(self) -> dict[str, Any]:
        """What tells these files from others: paths, sizes and times of change."""
        found = [Path(file).stat() for file in self.files]
        return {"files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in zip(self.files, found, strict=True)]}


def parquet_log(place: str | Path) -> ParquetLog:
    """The parquet files of a folder, with those in folders below it, of a pattern such as 'logs/*.parquet', or one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no rows.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        files = sorted(str(file.resolve()) for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    else:
        files = sorted(str(Path(file).resolve()) for file in glob.glob(str(path), recursive=True))
    if not files:
        raise FileNotFoundError(f"`source` 'parquet:LOGS' must name a file, a folder of .parquet files or a pattern. Received: '{place}'")
    about = [pq.ParquetFile(file) for file in files]
    rows = [file.metadata.num_rows for file in about]
    names = [set(file.schema_arrow.names) for file in about]
    for file in about:
        file.close()
    if not sum(rows):
        raise ValueError(f"`source` must hold rows. Received: '{place}', which has none.")
    common = [name for name in pq.read_schema(files[0]).names if all(name in other for other in names)]
    return ParquetLog(tuple(files), tuple(int(at) for at in np.cumsum([0, *rows[:-1]])), int(sum(rows)), tuple(common))


def source_columns(names: Sequence[str], schema: Schema, columns: Sequence[str]) -> list[str]:
    """Of a file with these columns, those that the named ones are read from: their own, and the ones that `column=` says."""
    other = {feature.name: feature.column for feature in (*schema.features, *schema.actions) if feature.column is not None}
    found = [source for name in names for source in (name, other.get(name, name)) if source in columns]
    return list(dict.fromkeys(found))


def part_reader(folder: Path, schema: Schema) -> ReadPart:
    """Reads parts that an engine has written below a folder, as `__part=N/*.parquet`; columns have the names of the schema."""
    return partial(_read_part, folder=folder, schema=schema)


def _read_part(number: int, columns: tuple[str, ...] | None, folder: Path, schema: Schema) -> tuple[pd.DataFrame, np.ndarray]:
    files = sorted(file for file in (folder / f"{PART}={number}").glob("*.parquet") if not file.name.startswith((".", "_")))
    none = not files  # no member has this number: an empty frame with the columns of another part
    files = files or sorted(folder.rglob("*.parquet"))[:1]
    wanted = None if columns is None else [*source_columns(columns, schema, pq.read_schema(files[0]).names), ROW]
    tables = [pq.read_table(file, columns=wanted, partitioning=None) for file in files]
    frame, rows = _frame([table.slice(0, 0) for table in tables] if none else tables)
    frame = named_columns(schema, frame)
    return (frame if columns is None else frame[list(columns)]), rows


def _frame(tables: Sequence[Any]) -> tuple[pd.DataFrame, np.ndarray]:
    import pyarrow as pa

    table = pa.concat_tables(tables)
    rows = table.column(ROW).to_numpy().astype(np.int64)
    order = np.argsort(rows, kind="stable")
    if not np.array_equal(order, np.arange(len(rows))):
        table, rows = table.take(order), rows[order]
    table = table.drop_columns([name for name in (ROW, PART) if name in table.column_names])
    # Integers with missing ones stay integers: float64 would round ids from 2**53 on.
    gaps = {field.name for field in table.schema if pa.types.is_integer(field.type) and table.column(field.name).null_count}
    frame = table.drop_columns(sorted(gaps)).to_pandas(ignore_metadata=True, split_blocks=True)
    for name in gaps:
        column = table.column(name).combine_chunks()
        values = column.fill_null(0).to_numpy(zero_copy_only=False)
        frame[name] = pd.arrays.IntegerArray(values, column.is_null().to_numpy(zero_copy_only=False))
    return frame[table.column_names], rows
