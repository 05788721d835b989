"""Files of public logs: which release a folder holds, and tables with or without a line of column names."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.readers.log import require_columns

SMOOTHED = (10.0, 20.0)  # prior of the readers' rates: (outcomes + 10) / (views + 20)


def found_releases(folder: str | Path, layouts: Mapping[str, Sequence[str]], what: str) -> dict[str, Path]:
    """The first file of each release that the folder holds.

    Args:
        folder: where to look.
        layouts: paths or patterns of each release, below `folder`.
        what: of what, for the errors.

    Raises:
        FileNotFoundError: no such folder, or no file of any release; the message names what was looked for.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"`folder` must be a folder that holds {what}. Received: folder={str(folder)!r}, which is not a folder.")
    found = {name: next((path for pattern in patterns for path in sorted(root.glob(pattern))), None) for name, patterns in layouts.items()}
    if not any(found.values()):
        looked = ", ".join(pattern for patterns in layouts.values() for pattern in patterns)
        raise FileNotFoundError(f"`folder` has no {what}: looked for {looked} in {str(folder)!r}.")
    return {name: path for name, path in found.items() if path is not None}


def choose_release(found: Mapping[str, Path], release: str | None, layouts: Mapping[str, Sequence[str]], default: str) -> tuple[str, str]:
    """The release to read, and a note where the folder holds others.

    Raises:
        ValueError: an unknown or absent release, or several without a choice between them; the message names the files found.
    """
    files = ", ".join(f"'{name}' ({path.name})" for name, path in found.items())
    if release is not None:
        if release not in layouts:
            raise ValueError(f"`release` must be one of {', '.join(map(repr, layouts))}. Received: release={release!r}")
        if release not in found:
            raise ValueError(f"`release` must be one that the folder holds: {files}. Received: release={release!r}")
        return release, ""
    if len(found) == 1:
        return next(iter(found)), ""
    if default not in found:
        raise ValueError(f"`release` must be given where the folder holds several: {files}. Received: release=None")
    return default, f"the folder holds {files}; `release` chooses, '{default}' was read"


def read_table(path: Path, names: Sequence[str], rename: Mapping[str, str] | None = None, **options: Any) -> pd.DataFrame:
    """A table of comma-separated, tab-separated (`u.*`) or `::`-separated (`.dat`) values, with or without a first line of names.

    Args:
        path: the file; `.gz` is read.
        names: the columns to return; those of a file without a first line of names, in their order.
        rename: other names that a release has for them.
        **options: for `pandas.read_csv`.

    Raises:
        ValueError: a column is missing, naming the file.
    """
    base = path.name.removesuffix(".gz")
    separator = "::" if base.endswith(".dat") else "\t" if base.startswith("u.") else ","
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding=options.get("encoding", "utf-8")) as file:
        first = file.readline().rstrip("\r\n").split(separator)
    rename = rename or {}
    has_names = bool({rename.get(name.strip('"'), name.strip('"')) for name in first} & set(names))
    columns = first if has_names else [*names, *map(str, range(len(names), len(first)))][: len(first)]
    if separator == "::" and not options:  # numbers alone: the fast parser, with an empty field between two colons
        empty = [f"_{place}" for place in range(len(first) - 1)]
        both = [name for pair in zip(columns, [*empty, ""], strict=True) for name in pair][:-1]
        frame = pd.read_csv(path, sep=":", header=0 if has_names else None, names=both, usecols=columns)
    else:
        engine: Any = {"engine": "python"} if separator == "::" else {}
        frame = pd.read_csv(path, sep=separator, header=0 if has_names else None, names=None if has_names else columns, **engine, **options)
    frame = frame.rename(columns=dict(rename))
    require_columns(frame, names, path)
    return frame[list(names)]


def earlier_counts(
    events: pd.DataFrame,
    keys: Mapping[str, str],
    views: str,
    rates: Mapping[str, str],
    delay: int,
    counted: Any = None,
    prior: tuple[float, float] = SMOOTHED,
) -> pd.DataFrame:
    """How often each key was there before a row, and the smoothed share of each outcome.

    Args:
        events: rows with the columns of keys and outcomes, and `time`.
        keys: column -> prefix of the names.
        views: suffix of the number of earlier rows.
        rates: outcome -> suffix of its rate, (outcomes + a) / (rows + b) with prior = (a, b).
        delay: seconds after which an outcome is counted, at least 1: rows of one second do not see one another.
        counted: bool per row, which rows are counted. None: all.
        prior: of the rates.

    Returns:
        float64 `{prefix}_{views}` and `{prefix}_{rate}`, with the index of `events`.
    """
    counts = point_in_time_counts(events, list(keys), [None], list(rates), delay=delay, prior=prior, counted=counted)
    out: dict[str, Any] = {}
    for key, prefix in keys.items():
        out[f"{prefix}_{views}"] = counts[f"{key}_views_all"].astype(np.float64)
        out |= {f"{prefix}_{suffix}": counts[f"{key}_{outcome}_rate_all"] for outcome, suffix in rates.items()}
    return pd.DataFrame(out, index=events.index)


def at_rows(table: pd.DataFrame, key: str, ids: pd.Series) -> pd.DataFrame:
    """The rows of a table of distinct keys, one per id; missing where the table has no such key."""
    return table.drop_duplicates(key).set_index(key).reindex(ids.to_numpy()).set_index(ids.index)
