"""Logs beyond memory: `prepare` and `score-log`."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import open_log_of, start_keras, step
from keras_ranking.schema import Schema

_UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def size(text: str) -> float:
    """A number of bytes, such as 4GB.

    Raises:
        ArgumentTypeError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be a size such as 4GB. Received: {text!r}")
    return float(found[1]) * _UNITS[(found[2] or "").upper()]


def prepare(args: argparse.Namespace) -> int:
    """Write a log as shards."""
    keep = tuple(args.keep or ())
    settings: dict[str, Any] = {"shards": args.shards, "keep": keep, "on_error": args.on_error or "raise", "verbose": True}
    kind, _, place = args.data.partition(":")
    engine = args.engine or ("duckdb" if kind == "parquet" else "memory")
    if engine == "memory":
        from keras_ranking.data import prepare as in_memory, with_counts

        log = replace(open_log_of(args, args.seed or 0, train_share=args.train_share), round=args.round)
        if any(count.name not in log.events for count in log.schema.counts):
            log = with_counts(log, on_error=args.on_error or "raise")
        shards = in_memory(log, args.out, **settings)
    else:
        if kind != "parquet":
            raise ValueError(f"`--engine {engine}` reads parquet:LOGS. Received: --data {args.data}")
        if args.schema is None:
            raise ValueError("`--schema FILE` must say what the columns of a parquet log are.")
        schema = Schema.load(args.schema)
        settings |= {"train_share": args.train_share, "round": args.round}
        if args.holdout_members is not None:
            settings["holdout"] = (args.holdout_members, args.holdout_seed or 0)
        with step(f"preparing {args.data} by {engine}"):
            shards = _by_engine(engine, place, schema, args, settings)
    splits = ", ".join(f"{name} {count:,}" for name, count in shards.splits.items())
    print(f"{shards.events:,} events of {shards.members:,} members in {shards.shards} shards ({splits})")
    if shards.report.dropped or shards.report.reordered:
        print(str(shards.report), file=sys.stderr)
    print(f"shards: {args.out}")
    return 0


def _by_engine(engine: str, place: str, schema: Schema, args: argparse.Namespace, settings: dict[str, Any]) -> Any:
    if engine == "duckdb":
        from keras_ranking.engines import duckdb

        return duckdb.prepare(place, schema, args.out, memory=args.memory or 4e9, **settings)
    from keras_ranking.engines import spark

    memory = f"{int((args.memory or 2e9) / 1e6)}m"
    return spark.prepare_files(place, schema, args.out, spark.session(memory), **settings)


def score_log(args: argparse.Namespace) -> int:
    """Write the probabilities of the rows of a log."""
    if not (Path(args.model_dir) / "model.keras").is_file():
        raise FileNotFoundError(f"no model at '{args.model_dir}': `keras-ranking train` writes such a folder")
    if args.engine == "spark" and not args.data.startswith("shards:"):
        raise ValueError(f"`--engine spark` scores --data shards:FOLDER, which `keras-ranking prepare` writes. Received: {args.data}")
    log = open_log_of(args, args.seed or 0, folder=args.model_dir)
    start_keras(args)
    from keras_ranking import training

    run = None
    if args.engine == "spark":
        from functools import partial

        from keras_ranking.engines import spark

        run = partial(spark.run, spark.session())
    with step("scoring"):
        about = training.score_log(args.model_dir, log, args.out, args.split, run=run, verbose=True, on_error=args.on_error or "raise")
    print(f"{about['rows']:,} rows scored: {args.out}")
    return 0
