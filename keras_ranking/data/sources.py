"""Opening a log by name: what the command line's `--data` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import require_column, require_frame
from keras_ranking.data.readers import Log, read_ebnerd, read_kuairand, read_movielens
from keras_ranking.data.simulate import simulate
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema
from keras_ranking.values import native_series, require_kind

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
    require_kind(schema, (Schema, str, Path, type(None)), "schema")
    kind, _, place = str(source).partition(":")
    if kind not in ("simulated", "parquet", *_READERS) or (kind != "simulated" and not place) or (kind == "simulated" and place):
        raise ValueError(f"`source` must be one of {', '.join(SOURCES)}. Received: source={' '.join(shown(source).split())}")
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
    for column in given.columns:
        require_column(log.events, column, "of the schema is not in the log")
    return Log(events=log.events, schema=given, name=log.name, notes=log.notes, preset=log.preset)


def _read_parquet(place: str, schema: Schema, train_share: float) -> Log:
    path = Path(place).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`source` 'parquet:FILE' must name a file. Received: {place!r}, which is not a file.")
    try:
        events = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("reading parquet files needs pyarrow: pip install pyarrow") from error
    for column in schema.columns:
        require_column(events, column, "of the schema is not in the log")
    if "split" in events.columns:
        return Log(events=events, schema=schema, name=path.stem)
    if not len(events):
        raise ValueError(f"`source` must hold rows. Received: {place!r}, which has none.")
    if train_share >= 1:
        return Log(events=events.assign(split="train"), schema=schema, name=path.stem, notes=("no column 'split': all rows are 'train'",))
    split, note = _split(events, schema, train_share)
    return Log(events=events.assign(split=split), schema=schema, name=path.stem, notes=(f"no column 'split': {note}",))


def split_by_time(events: pd.DataFrame, schema: Schema, train_share: float = 0.8) -> pd.DataFrame:
    """The rows with a column `split`: the first `train_share` of the requests by time are "train", the rest "validation".

    Every request is kept whole. A row without a usable time, which the checks of a log find, is "train".

    Args:
        events: one row per impression.
        schema: what the columns are.
        train_share: share of the requests, above 0 and below 1.

    Returns:
        The same rows with the column `split`.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: no rows, a missing column, another share.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> events = kr.data.split_by_time(log.events.drop(columns="split"), log.schema)
        >>> sorted(events["split"].unique())
        ['train', 'validation']
    """
    require_frame(events)
    for column in (schema.time, schema.request):
        require_column(events, column, "of the schema is not in the log")
    if not 0 < train_share < 1:
        raise ValueError(f"`train_share` must lie strictly between 0 and 1. Received: train_share={train_share}")
    if not len(events):
        raise ValueError("`events` must hold rows. Received: none")
    return events.assign(split=_split(events, schema, train_share)[0])


def _split(events: pd.DataFrame, schema: Schema, train_share: float) -> tuple[np.ndarray, str]:
    """The split of each row, and a note of it."""
    time, faults = schema.model_seconds(events[schema.time], round="floor")
    usable = ~np.any([rows for rows, _ in faults], axis=0) if faults else np.ones(len(events), dtype=bool)
    requests = native_series(events[schema.request])[usable]
    try:
        first = ~requests.duplicated().to_numpy()
    except TypeError:  # lists, which the checks of a log find
        first = ~requests.map(repr).duplicated().to_numpy()
    times = np.sort(time[usable][first]) if first.any() else np.zeros(1, dtype=np.int64)
    # One time per request, so cutting the requests in order of time keeps every list whole.
    edge = times[min(int(np.ceil(len(times) * train_share)), len(times) - 1)]
    stamp = pd.Timestamp(int(edge) + schema.epoch, unit="s")
    note = f"requests before {stamp} UTC ({train_share:.0%} of them) are 'train', the rest 'validation'"
    return np.where(usable & (time >= edge), "validation", "train"), note
