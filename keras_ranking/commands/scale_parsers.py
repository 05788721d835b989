"""The arguments and help texts of `prepare` and `score-log`."""

from __future__ import annotations

import argparse
from typing import Any

from keras_ranking.commands import scale
from keras_ranking.commands.parsers import DATA_HELP, command, data_arguments, positive, seed


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0, at most 1. Received: {text!r}")
    return share


def prepare_parser(subparsers: Any) -> None:
    """Arguments of `prepare`."""
    made = command(
        subparsers,
        "prepare",
        scale.prepare,
        "write a log of any size as shards, for --data shards:FOLDER",
        f"""\
{DATA_HELP}
for parquet, LOGS may be a folder of .parquet files or a pattern in quotes; only the columns of the schema are read.

  --engine duckdb   beyond the memory of this machine: DuckDB divides the log by member (default for parquet; the extra scale)
  --engine spark    the same by Spark, on this machine; in a job of your own: kr.engines.spark.prepare (the extra spark, and Java)
  --engine memory   a log that fits memory; counts that the schema states are counted

All give the same shards, bit for bit. DIR appears when it is whole; after an interruption, the same command goes on.

examples:
  keras-ranking prepare --data parquet:logs/ --schema log.schema.json --out runs/shards --memory 4GB
  keras-ranking prepare --data 'parquet:logs/2026-*/*.parquet' --schema log.schema.json --out runs/shards --engine spark
  keras-ranking train --data shards:runs/shards --out runs/cadet
  keras-ranking evaluate runs/cadet --data shards:runs/shards
  keras-ranking prepare --data parquet:new/ --schema runs/cadet/schema.json --out runs/new_shards
""",
    )
    data_arguments(made, "schema of a parquet log, as JSON; for a trained model, its schema.json, which has its constants")
    made.add_argument("--out", required=True, metavar="DIR", help="folder to write, which must not exist")
    made.add_argument("--shards", type=positive, metavar="N", help="number of shards (default: one for each 500,000 rows)")
    made.add_argument("--engine", choices=["memory", "duckdb", "spark"], help="what divides the log (see below)")
    made.add_argument("--memory", type=scale.size, metavar="SIZE", help="memory for the engine, such as 4GB (default: 4GB; spark 2GB)")
    made.add_argument("--keep", action="append", metavar="COLUMN", help="a further column of numbers to keep, such as that of delay_column")
    made.add_argument("--train-share", type=_share, default=0.8, metavar="SHARE", help="of the requests, in a log without `split` (0.8)")
    made.add_argument("--seed", type=seed, metavar="N", help="seed of the simulator (default: 0)")


def score_log_parser(subparsers: Any) -> None:
    """Arguments of `score-log`."""
    made = command(
        subparsers,
        "score-log",
        scale.score_log,
        "write the probabilities of all rows of a log as parquet files",
        f"""\
{DATA_HELP}
Each row is scored from earlier rows. DIR/part-*.parquet have the place of each row in the log, its request and member, and a column for
each task; DIR/_scores.json says how many there are. After an interruption, the same command goes on.

examples:
  keras-ranking score-log runs/cadet --data parquet:log.parquet --out runs/scores
  keras-ranking score-log runs/cadet --data shards:runs/shards --split test --out runs/scores
  keras-ranking score-log runs/cadet --data shards:runs/shards --out runs/scores --engine spark
""",
        keras=True,
    )
    made.add_argument("model_dir", metavar="MODEL_DIR", help="folder that `train` wrote")
    data_arguments(made, "schema of a parquet log, as JSON (default: that of the model); replaces that of another source")
    made.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    made.add_argument("--split", metavar="NAME", help="score the rows of this split (default: all rows)")
    made.add_argument("--engine", choices=["spark"], help="score shards on the workers of Spark (default: in this process)")
    made.add_argument("--seed", type=seed, metavar="N", help="seed of the simulator (default: 0)")


SCALE_PARSERS = (prepare_parser, score_log_parser)
