"""Ids of members and requests as arrays without Python objects, and the shard of a member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.ops.hashing import fingerprint64
from keras_ranking.values import integers_of, plain_series


def shard_of(members: Any, shards: int) -> np.ndarray:
    """The number of the shard of each member, int32: of a hash of its id, the same on every engine and in every order.

    Args:
        members: ids, integers or texts; missing ones, which the checks of a log find, are in some shard.
        shards: number of shards.

    Raises:
        TypeError, ValueError: values that are no ids.
    """
    series = plain_series(members)
    if series.dtype.kind in "biuf":
        numbers, _, beyond = integers_of(series)
        if not beyond.any():
            return _mixed(numbers.astype(np.uint64), shards)
    if series.dtype.kind == "M":
        return _mixed(series.to_numpy().astype("datetime64[us]").astype(np.int64).astype(np.uint64), shards)
    return _mixed(fingerprint64(series), shards)


def _mixed(numbers: np.ndarray, shards: int) -> np.ndarray:
    """SplitMix64's mixing, so that neighbouring numbers are in unrelated shards; the high half, modulo the number of shards."""
    with np.errstate(over="ignore"):
        mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed >> np.uint64(32)) % np.uint64(shards)).astype(np.int32)


def ids_as_arrays(values: pd.Series, role: str) -> dict[str, np.ndarray]:
    """Ids as one array of numbers or times, or as the bytes of texts and where each ends.

    Args:
        values: without missing ones.
        role: name of the arrays, and in messages.

    Raises:
        ValueError: ids of another type.
    """
    series = plain_series(values)
    if series.dtype.kind in "iu":
        return {role: series.to_numpy(dtype=np.uint64 if series.dtype.kind == "u" else np.int64)}
    if series.dtype.kind == "f":
        numbers, _, wrong = integers_of(series)
        return {role: series.to_numpy(dtype=np.float64) if wrong.any() else numbers}
    if series.dtype.kind == "M":
        if series.dt.tz is not None:
            series = series.dt.tz_convert("UTC").dt.tz_localize(None)
        return {role: series.to_numpy().astype("datetime64[us]")}
    texts = series.to_numpy(dtype=object)
    if len(texts) and all(isinstance(text, int | np.integer) for text in texts):
        return {role: texts.astype(np.int64)}
    if not all(isinstance(text, str) for text in texts):
        kinds = sorted({type(text).__name__ for text in texts})
        raise ValueError(f"column '{values.name}' is the {role} and must hold integers, texts or times, to be kept. Received: {kinds}")
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64) if encoded else np.zeros(0, dtype=np.int64)
    return {f"{role}.text": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{role}.ends": ends}


def ids_of_arrays(arrays: Mapping[str, np.ndarray], role: str) -> np.ndarray:
    """What `ids_as_arrays` was given: numbers, times, or texts as objects."""
    if role in arrays:
        return arrays[role]
    ends = arrays[f"{role}.ends"]
    data = arrays[f"{role}.text"].tobytes()
    begins = np.concatenate([[0], ends[:-1]]).tolist() if len(ends) else []
    return np.array([data[begin:end].decode() for begin, end in zip(begins, ends.tolist(), strict=True)], dtype=object)
