"""Values of a log as numbers and seconds, with every value that cannot be read: the one place where columns are read.

A reader never raises an error for a value. It returns the values it could read, and faults: pairs of the rows that it could not read and
the reason. An encoder raises the first of them, `check_events` reports or leaves out all of them, so both have the same rules.
"""

from __future__ import annotations

import datetime
import decimal
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.ops.hashing import as_series
from keras_ranking.ops.messages import shown

Faults = list[tuple[np.ndarray, str]]
INT32_MAX = 2**31 - 1
ROUND = (None, "floor", "ceil", "nearest")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
SMALL_UNITS = (("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
_WHOLE = "must hold whole Unix seconds or datetimes"
_REAL = (numbers.Real, np.bool_, decimal.Decimal)
FRACTION = f"{_WHOLE}, without a fraction of a second"
_FARTHEST = 10**11  # seconds from 1970: the year 5138; such a number is milliseconds


def require_frame(events: Any, name: str = "events") -> None:
    """Check that a log is a pandas DataFrame.

    Raises:
        TypeError: with the conversion of what was received, where there is one.
        ValueError: several levels of column names.
    """
    if isinstance(events, pd.DataFrame):
        if events.columns.nlevels > 1:
            raise ValueError(f"`{name}` must have one level of column names. Received: {events.columns.nlevels} levels")
        return
    convert = f"; convert it: `{name}.to_pandas()`" if hasattr(events, "to_pandas") else ""
    convert = f"; convert it: `pd.DataFrame({name})`" if isinstance(events, dict | list) else convert
    convert = f"; its rows are in `{name}.events`" if hasattr(events, "events") else convert
    raise TypeError(f"`{name}` must be a pandas DataFrame. Received: {type(events).__name__}{convert}")


def require_kind(value: Any, kind: type | tuple[type, ...], name: str, made: str = "") -> None:
    """Check the class of an argument.

    Args:
        value, kind: what was given, and the class or classes that it must be of.
        name: of the argument.
        made: how one is made, for the message.

    Raises:
        TypeError: an object of another class.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(known.__name__ for known in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"`{name}` must be {kinds}. Received: {type(value).__name__}{f'; {made}' if made else ''}")


def raise_first(name: str, series: pd.Series, faults: Faults, remedy: str = "", places: np.ndarray | None = None) -> None:
    """Raise the first fault that has a row: with column, row and value.

    The row is its place in the values, or in `places`.

    Raises:
        ValueError: there is such a fault.
    """
    for bad, reason in faults:
        if bad.any():
            row, count = int(bad.argmax()), int(bad.sum())
            more = f" ({count} such rows)" if count > 1 else ""
            place = row if places is None else int(places[row])
            raise ValueError(f"column '{name}' {reason}. Received: {shown(series.iloc[row])} at row {place}{more}{remedy}")


def native_series(series: pd.Series) -> pd.Series:
    """The column in a type that pandas can compare and group: dense, in the machine's byte order, nested values and dates as objects."""
    dtype = series.dtype
    if isinstance(dtype, pd.SparseDtype):
        return series.astype(dtype.subtype)
    if isinstance(dtype, np.dtype) and not dtype.isnative:
        return series.astype(dtype.newbyteorder("="))
    if isinstance(dtype, pd.ArrowDtype) and not (dtype.kind in "biufm" or "timestamp" in dtype.name or pd.api.types.is_string_dtype(dtype)):
        return series.astype(object)
    if dtype == np.dtype(object):
        try:
            series.isna()
        except decimal.InvalidOperation:  # pandas cannot compare a signalling NaN of `decimal`
            return series.map(lambda value: np.nan if isinstance(value, decimal.Decimal) and value.is_snan() else value).astype(object)
    return series


def native_frame(events: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The frame with these columns as `native_series`; the frame itself where they are already."""
    changed = {name: native for name in columns if (native := native_series(series := events[name])) is not series}
    return events.assign(**changed) if changed else events


def plain_series(values: Any) -> pd.Series:
    """A Series of the values as `native_series`, and categories as the values that they stand for."""
    series = native_series(as_series(values))
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        kind = dtype.categories.dtype
        whole = series.isna().any() and kind.kind in "iub"
        return native_series(series.astype(object if whole or kind.kind == "O" else kind))
    return series


def numbers_of(series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The values as float64, NaN where there is none, and which of them are not numbers at all.

    Text that is written as a number is one.
    """
    series = plain_series(series)
    dtype = series.dtype
    known = series.notna().to_numpy(dtype=bool)
    if dtype.kind in "biuf":
        return series.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(series), dtype=bool)
    out = np.full(len(series), np.nan)
    if dtype.kind in "mMc":
        return out, known
    values = series.to_numpy(dtype=object)
    texts = np.fromiter((isinstance(value, str | bytes) for value in values), dtype=bool, count=len(values)) & known
    if texts.any():
        decoded = [value.decode("ascii", "replace") if isinstance(value, bytes) else value for value in values[texts]]
        out[texts] = pd.to_numeric(pd.Series(decoded, dtype=object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    others = known & ~texts
    out[others] = [_number(value) for value in values[others]]
    return out, known & np.isnan(out)


def _number(value: Any) -> float:
    """A scalar as a float, infinite where it is too large, and NaN where it is no real number."""
    if isinstance(value, np.timedelta64) or not issubclass(type(value), _REAL):  # numpy registers durations as integers
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf
    except ValueError:  # a signalling NaN of `decimal`
        return np.nan


def integers_of(series: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole numbers as int64 (0 where there is none), which values are missing, and which are known but not whole or beyond int64.

    Integers stay exact: they do not pass through float64.
    """
    series = plain_series(series)
    missing = series.isna().to_numpy(dtype=bool)
    if series.dtype.kind in "biu":
        plain = series.to_numpy(dtype=np.uint64 if series.dtype.kind == "u" else np.int64, na_value=0)
        beyond = plain > np.uint64(2**63 - 1) if series.dtype.kind == "u" else np.zeros(len(plain), dtype=bool)
        return np.where(beyond, 0, plain).astype(np.int64), missing, beyond & ~missing
    found, _ = numbers_of(series)
    whole = np.isfinite(found) & (found == np.floor(found)) & (np.abs(found) < 2**63)
    out = np.zeros(len(series), dtype=np.int64)
    out[whole] = found[whole].astype(np.int64)
    if series.dtype.kind == "O":
        for row in np.flatnonzero(np.abs(found) >= 2**53):
            value = series.iloc[row]
            exact = isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63
            out[row], whole[row] = int(value) if exact else 0, exact
    return out, missing, ~whole & ~missing


def narrow_floats(series: pd.Series) -> np.ndarray:
    """Which values are float16 or float32, which cannot hold every second or id."""
    dtype = plain_series(series).dtype
    if dtype.kind == "f":
        narrow = getattr(dtype, "itemsize", 8) < 8
        return np.full(len(series), narrow) & series.notna().to_numpy(dtype=bool)
    if dtype.kind != "O":
        return np.zeros(len(series), dtype=bool)
    return np.fromiter((isinstance(value, np.float16 | np.float32) for value in series), dtype=bool, count=len(series)) & (
        series.notna().to_numpy(dtype=bool)
    )


def seconds_of(values: Any, round: str | None = None) -> tuple[np.ndarray, Faults]:
    """Times as int64 Unix seconds, 0 where the row has a fault: the one rule for every time of a log.

    Args:
        values: integers, whole floats in float64, text of these, or datetimes (UTC where they name no zone).
        round: what to do with a fraction of a second: 'floor', 'ceil' or 'nearest' (half a second: up). None: it is a fault.

    Returns:
        The seconds, and the faults: a missing time, a value that is no time, a fraction, a type that cannot hold seconds, a number so
        large that it cannot be seconds.

    Raises:
        ValueError: another `round`.

    Example:
        >>> from keras_ranking.values import seconds_of
        >>> seconds_of([5, 7.5], round="floor")[0].tolist(), seconds_of([5, 7.5])[1][-1][0].tolist()
        ([5, 7], [False, True])
    """
    if round not in ROUND:
        raise ValueError(f"`round` must be one of {ROUND}. Received: round={round!r}")
    series = plain_series(values)
    missing = series.isna().to_numpy(dtype=bool)
    narrow = narrow_floats(series)
    if series.dtype.kind == "M":
        seconds, part = _of_datetimes(series)
        wrong = np.zeros(len(series), dtype=bool)
    else:
        seconds, part, wrong = _of_numbers(series) if series.dtype.kind in "biuf" else _of_mixed(series.astype(object))
    if round is not None:
        seconds = seconds + {"floor": 0, "ceil": part > 0, "nearest": part >= 0.5}[round]
        part = np.zeros(len(series))
    wrong &= ~missing & ~narrow
    fraction = (part > 0) & ~missing & ~narrow & ~wrong
    reasons = [(missing, "must hold a time in every row"), (narrow, f"{_WHOLE}; float16 and float32 cannot hold seconds, use int64")]
    texts = np.zeros(len(series), dtype=bool)
    texts[wrong] = [isinstance(value, str) for value in series[wrong]]
    reasons += [(wrong & ~texts, _WHOLE), (texts, f"{_WHOLE}; read texts with pd.to_datetime"), (fraction, FRACTION)]
    bad = missing | narrow | wrong | fraction
    seconds = np.where(bad, 0, seconds)
    for unit, per_second in () if series.dtype.kind == "M" else SMALL_UNITS:
        large = (np.abs(seconds) // per_second < _FARTHEST) & (np.abs(seconds) >= _FARTHEST)
        reasons.append((large, f"must hold seconds and holds {unit}: divide by {per_second:,}, `// {per_second}`"))
        seconds = np.where(large, 0, seconds)
    return seconds, [(rows, reason) for rows, reason in reasons if rows.any()]


def _of_datetimes(series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Whole seconds (rounded down) and the fraction of each."""
    if series.dt.tz is not None:
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    stamps = series.to_numpy()
    per_second = _PER_SECOND[np.datetime_data(stamps.dtype)[0]]
    ticks = np.where(np.isnat(stamps), 0, stamps.view(np.int64))
    return ticks // per_second, (ticks % per_second) / per_second


def _of_numbers(series: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole seconds (rounded down), the fraction of each, and which values are no finite numbers."""
    if series.dtype.kind in "iu":
        seconds, _, wrong = integers_of(series)
        return seconds, np.zeros(len(series)), wrong
    if series.dtype.kind == "b":
        return np.zeros(len(series), dtype=np.int64), np.zeros(len(series)), np.ones(len(series), dtype=bool)
    found, _ = numbers_of(series)
    fine = np.abs(found) < 2**62
    down = np.floor(np.where(fine, found, 0.0))
    return down.astype(np.int64), np.where(fine, found - down, 0.0), ~fine


def _of_mixed(series: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_of_numbers`, for a column of objects: numbers, texts of numbers and datetimes."""
    known = series.notna().to_numpy(dtype=bool)
    stamps = np.fromiter((isinstance(value, datetime.datetime | np.datetime64) for value in series), dtype=bool, count=len(series)) & known
    truths = np.fromiter((isinstance(value, bool | np.bool_) for value in series), dtype=bool, count=len(series))
    seconds, part, wrong = np.zeros(len(series), dtype=np.int64), np.zeros(len(series)), truths.copy()
    others = known & ~stamps & ~truths
    found, _ = numbers_of(series[others])
    fine = np.abs(found) < 2**62
    down = np.floor(np.where(fine, found, 0.0))
    seconds[others], part[others], wrong[others] = down.astype(np.int64), np.where(fine, found - down, 0.0), ~fine
    for row in np.flatnonzero(stamps):
        try:
            stamp = pd.Timestamp(series.iloc[row])
        except (ValueError, OverflowError):
            wrong[row] = True
            continue
        stamp = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp
        ticks, per_second = int(stamp.to_datetime64().view(np.int64)), _PER_SECOND[stamp.unit]
        seconds[row], part[row] = ticks // per_second, (ticks % per_second) / per_second
    return seconds, part, wrong
