"""Shared by several commands: starting Keras quietly, reading logs and rows, printing progress and tables."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Print a step and its duration on stderr."""
    begin = time.perf_counter()
    print(f"{what} ...", file=sys.stderr, flush=True)
    yield
    print(f"{what}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_imports(debug: bool = False) -> Iterator[None]:
    """Suppress what TensorFlow's C++ code writes to stderr during its import; if the import fails, print it.

    TensorFlow writes these lines before it reads TF_CPP_MIN_LOG_LEVEL, so they can only be redirected by the file descriptor.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if debug:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held.seek(0)
            text = held.read()
            if not isinstance(error, ModuleNotFoundError):
                os.write(kept, text)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def start_keras(args: argparse.Namespace) -> None:
    """Choose the backend and import Keras with it."""
    if args.backend:
        os.environ["KERAS_BACKEND"] = args.backend
    if "keras" not in sys.modules:
        print("starting keras ...", file=sys.stderr, flush=True)
    with quiet_imports(args.debug):
        import keras
    if args.backend and keras.backend.backend() != args.backend:
        raise ValueError(f"`--backend` cannot change once keras is imported. Received: {args.backend}; running: {keras.backend.backend()}")


def start_processes(distribution: str | None) -> bool:
    """Join the other processes of a training; whether this is the one that writes and prints."""
    if distribution is None:
        return True
    import keras

    if keras.backend.backend() == "jax" and int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", "1")) > 1:
        keras.distribution.initialize()
    from keras_ranking.training.distribution import plan_for

    return plan_for(distribution).writes


def open_log_of(args: argparse.Namespace, seed: int, train_share: float = 0.8, folder: str | None = None) -> Any:
    """The log of `--data`; prints its size and notes on stderr. Needs no Keras.

    A parquet log without `--schema` has that of the trained model in `folder`. `shards:FOLDER` is a `ShardedLog`.
    """
    if args.data.startswith("shards:"):
        return _open_shards(args)
    schema = args.schema
    if schema is None and folder is not None and args.data.startswith("parquet:"):
        stored = Path(folder) / "schema.json"
        schema = stored if stored.is_file() else None
    with step(f"reading {args.data}"):
        log = open_source(args, args.data, schema, seed, train_share)
    if getattr(args, "round", None) is not None:
        log = replace(log, round=args.round)
    counts = log.events["split"].value_counts(sort=False)
    print(f"log {log.name}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + " rows", file=sys.stderr)
    for note in getattr(log, "notes", ()):
        print(f"  {note}", file=sys.stderr)
    return log


def _open_shards(args: argparse.Namespace) -> Any:
    from keras_ranking.data import ShardedLog

    for name in ("schema", "release", "holdout_members", "holdout_seed", "on_error", "round"):
        if getattr(args, name, None) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"`--{flag}` is that of `keras-ranking prepare`, where the log is in shards. Received: {getattr(args, name)}")
    log = ShardedLog(args.data.removeprefix("shards:"))
    counts = ", ".join(f"{name} {count:,}" for name, count in log.splits.items())
    print(f"log {log.name}: {counts} rows in {log.shards} shards", file=sys.stderr)
    return log


def open_source(args: argparse.Namespace, source: str, schema: Any, seed: int, train_share: float) -> Any:
    """A log by the name of its source, with `--release` (that of `--data`), `--holdout-members` and `--holdout-seed`."""
    from keras_ranking.data import open_log

    share, seed_of_members = getattr(args, "holdout_members", None), getattr(args, "holdout_seed", None)
    if seed_of_members is not None and share is None:
        raise ValueError(f"`--holdout-seed` needs `--holdout-members SHARE`. Received: --holdout-seed {seed_of_members}")
    chosen = {"release": getattr(args, "release", None) if source == args.data else None, "holdout_members": share}
    return open_log(source, schema=schema, seed=seed, train_share=train_share, holdout_seed=seed_of_members or 0, **chosen)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table: columns as wide as their widest cell, the first left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def finite(value: Any) -> Any:
    """For JSON, which has no NaN: undefined metrics become null."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_value(value: Any) -> Any:
    """A numpy scalar as a Python number, for JSON."""
    return value.item() if hasattr(value, "item") else str(value)


def read_rows(path: str) -> Any:
    """Rows of a parquet, CSV or JSON file as a DataFrame."""
    import pandas as pd

    readers: dict[str, Callable[..., Any]] = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".gz": pd.read_csv}
    # Without conversions: pandas would turn texts such as "007" into numbers, and numbers into dates.
    readers[".json"] = functools.partial(pd.read_json, dtype=False, convert_dates=False, precise_float=True)
    reader = readers.get(Path(path).suffix)
    if reader is None:
        raise ValueError(f"rows must come from a .parquet, .csv, .csv.gz or .json file. Received: {path}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        rows = reader(path)
    except ImportError as error:
        raise ModuleNotFoundError("parquet needs pyarrow: pip install 'keras-ranking[data]'", name="pyarrow") from error
    names = list(map(str, getattr(rows, "columns", ())))
    if names and Path(path).suffix in (".csv", ".gz") and sum(map(_is_value, names)) * 2 >= len(names):
        raise ValueError(f"{path} must begin with a line of column names. Received: a first line of values, {names[:10]}")
    return rows


def _is_value(name: str) -> bool:
    """Whether a column name is a number, as pandas names the columns of a file without a header."""
    try:
        float(name)
    except ValueError:
        return False
    return True


def token(args: argparse.Namespace) -> str | None:
    """The token, from a file or the environment: every user of a machine can read its command lines."""
    if args.token_file is None:
        return os.environ.get("KERAS_RANKING_TOKEN") or None
    return Path(args.token_file).read_text(encoding="utf-8").strip()


def needs_server(args: argparse.Namespace) -> None:
    """Raise ValueError for arguments that only choose among the versions of a server."""
    for name in ("version", "label"):
        if getattr(args, name) is not None and not args.server:
            raise ValueError(f"`--{name}` needs --server ADDRESS.")


def client_of(args: argparse.Namespace, schema: Any, **settings: Any) -> Any:
    """A client of the server in `--server`, with `--version` or `--label`, token and TLS."""
    from keras_ranking.serving import Client, ClientTls

    protocol = "rest" if args.server.startswith("http") else "grpc"
    settings |= {"tls": ClientTls(args.tls_ca) if args.tls_ca is not None else False, "token": token(args)}
    settings |= {name: getattr(args, name, None) for name in ("version", "label")}
    return Client(args.server, schema, args.name, protocol, **settings)
