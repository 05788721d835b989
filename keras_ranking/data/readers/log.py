"""What every reader returns: the rows of a log and the schema of its columns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.column_base import named_columns
from keras_ranking.data.log_columns import require_column, require_frame
from keras_ranking.data.readers.cuts import TRAIN_SHARE, cut_by_time
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema
from keras_ranking.values import ROUND

HISTORY, NEW_MEMBERS = "history", "new_members"
SPLITS = ("train", "validation", "test", HISTORY, NEW_MEMBERS)


@dataclass(frozen=True)
class Log:
    """A log of impressions, its schema, and notes of what the reader left out or derived.

    Args:
        events: one row per impression. Besides the schema's columns it has a `split` column: "train", "validation", "test",
            "history" for rows that are read as history and never trained on, or "new_members" for rows of members who are never trained
            on. See `split_by_time` and `hold_out_members`. Without the column the first 80 % of the requests by time are "train" and the
            rest "validation", as the command line cuts, and a warning says so.
        schema: what the columns are; standardising numbers are not fitted yet (`schema.fit(training_rows)`).
        name: the log's name, for tables and messages.
        notes: one line, with counts, for everything that the reader left out, merged or derived.
        preset: options of models and of training that `kr.training.train` takes where none are given: "simulated" or "ebnerd". `simulate`
            and `read_ebnerd` set it. None: the defaults of the model.
        round: 'floor', 'ceil' or 'nearest': how training and evaluation round times that have a fraction of a second. None: it is a fault.
        counts: the `PointInTime` states that have read these rows, see `with_counts`: training saves them with the run. None: none.

    Raises:
        TypeError: `events` is not a DataFrame, or `schema` not a `Schema`.
        ValueError: another word in the column `split`, or another word for `round`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> log.name, log.schema.member, sorted(log.events["split"].unique())
        ('simulated', 'member_id', ['test', 'train', 'validation'])
        >>> len(log.split("train")) < len(log.events)
        True
    """

    events: pd.DataFrame
    schema: Schema
    name: str = "log"
    notes: tuple[str, ...] = ()
    preset: str | None = None
    round: str | None = None
    counts: Any = None

    def __post_init__(self) -> None:
        require_frame(self.events)
        schema: Any = self.schema
        if not isinstance(schema, Schema):
            load = f"; read a file with `Schema.load({str(schema)!r})`" if isinstance(schema, str | Path) else ""
            raise TypeError(f"`schema` must be a Schema. Received: {type(schema).__name__}{load}")
        object.__setattr__(self, "events", named_columns(self.schema, self.events))
        if self.round not in ROUND:
            raise ValueError(f"`round` must be one of {ROUND}. Received: round={self.round!r}")
        if "split" not in self.events.columns:
            self._cut()
        check_splits(self.events["split"].value_counts(dropna=False, sort=False).to_dict())

    def _cut(self) -> None:
        """Add the column `split`, and say so."""
        events, note = _with_split(self.events, self.schema)
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "notes", (*self.notes, f"no column 'split': {note}"))
        other = "`split_by_time(events, schema, train_share)` cuts elsewhere, and `events.assign(split='train')` trains on all rows"
        warnings.warn(f"the log '{self.name}' has no column 'split': {note}; {other}", UserWarning, stacklevel=4)

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split.

        Raises:
            ValueError: the log has no rows of that split.
        """
        return self.events[self.is_split(name)]

    def is_split(self, name: str) -> np.ndarray:
        """Which rows are of this split, bool (rows,).

        Raises:
            ValueError: none of them.
        """
        rows = (self.events["split"] == name).to_numpy(dtype=bool)
        if not rows.any():
            known = sorted(self.events["split"].unique())
            why = "".join(f"; {note}" for note in self.notes if f"'{name}'" in note)
            if name == NEW_MEMBERS:
                why += "; `hold_out_members`, or `--holdout-members` of the command line, makes them"
            raise ValueError(f"the log '{self.name}' has no rows with split '{name}'. It has: {known}{why}")
        return rows


def check_splits(counts: Mapping[Any, int]) -> None:
    """Check the words of a column `split`.

    Args:
        counts: rows by word.

    Raises:
        ValueError: another word, with what it probably means.
    """
    wrong = {word: int(rows) for word, rows in counts.items() if word not in SPLITS and rows}
    if wrong:
        found = ", ".join(f"{shown(word)} in {rows:,} rows" for word, rows in list(wrong.items())[:10])
        near = [_nearest(word) for word in wrong]
        rename = {word: to for word, to in zip(wrong, near, strict=True) if to}
        hint = f"; rename them: `events['split'].replace({rename})`" if rename else ""
        raise ValueError(f"column 'split' must hold 'train', 'validation', 'test', 'history' or 'new_members'. Received: {found}{hint}")


def _with_split(events: pd.DataFrame, schema: Schema) -> tuple[pd.DataFrame, str]:
    """The rows with a column `split`, cut as the command line cuts, and a note of it."""
    for column in (schema.time, schema.request):
        require_column(events, column, "of the schema is not in the log")
    if not len(events):
        raise ValueError("`events` must hold rows. Received: none")
    split, note = cut_by_time(events, schema, TRAIN_SHARE)
    return events.assign(split=split), note


def as_log(log: Any, schema: Schema | None, split: str | None = None, verbose: bool = False) -> Log:
    """What was given as `log`, as a `Log`: the one place where a DataFrame becomes one.

    Args:
        log: a `Log`, which stays as it is, or a DataFrame.
        schema: of a DataFrame.
        split: of all rows of a DataFrame without a column `split`. None: it is cut by time, as the command line cuts.
        verbose: whether this cut is printed; else it is a warning.

    Raises:
        TypeError: neither, or a DataFrame without a schema; with the way to make a `Log`.
        ValueError: another word in the column `split`.
    """
    if not isinstance(log, pd.DataFrame) or schema is None:
        require_log(log)
        found: Log = log
        return found
    if split is not None and "split" not in log.columns:
        return Log(log.assign(split=split), schema)
    if not verbose or "split" in log.columns or not isinstance(schema, Schema):
        return Log(log, schema)
    events, note = _with_split(named_columns(schema, log), schema)
    print(f"no column 'split': {note}", flush=True)
    return Log(events, schema, notes=(f"no column 'split': {note}",))


def log_of(log: Any, schema: Schema | None, verbose: bool = False) -> Log:
    """`as_log` for functions with arguments `log` and `schema`.

    Raises:
        TypeError: as `as_log`.
        ValueError: a schema for what has one.
    """
    if schema is not None and not isinstance(log, pd.DataFrame):
        raise ValueError(f"`schema` goes with a DataFrame. Received: `schema`, and as `log` a {type(log).__name__}, which has its own")
    return as_log(log, schema, verbose=verbose)


def require_log(log: Any) -> None:
    """Check that this is a `Log`.

    Raises:
        TypeError: with the way to make one.
    """
    if not isinstance(log, Log):
        frame = " with `schema=`, where the function has it;" if isinstance(log, pd.DataFrame) else ";"
        made = "`keras_ranking.data.Log(events, schema)` makes one of a DataFrame"
        raise TypeError(f"`log` must be a keras_ranking.data.Log. Received: {type(log).__name__}{frame} {made}, `open_log` reads a file.")


def _nearest(word: Any) -> str | None:
    """The word of a split that another word probably means."""
    text = str(word).strip().lower()
    known = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "validation", "training": "train", "tr": "train"}
    return text if text in SPLITS else known.get(text)


def find_file(folder: str | Path, names: Iterable[str], what: str) -> Path:
    """The first of `names` (paths or patterns below `folder`) that exists.

    Raises:
        FileNotFoundError: no such folder, or none of the files in it; the message names both.
    """
    root = Path(folder).expanduser()
    names = tuple(names)
    if not root.is_dir():
        raise FileNotFoundError(f"`folder` must be a folder that holds {what}. Received: folder={str(folder)!r}, which is not a folder.")
    for name in names:
        found = sorted(root.glob(name))
        if found:
            return found[0]
    raise FileNotFoundError(f"`folder` has no {what}: looked for {', '.join(names)} in {str(folder)!r}.")


def require_columns(frame: pd.DataFrame, columns: Iterable[str], where: str | Path) -> None:
    """Check that a file has the columns that the reader needs.

    Raises:
        ValueError: naming the file, the missing columns and those there are.
    """
    for column in columns:
        require_column(frame, column, f"is not in {Path(where).name}")
