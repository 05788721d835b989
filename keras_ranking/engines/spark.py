"""Preparing and scoring a log on Spark: Spark divides the log by member, and its workers run the functions of this package."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from keras_ranking.data.shards.log import ShardedLog
from keras_ranking.data.shards.parts import Plan
from keras_ranking.data.shards.prepare import build, shard_count, teller
from keras_ranking.engines.counting import PartOf, count_parts, part_of_keys, part_of_members
from keras_ranking.engines.files import PART, ROW, ParquetLog, parquet_log, part_reader
from keras_ranking.schema import Schema


def session(memory: str = "2g", **settings: str) -> Any:
    """A Spark session on this machine, with one worker for each core.

    Args:
        memory: of the Java process.
        settings: further ones of Spark, such as `**{"spark.sql.shuffle.partitions": "8"}`.

    Raises:
        ModuleNotFoundError: without the extra `spark`.
        RuntimeError: without Java.

    Example:
        >>> spark = kr.engines.spark.session()  # doctest: +SKIP
    """
    sql = _imported()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else workers are the first `python3` of the path
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    made = sql.SparkSession.builder.appName("keras_ranking")
    own = {
        "spark.master": "local[*]",
        "spark.driver.memory": memory,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.caseSensitive": "true",
    }
    for name, value in {**own, **settings}.items():
        made = made.config(name, value)
    try:
        spark = made.getOrCreate()
    except Exception as error:
        if "JAVA" in str(error).upper():
            raise RuntimeError(
                f"the engine 'spark' needs Java 17 or later: on Debian, `apt-get install default-jre-headless`. {error}"
            ) from error
        raise
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def _imported() -> Any:
    try:
        import pyspark.sql
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the engine 'spark' needs PySpark: pip install 'keras-ranking[spark]'", name="pyspark") from error
    return pyspark.sql


def prepare(
    df: Any,
    schema: Schema,
    out: str | Path,
    shards: int | None = None,
    row: str | None = None,
    keep: Sequence[str] = (),
    on_error: str = "raise",
    verbose: bool = False,
    **settings: Any,
) -> ShardedLog:
    """Write a Spark DataFrame as shards, inside a job of your own; the result is that of `keras_ranking.data.prepare`, bit for bit.

    Spark divides the rows by member and writes the parts; then its workers check and encode one part each. A worker that is lost is
    replaced by Spark, and the result is the same. Needs the extra `spark`.

    Args:
        df: one row per impression.
        schema: what the columns are; no other columns are read.
        out: folder to write, which must not exist, on a file system that all workers share.
        shards, keep, on_error, verbose: as `keras_ranking.data.prepare`.
        row: column of distinct whole numbers that give the order of the log, in which rows of one member and second stay. None: `df` comes
            from parquet files, in the order of their paths and of the rows in them.
        settings: `round`, `train_share`, `name`, `holdout` (share of members, seed).

    Returns:
        `ShardedLog`.

    Raises:
        ModuleNotFoundError: without the extra.
        FileExistsError: `out` exists.
        ValueError: as `keras_ranking.data.prepare`; a `df` without files and without `row`.

    Example:
        >>> df = spark.read.parquet("logs")  # doctest: +SKIP
        >>> kr.engines.spark.prepare(df, schema, "/shared/shards", shards=64)  # doctest: +SKIP
    """
    _imported()
    if row is not None:
        if row not in df.columns:
            raise ValueError(f"`row` must be a column of `df`. Received: row={row!r}, columns {sorted(df.columns)}")
        numbered, rows, source = df.withColumn(ROW, df[row].cast("long")), df.count(), {"row": row}
        common = tuple(df.columns)
    else:
        log = _files_of(df)
        numbered, rows, source, common = _numbered(df, log), log.rows, log.source, log.columns
    names = ParquetLog((), (), rows, tuple(name for name in df.columns if name in common))
    name = settings.pop("name", "spark")
    plan = names.plan(schema, name, shard_count(rows, shards), keep=tuple(keep), on_error=on_error, **settings)
    split, reader = partial(_split, numbered, names, plan), partial(part_reader, schema=schema)
    return build(out, plan, source, split, reader, partial(run, df.sparkSession), teller(verbose))


def prepare_files(place: str | Path, schema: Schema, out: str | Path, spark: Any = None, **settings: Any) -> ShardedLog:
    """`prepare` of parquet files: a folder, a pattern or a file.

    Args:
        place, schema, out: as `keras_ranking.engines.duckdb.prepare`.
        spark: a session; None: one on this machine.
        settings: further ones of `prepare`.

    Returns:
        `ShardedLog`.

    Example:
        >>> kr.engines.spark.prepare_files("logs/", log.schema, "runs/shards")  # doctest: +SKIP
    """
    log = parquet_log(place)
    spark = session() if spark is None else spark
    settings.setdefault("name", Path(place).stem or "log")
    return prepare(spark.read.option("mergeSchema", "true").parquet(*log.files), schema, out, **settings)


def run(spark: Any, function: Callable[[int], Any], numbers: Sequence[int]) -> Iterable[Any]:
    """Call a function with each number on the workers; a call that fails is made again, up to Spark's limit."""
    if not len(numbers):
        return []
    made = spark.sparkContext.parallelize(list(numbers), len(numbers)).map(function)
    return list(made.collect())


def _files_of(df: Any) -> ParquetLog:
    names = [name.removeprefix("file://") for name in df.inputFiles()]
    if not names or not all(name.endswith(".parquet") for name in names):
        raise ValueError("`row` must name a column that numbers the rows where `df` does not come from parquet files. Received: row=None")
    from urllib.parse import unquote

    logs = [parquet_log(name) for name in sorted(unquote(name) for name in names)]
    first, at = [], 0
    for log in logs:
        first.append(at)
        at += log.rows
    common = tuple(name for name in logs[0].columns if all(name in log.columns for log in logs))
    return ParquetLog(tuple(log.files[0] for log in logs), tuple(first), at, common)


def _numbered(df: Any, log: ParquetLog) -> Any:
    """The rows with their numbers in the log: the first of their file and the place in it."""
    from pyspark.sql import functions as F

    spark = df.sparkSession
    firsts = spark.createDataFrame(
        [(Path(file).as_uri(), first) for file, first in zip(log.files, log.first, strict=True)], ["__file", "__first"]
    )
    path = F.regexp_replace(F.col("_metadata.file_path"), "^file:/+", "file:///")
    found = df.select("*", path.alias("__path"), F.col("_metadata.row_index").alias("__place"))
    joined = found.join(F.broadcast(firsts), F.col("__path") == F.col("__file"))
    return joined.withColumn(ROW, F.col("__first") + F.col("__place"))


def _split(numbered: Any, log: ParquetLog, plan: Plan, folder: Path) -> None:
    """Write the rows of each part below a folder, with their numbers in the log, and with the counts that the log lacks."""
    spark, groups, counted = numbered.sparkSession, log.counts(plan.schema), folder.parent / "counted"
    shutil.rmtree(counted, ignore_errors=True)
    rows = numbered
    for at, group in enumerate(groups):
        place = counted / str(at)
        names = log.sources(group.columns, plan.schema)
        _write_parts(numbered, names, log.sources(group.key, plan.schema), plan.shards, place / "rows", part_of_keys)
        count_parts(partial(run, spark), part_reader(place / "rows", plan.schema), group, plan, ROW, place / "columns")
        shutil.rmtree(place / "rows")
        rows = rows.join(spark.read.parquet((place / "columns").resolve().as_uri()), ROW)
    names = [*log.sources(plan.columns, plan.schema), *(count.name for group in groups for count in group.counts)]
    _write_parts(rows, names, [plan.schema.member], plan.shards, folder, part_of_members)
    shutil.rmtree(counted, ignore_errors=True)


def _write_parts(rows: Any, names: Sequence[str], key: Sequence[str], parts: int, folder: Path, part_of: PartOf) -> None:
    """Write these columns of rows below a folder, each row in the part of its key."""
    from pyspark.sql import types as T

    chosen = rows.select(*[_name(name) for name in names], ROW)
    kinds = T.StructType([*chosen.schema.fields, T.StructField(PART, T.IntegerType())])
    divided = chosen.mapInArrow(partial(_with_part, key=tuple(key), parts=parts, part_of=part_of), kinds)
    spread = divided.repartition(min(parts, 2000), PART)
    spread.write.mode("overwrite").partitionBy(PART).option("compression", "zstd").parquet(folder.resolve().as_uri())


def _name(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


def _with_part(batches: Iterator[Any], key: tuple[str, ...], parts: int, part_of: PartOf) -> Iterator[Any]:
    import pyarrow as pa

    for batch in batches:
        part = pa.array(part_of([batch.column(name).to_pandas() for name in key], parts))
        yield pa.RecordBatch.from_arrays([*batch.columns, part], names=[*batch.schema.names, PART])
