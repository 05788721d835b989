"""Preparing a log that is larger than the memory of one machine: DuckDB divides it by member, and `keras_ranking.data` computes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from keras_ranking.data.shards.log import ShardedLog
from keras_ranking.data.shards.parts import Plan
from keras_ranking.data.shards.prepare import build, teller
from keras_ranking.engines.counting import PartOf, count_parts, part_of_keys, part_of_members
from keras_ranking.engines.files import PART, ROW, ParquetLog, parquet_log, part_reader
from keras_ranking.schema import Schema

_MEMORY = 4e9
_WAITING = 1_000_000


def prepare(
    place: str | Path,
    schema: Schema,
    out: str | Path,
    shards: int | None = None,
    memory: float = _MEMORY,
    keep: Sequence[str] = (),
    on_error: str = "raise",
    verbose: bool = False,
    **settings: Any,
) -> ShardedLog:
    """Write a log of parquet files as shards, with bounded memory; the result is that of `keras_ranking.data.prepare`, bit for bit.

    Only the columns that the schema names are read. `Count` columns that the files lack are counted, as `kr.data.with_counts` counts them.
    Needs the extra `scale`.

    Args:
        place: a folder of .parquet files, a pattern, or a file. Rows are in the order of the paths, then as in the file.
        schema: what the columns are.
        out, shards, keep, on_error, verbose: as `keras_ranking.data.prepare`.
        memory: bytes that DuckDB may use, about; it writes what does not fit to files beside `out`.
        settings: `round`, `train_share`, `name`, `holdout` (share of members, seed).

    Returns:
        `ShardedLog`.

    Raises:
        ModuleNotFoundError: without the extra.
        FileNotFoundError, FileExistsError: no such files; `out` exists.
        ValueError: as `keras_ranking.data.prepare`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> Path("logs").mkdir()
        >>> log.events.to_parquet("logs/day1.parquet", index=False)
        >>> kr.engines.duckdb.prepare("logs", log.schema, "runs/duckdb_shards").events == len(log.events)
        True
    """
    if memory < 2e8:
        raise ValueError(f"`memory` must be at least 200 MB, in bytes. Received: memory={memory}")
    engine = _imported()
    log = parquet_log(place)
    plan = log.plan(
        schema, settings.pop("name", Path(place).stem or "log"), shards, memory, keep=tuple(keep), on_error=on_error, **settings
    )

    def split(folder: Path) -> None:
        _split(engine, log, plan, folder, memory)

    return build(out, plan, log.source, split, partial(part_reader, schema=schema), tell=teller(verbose))


def _imported() -> Any:
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the engine 'duckdb' needs DuckDB: pip install 'keras-ranking[scale]'", name="duckdb") from error
    return duckdb


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _split(engine: Any, log: ParquetLog, plan: Plan, folder: Path, memory: float) -> None:
    """Write the rows of each part below a folder, with their numbers in the log, and with the counts that the log lacks."""
    with engine.connect(config={"memory_limit": f"{int(memory * 0.6)}B", "temp_directory": str(folder.parent / "spilled")}) as connection:
        connection.execute("SET preserve_insertion_order = false")
        # Rows that wait to be written, of all parts together: a threshold that does not fall with their number would hold the whole log.
        waiting = int(_WAITING * memory / _MEMORY)
        connection.execute(f"SET partitioned_write_flush_threshold = {max(2_000, min(200_000, waiting // plan.shards))}")
        connection.execute(f"SET partitioned_write_max_open_files = {min(plan.shards, 100)}")
        connection.execute("CREATE TEMP TABLE firsts (filename VARCHAR, first BIGINT)")
        connection.executemany("INSERT INTO firsts VALUES (?, ?)", [list(pair) for pair in zip(log.files, log.first, strict=True)])
        files = f"read_parquet([{', '.join(map(_text, log.files))}], union_by_name = true, file_row_number = true, filename = true)"
        rows = f"(SELECT *, first + file_row_number AS {ROW} FROM {files} JOIN firsts USING (filename))"
        shutil.rmtree(folder.parent / "counted", ignore_errors=True)
        counted = []
        for at, group in enumerate(log.counts(plan.schema)):
            place = folder.parent / "counted" / str(at)
            key = log.sources(group.key, plan.schema)
            names = log.sources(group.columns, plan.schema)
            _write_parts(connection, rows, names, key, plan.shards, place / "rows", part_of_keys, f"kr_key_{at}")
            read = part_reader(place / "rows", plan.schema)
            count_parts(map, read, group, plan, ROW, place / "columns")
            shutil.rmtree(place / "rows")
            made = ", ".join(_text(str(file)) for file in sorted((place / "columns").glob("*.parquet")))
            counted.append(f" JOIN read_parquet([{made}]) USING ({ROW})")
        names = [*log.sources(plan.columns, plan.schema), *(count.name for group in log.counts(plan.schema) for count in group.counts)]
        rows = f"(SELECT * FROM {rows}{''.join(counted)})"
        _write_parts(connection, rows, names, [plan.schema.member], plan.shards, folder, part_of_members, "kr_part")
        shutil.rmtree(folder.parent / "counted", ignore_errors=True)


def _write_parts(
    connection: Any, rows: str, names: Sequence[str], key: Sequence[str], parts: int, folder: Path, part_of: PartOf, function: str
) -> None:
    """Write these columns of rows below a folder, each row in the part of its key."""
    import pyarrow as pa

    packed = f"struct_pack({', '.join(f'k{at} := {_quoted(name)}' for at, name in enumerate(key))})"
    kind = connection.execute(f"SELECT typeof({packed}) FROM {rows} LIMIT 1").fetchall()[0][0]

    def part(keys: Any) -> Any:
        columns = [chunk.flatten() for chunk in (keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys])]
        return pa.array(part_of([pa.chunked_array(column).to_pandas() for column in zip(*columns, strict=True)], parts))

    connection.create_function(function, part, [kind], "INTEGER", type="arrow", null_handling="special")
    called = f"{function}({packed}) AS {PART}"
    chosen = f"SELECT {', '.join(map(_quoted, names))}, {ROW}, {called} FROM {rows}"
    folder.mkdir(parents=True, exist_ok=True)
    how = f"FORMAT parquet, PARTITION_BY ({PART}), COMPRESSION zstd, OVERWRITE_OR_IGNORE true"
    connection.execute(f"COPY ({chosen}) TO {_text(str(folder))} ({how})").fetchall()
