"""What every reader returns: the rows of a log and the schema of its columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from keras_ranking.schema import Schema


@dataclass(frozen=True)
class Log:
    """A log of impressions, its schema, and notes of what the reader left out or derived.

    Args:
        events: one row per impression, sorted by time. Besides the schema's columns it has a `split` column: "train",
            "validation", "test", or "history" for rows that are read as history and never trained on.
        schema: what the columns are; standardising numbers are not fitted yet (`schema.fit(training_rows)`).
        name: the log's name, for tables and messages.
        notes: one line, with counts, for everything that the reader left out, merged or derived.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> log.name, log.schema.member, sorted(log.events["split"].unique())
        ('simulated', 'member_id', ['test', 'train', 'validation'])
        >>> len(log.split("train")) < len(log.events)
        True
    """

    events: pd.DataFrame
    schema: Schema
    name: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split.

        Raises:
            ValueError: the log has no rows of that split.
        """
        rows = self.events[self.events["split"] == name]
        if not len(rows):
            raise ValueError(f"the log '{self.name}' has no split '{name}'. It has: {sorted(self.events['split'].unique())}")
        return rows


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
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{Path(where).name} has no column {', '.join(map(repr, missing))}. It has: {sorted(map(str, frame.columns))}")
