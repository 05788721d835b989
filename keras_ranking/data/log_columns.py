"""Columns of a log as arrays: times in seconds, and keys as numbers; frames and columns that are not what they should be."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.ops.messages import shown
from keras_ranking.values import FRACTION, Faults, narrow_floats, native_series, plain_series, raise_first, require_frame, seconds_of

__all__ = ["at_row", "key_codes", "key_faults", "require_column", "require_frame", "unix_seconds"]
_FEWEST_NUMBERS = 2  # names of a header that look like values


def require_column(frame: pd.DataFrame, column: str, what: str = "is not in the log") -> None:
    """Check that a frame has a column, once.

    Raises:
        ValueError: with the columns there are, the most similar of them, and whether the first line of a file became their names.
    """
    names = list(map(str, frame.columns))
    if column in frame.columns:
        if names.count(column) > 1:
            raise ValueError(f"column '{column}' is in the log {names.count(column)} times.")
        return
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if sum(_is_number(name) for name in names) >= min(_FEWEST_NUMBERS, len(names)) and names:
        hint = "; these look like values: a file of rows must begin with a line of column names"
    raise ValueError(f"column '{column}' {what}. It has: {sorted(names)}{hint}")


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def unix_seconds(events: pd.DataFrame, time: str, round: str | None = None, places: np.ndarray | None = None) -> np.ndarray:
    """A column of Unix seconds or datetimes (UTC where they name no zone) as int64 seconds.

    Raises:
        ValueError: a missing time, a number that is no time, or a fraction of a second without `round`, with its row.
    """
    seconds, faults = seconds_of(events[time], round)
    fraction = "; `round='floor'` rounds it down" if faults and faults[0][1] == FRACTION else ""
    raise_first(time, events[time], faults, fraction, places)
    return seconds


def key_faults(series: pd.Series) -> Faults:
    """Values that cannot be told apart as keys: float16 and float32, whole numbers from 2**53 on in float64, and unhashable objects."""
    series = plain_series(series)
    narrow = narrow_floats(series)
    faults: Faults = [(narrow, "is a key and must not be float16 or float32, in which ids collide: use int64 or text")]
    known = series.notna().to_numpy(dtype=bool)
    large, unusable = np.zeros(len(series), dtype=bool), np.zeros(len(series), dtype=bool)
    if series.dtype.kind == "f":
        large = known & ~narrow & ~(np.abs(series.to_numpy(dtype=np.float64, na_value=0.0)) < 2**53)
    elif series.dtype.kind == "O":
        values = series.to_numpy(dtype=object)
        kinds = set(map(type, values))
        if not kinds <= {str, int, bool, type(None)}:
            large = known & np.fromiter(
                (isinstance(value, float) and not abs(value) < 2**53 for value in values), dtype=bool, count=len(values)
            )
            unusable = known & np.fromiter((not _hashable(value) for value in values), dtype=bool, count=len(values))
    faults.append((large, "is a key and must not be a float of 2**53 or more, in which ids collide: use int64 or text"))
    faults.append((unusable, "is a key and must hold integers, texts or other single values"))
    return [fault for fault in faults if fault[0].any()]


def _hashable(value: Any) -> bool:
    if not isinstance(value, Hashable):
        return False
    try:
        hash(value)
    except (TypeError, ValueError):  # a tuple with a list
        return False
    return True


def key_codes(events: pd.DataFrame, key: Iterable[str]) -> np.ndarray:
    """For each row the number of its key, 0 or more in order of first appearance; -1 where a column of the key is missing.

    Missing are None, NaN, NaT and pd.NA, whatever type the column has.

    Raises:
        ValueError: values that cannot be told apart, see `key_faults`.
    """
    key = tuple(key)
    codes = np.zeros(len(events), dtype=np.int64)
    for column in key:
        raise_first(column, events[column], key_faults(events[column]))
        part, unique = pd.factorize(native_series(events[column]))
        missing = (part < 0) | (codes < 0)
        combined = codes * max(len(unique), 1) + part
        # Re-numbered after every column, so that the product stays within int64.
        codes = np.where(missing, -1, pd.factorize(np.where(missing, -1, combined))[0]).astype(np.int64) if len(key) > 1 else part
    return codes


def at_row(place: int, index: pd.Index, row: int) -> str:
    """'row 5 (index 'r5')': where a row of the user's frame is."""
    return f"row {place} (index {shown(index[row])})"
