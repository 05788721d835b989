"""Opening a log by name: what the command line's `--data` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.readers import Log, read_ebnerd, read_kuairand, read_movielens
from keras_ranking.data.simulate import simulate
from keras_ranking.schema import Schema

_READERS: dict[str, Callable[[str], Log]] = {"ebnerd": read_ebnerd, "kuairand": read_kuairand, "movielens": read_movielens}
SOURCES = ("simulated", "ebnerd:FOLDER", "kuairand:FOLDER", "movielens:FOLDER", "parquet:FILE")


def open_log(
    source: str, schema: Schema | str | Path | None = None, seed: int = 0, train_share: float = 0.8, **simulate_options: Any
) -> Log:
    """Open a log by the name of its source.

    | source | what |
    |---|---|
    | `simulated` | `simulate(seed=seed, **simulate_options)` |
    | `ebnerd:FOLDER`, `kuairand:FOLDER`, `movielens:FOLDER` | the public logs, by `read_ebnerd`, `read_kuairand`, `read_movielens` |
    | `parquet:FILE` | any log, with a `schema` |

    A parquet log without a column `split` gets one: the first `train_share` of the requests by time are "train", the rest
    "validation".

    Args:
        source: see the table.
        schema: for `parquet:`, required: a Schema, or the path of its JSON. For the others it replaces their own schema.
        seed: of the simulator.
        train_share: for a parquet log without `split`; 1: all rows are "train".
        **simulate_options: arguments of `simulate`; an error for other sources.

    Returns:
        `Log`.

    Raises:
        ValueError: an unknown source, a missing schema, options that the source does not take, a column missing.
        FileNotFoundError: no such file or folder.

    Example:
        >>> kr.data.open_log("simulated", seed=1, members=30, days=2).name
        'simulated'
    """
    kind, _, place = str(source).partition(":")
    if kind not in ("simulated", "parquet", *_READERS) or (kind != "simulated" and not place) or (kind == "simulated" and place):
        raise ValueError(f"`source` must be one of {', '.join(SOURCES)}. Received: source={source!r}")
    if kind != "simulated" and simulate_options:
        raise ValueError(f"`{next(iter(simulate_options))}` is an option of source 'simulated' alone. Received: source={source!r}")
    given = Schema.load(schema) if isinstance(schema, (str, Path)) else schema
    if kind == "parquet":
        if given is None:
            raise ValueError(f"`schema` must be given with source 'parquet:FILE', to say what the columns are. Received: source={source!r}")
        return _read_parquet(place, given, train_share)
    log: Log = simulate(seed=seed, **simulate_options) if kind == "simulated" else _READERS[kind](place)
    if given is None:
        return log
    missing = [column for column in given.columns if column not in log.events.columns]
    if missing:
        raise ValueError(f"column '{missing[0]}' of the schema is not in the log. It has: {sorted(map(str, log.events.columns))}")
    return Log(events=log.events, schema=given, name=log.name, notes=log.notes)


def _read_parquet(place: str, schema: Schema, train_share: float) -> Log:
    path = Path(place).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`source` 'parquet:FILE' must name a file. Received: {place!r}, which is not a file.")
    try:
        events = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("reading parquet files needs pyarrow: pip install pyarrow") from error
    missing = [column for column in schema.columns if column not in events.columns]
    if missing:
        raise ValueError(f"column '{missing[0]}' of the schema is not in the log. It has: {sorted(map(str, events.columns))}")
    if "split" in events.columns:
        return Log(events=events, schema=schema, name=path.stem)
    if not len(events):
        raise ValueError(f"`source` must hold rows. Received: {place!r}, which has none.")
    if train_share >= 1:
        return Log(events=events.assign(split="train"), schema=schema, name=path.stem, notes=("no column 'split': all rows are 'train'",))
    time = schema.encode_time(events[schema.time])
    # One time per request, so cutting the requests in order of time keeps every list whole.
    times = np.sort(time[~events[schema.request].duplicated().to_numpy()])
    edge = times[min(int(np.ceil(len(times) * train_share)), len(times) - 1)]
    events = events.assign(split=np.where(time >= edge, "validation", "train"))
    stamp = pd.Timestamp(int(edge) + schema.epoch, unit="s")
    note = f"no column 'split': requests before {stamp} UTC ({train_share:.0%} of them) are 'train', the rest 'validation'"
    return Log(events=events, schema=schema, name=path.stem, notes=(note,))
