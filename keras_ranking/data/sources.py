"""Opening a log by name: what the command line's `--data` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from keras_ranking.column_base import column_hint, named_columns
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.readers import Log, hold_out_members, read_ebnerd, read_kuairand, read_movielens, read_retail
from keras_ranking.data.readers.cuts import cut_by_time
from keras_ranking.data.simulation.simulate import simulate
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema
from keras_ranking.values import require_kind

_READERS: dict[str, Callable[..., Log]] = {
    "ebnerd": read_ebnerd,
    "kuairand": read_kuairand,
    "movielens": read_movielens,
    "retail": read_retail,
}
_RELEASES = ("kuairand", "movielens")  # their folders may hold files of several releases
SOURCES = ("simulated", *(f"{name}:FOLDER" for name in _READERS), "parquet:FILE")


def open_log(
    source: str,
    schema: Schema | str | Path | None = None,
    seed: int = 0,
    train_share: float = 0.8,
    release: str | None = None,
    holdout_members: float | None = None,
    holdout_seed: int = 0,
    **simulate_options: Any,
) -> Log:
    """Open a log by the name of its source.

    | source | what |
    |---|---|
    | `simulated` | `simulate(seed=seed, **simulate_options)` |
    | `ebnerd:FOLDER`, `kuairand:FOLDER`, `movielens:FOLDER`, `retail:FOLDER` | the public logs, by `read_ebnerd`, `read_kuairand`, ... |
    | `parquet:FILE` | any log, with a `schema` |

    A parquet log without a column `split` gets one: the first `train_share` of the requests by time are "train", the rest
    "validation".

    Args:
        source: see the table.
        schema: for `parquet:`, required: a Schema, or the path of its JSON. For the others it replaces their own schema.
        seed: of the simulator.
        train_share: for a parquet log without `split`; 1: all rows are "train".
        release: for `kuairand:` and `movielens:`: which release to read, where the folder has several.
        holdout_members: share of the members that are never trained on, see `hold_out_members`. None: none.
        holdout_seed: another seed holds out other members.
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
    if release is not None and kind not in _RELEASES:
        raise ValueError(
            f"`release` is an option of the sources {' and '.join(_RELEASES)}. Received: release={release!r}, source={source!r}"
        )
    given = Schema.load(schema) if isinstance(schema, (str, Path)) else schema
    log = _opened(kind, place, given, seed, train_share, release, simulate_options)
    return log if holdout_members is None else hold_out_members(log, holdout_members, holdout_seed)


def _opened(
    kind: str, place: str, schema: Schema | None, seed: int, train_share: float, release: str | None, simulate_options: dict[str, Any]
) -> Log:
    if kind == "parquet":
        if schema is None:
            received = f"source={f'{kind}:{place}'!r}"
            raise ValueError(f"`schema` must be given with source 'parquet:FILE', to say what the columns are. Received: {received}")
        return _read_parquet(place, schema, train_share)
    log: Log
    if kind == "simulated":
        log = simulate(seed=seed, **simulate_options)
    else:
        log = _READERS[kind](place, **({} if release is None else {"release": release}))
    if schema is None:
        return log
    _require_columns(named_columns(schema, log.events), schema)
    return Log(events=log.events, schema=schema, name=log.name, notes=log.notes, preset=log.preset)


def _read_parquet(place: str, schema: Schema, train_share: float) -> Log:
    path = Path(place).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`source` 'parquet:FILE' must name a file. Received: {place!r}, which is not a file.")
    try:
        events = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("reading parquet files needs pyarrow: pip install pyarrow") from error
    events = named_columns(schema, events)
    _require_columns(events, schema)
    if "split" in events.columns:
        return Log(events=events, schema=schema, name=path.stem)
    if not len(events):
        raise ValueError(f"`source` must hold rows. Received: {place!r}, which has none.")
    if train_share >= 1:
        return Log(events=events.assign(split="train"), schema=schema, name=path.stem, notes=("no column 'split': all rows are 'train'",))
    split, note = cut_by_time(events, schema, train_share)
    return Log(events=events.assign(split=split), schema=schema, name=path.stem, notes=(f"no column 'split': {note}",))


def _require_columns(events: pd.DataFrame, schema: Schema) -> None:
    """Check that a log has the columns of a schema, or, without its counts, those that they are counted from."""
    counted = all(count.name in events for count in schema.counts)
    for column in schema.columns if counted else schema.logged:
        require_column(events, column, f"of the schema is not in the log{column_hint(schema, column)}")
