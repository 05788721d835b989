"""Columns of a log as arrays: times in seconds, and keys as numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd


def unix_seconds(events: pd.DataFrame, time: str) -> np.ndarray:
    """A column of Unix seconds or datetimes (UTC where they name no zone) as int64 seconds.

    Raises:
        ValueError: a missing time, or a number that is not whole, with its row.
    """
    series = events[time]
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        missing = series.isna().to_numpy()
        if missing.any():
            raise ValueError(f"column '{time}' must hold a time in every row. Received: NaT at row {int(missing.argmax())}")
        stamps = series.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(series.dt, "tz", None) is not None else series
        return np.asarray(stamps.to_numpy().astype("datetime64[s]").astype(np.int64))
    numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(numbers) | (numbers != np.floor(numbers))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"column '{time}' must hold whole seconds or datetimes. Received: {series.iloc[row]!r} at row {row}")
    return numbers.astype(np.int64)


def key_codes(events: pd.DataFrame, key: tuple[str, ...]) -> np.ndarray:
    """For each row the number of its key, 0 or more; -1 where a column of the key is missing."""
    codes = np.zeros(len(events), dtype=np.int64)
    for column in key:
        part, unique = pd.factorize(events[column])
        missing = (part < 0) | (codes < 0)
        combined = codes * max(len(unique), 1) + part
        # Re-numbered after every column, so that the product stays within int64.
        codes = np.where(missing, -1, pd.factorize(np.where(missing, -1, combined))[0]).astype(np.int64) if len(key) > 1 else part
    return codes
