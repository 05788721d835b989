"""Ids and groups as they are: integers never pass through float64, in which 2^53 and 2^53 + 1 are equal. numpy."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np

# By dtype of floats, the first integer from which on not every integer is a number of its own.
_EXACT = {2: 2**11, 4: 2**24, 8: 2**53}
_NUMERIC = "biuf"


class Keys(NamedTuple):
    """Distinct keys and where they are.

    Attributes:
        values: (U,) the keys, each once, sorted if they can be compared.
        places: int64 (n,) place of each row's key; -1 for a missing one.
    """

    values: np.ndarray
    places: np.ndarray


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT or pandas.NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA is neither equal nor unequal to itself
        return True


def distinct_keys(name: str, values: Any, missing: bool = False) -> Keys:
    """Keys of any kind -> each once, and the place of each row's.

    Args:
        name: of the argument, for errors.
        values: (n,) array, list or column of integers, text, times or other values that can be hashed.
        missing: whether a key may be missing.

    Raises:
        ValueError: not one-dimensional; a missing key; a float beyond the integers that its dtype holds exactly.
    """
    array = as_keys(name, values)
    if array.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional. Received: shape {array.shape}")
    if array.dtype == object:
        found = _objects(name, array)
    else:
        known, unknown = array, np.zeros(0, dtype=bool)
        if array.dtype.kind in "fcmM":
            unknown = array != array  # NaN, NaT
            known = array[~unknown]
        unique, index = np.unique(known, return_inverse=True)
        if unknown.any():
            whole = np.full(array.size, -1, dtype=np.int64)
            whole[~unknown], index = index, whole
        found = Keys(unique, index.astype(np.int64))
    if not missing and (found.places < 0).any():
        row = int((found.places < 0).argmax())
        raise ValueError(f"`{name}` must not be missing. Received: {_shown(array[row])} at row {row}")
    return found


def as_keys(name: str, values: Any) -> np.ndarray:
    """An array that holds each key exactly: objects, where one dtype cannot.

    Raises:
        ValueError: a float beyond the integers that its dtype holds exactly.
    """
    nulls = getattr(values, "null_count", 0)  # of Arrow and polars, whose integers with nulls become floats in numpy
    if nulls() if callable(nulls) else nulls:
        values = values.to_pylist() if hasattr(values, "to_pylist") else values.to_list()
    if hasattr(values, "to_numpy"):
        try:
            values = values.to_numpy()
        except (TypeError, ValueError):
            values = values.to_numpy(zero_copy_only=False)
    if isinstance(values, np.ndarray) or not isinstance(values, list | tuple):
        array = np.asarray(values)
    else:
        array = np.asarray(values) if all(type(value) is int for value in values) else np.empty(len(values), dtype=object)
        if array.dtype.kind not in "iu":  # also of integers that no dtype holds together
            array = np.empty(len(values), dtype=object)
            array[:] = values
    if array.dtype.kind == "f":
        _check_exact(name, array)
    return array


def same_kind(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether keys of two arrays can be equal at all: numbers and numbers, text and text."""
    kinds = [_kinds(array) for array in (first, second)]
    return not all(kinds) or bool(kinds[0] & kinds[1])


def _kinds(array: np.ndarray) -> set[str]:
    if array.dtype != object:
        return {"number" if array.dtype.kind in _NUMERIC else array.dtype.kind} if array.size else set()
    known = (value for value in array.reshape(-1) if not is_missing(value))
    return {"number" if isinstance(value, numbers.Number) else "U" if isinstance(value, str) else type(value).__name__ for value in known}


def _check_exact(name: str, array: np.ndarray, row: int | None = None) -> None:
    limit = _EXACT.get(array.dtype.itemsize, 2**53)
    wrong = np.abs(array) >= limit
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(
            f"`{name}` must not be {array.dtype} from {limit} on, where different integers are the same number: give integers or text. "
            f"Received: {array[place]} at row {place[0] if row is None else row}"
        )


def _objects(name: str, array: np.ndarray) -> Keys:
    seen: dict[Any, int] = {}
    index = np.empty(array.size, dtype=np.int64)
    for row, value in enumerate(array):
        if isinstance(value, float | np.floating):
            _check_exact(name, np.asarray(value), row)
        try:
            index[row] = -1 if is_missing(value) else seen.setdefault(value, len(seen))
        except (TypeError, ValueError):
            raise ValueError(f"`{name}` must hold numbers, text or times. Received: {_shown(value)} at row {row}") from None
    values = np.empty(len(seen), dtype=object)
    values[:] = list(seen)
    try:
        order = np.array(sorted(range(len(values)), key=values.__getitem__), dtype=np.int64)
    except TypeError:  # numbers and text together have no order
        return Keys(values, index)
    place = np.empty(len(values), dtype=np.int64)
    place[order] = np.arange(len(values))
    return Keys(values[order], np.where(index < 0, -1, place[index] if len(values) else -1))


def _shown(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)
