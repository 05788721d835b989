"""Checks of the input arrays of metrics, with errors that name the argument, the row and the value."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.ops.keys import as_keys, distinct_keys


def column(name: str, values: Any, rows: int | None = None, least: float | None = None, most: float | None = None) -> np.ndarray:
    """`values` as a float array (n,) without NaN, in `[least, most]`."""
    array: np.ndarray = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional. Received: shape {array.shape}")
    if rows is not None and array.size != rows:
        raise ValueError(f"`{name}` must have as many rows as the others. Received: {array.size} and {rows}")
    if array.size == 0:
        raise ValueError(f"`{name}` must have at least one row. Received: none")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must hold numbers. Received: dtype {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    low, high = float(array.min()), float(array.max())  # NaN if any value is NaN, so two passes check everything
    if np.isnan(low) or (least is not None and low < least) or (most is not None and high > most):
        exact = array.astype(np.float64)
        wrong = np.isnan(exact)
        if least is not None:
            wrong |= exact < least
        if most is not None:
            wrong |= exact > most
        row = int(wrong.argmax())
        wanted = "not be NaN"
        if least is not None:
            wanted = f"be at least {least:g}" if most is None else f"lie in [{least:g}, {most:g}]"
        raise ValueError(f"`{name}` must {wanted}. Received: {array[row]} at row {row}")
    return array


def binary(values: Any, rows: int | None = None) -> np.ndarray:
    """Labels as a boolean array (n,); every value must be 0 or 1."""
    array = column("labels", values, rows)
    positive: np.ndarray = array == 1
    wrong = ~positive & (array != 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"`labels` must be 0 or 1. Received: {array[row]} at row {row}")
    return positive


def optional_weights(values: Any, rows: int) -> np.ndarray | None:
    """Weights as float64 (n,), finite, >= 0 and not all 0; None stays None."""
    if values is None:
        return None
    array = column("weights", values, rows, least=0.0, most=float(np.finfo(np.float64).max)).astype(np.float64)
    if not array.any():
        raise ValueError("`weights` must not all be 0")
    return array


def group_codes(groups: Any, rows: int, name: str = "groups") -> np.ndarray:
    """Groups of any kind -> uint32 (n,), equal for equal groups, in the order of the groups where they have one.

    Raises:
        ValueError: another number of rows, a missing group, or floats so large that different groups may be equal.
    """
    array = as_keys(name, groups)
    if array.ndim != 1 or array.size != rows:
        raise ValueError(f"`{name}` must be one-dimensional with {rows} rows. Received: shape {array.shape}")
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        if high - low < 2**32:
            codes: np.ndarray = (array - array.dtype.type(low)).astype(np.uint32)
            return codes
    return distinct_keys(name, array).places.astype(np.uint32)


def by_group_and_score(codes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Row numbers ordered by group, then by ascending score; the order of tied rows is not defined.

    numpy sorts 64-bit integers several times faster than it sorts by two keys, so the group and the rank of the
    score are packed into one integer.
    """
    return by_group(codes, np.argsort(scores))


def by_group(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Row numbers `order` ordered by group, in the given order within each.

    Raises:
        ValueError: 2^32 rows or more.
    """
    if order.size >= 2**32:
        raise ValueError(f"at most 2^32 - 1 rows can be ranked at once. Received: {order.size}")
    if not codes.any():
        return order
    key = codes[order].astype(np.uint64) << np.uint64(32)
    key |= np.arange(order.size, dtype=np.uint64)
    key.sort()
    ranked: np.ndarray = order[(key & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    return ranked


def starts_of(*keys: np.ndarray) -> np.ndarray:
    """First rows of the ranges in which all of the sorted `keys` are constant."""
    changed = np.empty(keys[0].size, dtype=bool)
    changed[0] = True
    np.not_equal(keys[0][1:], keys[0][:-1], out=changed[1:])
    for key in keys[1:]:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)


def check_draws(samples: Any, confidence: float) -> None:
    """Check the arguments that all bootstraps have.

    Raises:
        ValueError: one out of range.
    """
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"`samples` must be a positive integer. Received: samples={samples!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie strictly between 0 and 1. Received: confidence={confidence}")
