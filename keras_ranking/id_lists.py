"""Lists of ids, one for each row of a log, as the ids of all rows in one array: a list column, or separated text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.ops.hashing import DistinctIds, as_series, distinct_ids
from keras_ranking.values import Faults, plain_series

_NARROW = "has ids in float16 or float32, which do not hold every integer: use int64 or text"
_ONE_ID = (int, float, np.integer, np.floating, np.bool_)


@dataclass(frozen=True)
class IdLists:
    """The lists of n rows, without what is missing in them.

    Attributes:
        series: the values of the log.
        ids: the distinct ids of all lists; its rows are the m elements of the lists, row by row, missing ones included.
        owner: (k,) int64, the row of each known id, not decreasing.
        known: (m,) bool: which elements are ids; k of them.
        counts: (n,) int64, known ids of each row.
        faults: of values that are no lists, and of elements that are no ids.
    """

    series: pd.Series
    ids: DistinctIds
    owner: np.ndarray
    known: np.ndarray
    counts: np.ndarray
    faults: Faults

    def spread(self, values: np.ndarray, fill: Any, size: int, last: bool = False) -> np.ndarray:
        """Values (d, ...) of the distinct ids as an array (n, size, ...): those of each row in their order, then `fill`.

        Args:
            values: of each distinct id.
            fill: of places without an id.
            size: places of a row.
            last: whether a longer list keeps its last ids; else its first ones.
        """
        place = np.arange(len(self.owner)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        if last:
            place = place - np.maximum(self.counts - size, 0)[self.owner]
        kept = (place >= 0) & (place < size)
        out = np.full((len(self.counts), size, *values.shape[1:]), fill, dtype=values.dtype)
        out[self.owner[kept], place[kept]] = values[self.ids.codes[self.known]][kept]
        return out


def read_lists(values: Any, separator: str | None) -> IdLists:
    """The lists of a column.

    Args:
        values: lists, tuples, arrays or sets, one for each row; or an array (n, any) with as many ids in each row; with a separator also
            texts, and single numbers. None, NaN and an empty text are lists without ids.
        separator: what stands between ids in text; None: text is no list.
    """
    series, lists, wrong, texts = _cells(values, separator)
    sizes = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    elements, narrow = _joined(lists)
    owner = np.repeat(np.arange(len(lists)), sizes)
    ids = distinct_ids(elements)

    def rows(bad: np.ndarray) -> np.ndarray:
        found = np.zeros(len(lists), dtype=bool)
        found[owner[bad]] = True
        return found

    faults: Faults = [(wrong & ~texts, "must hold lists of ids")]
    faults.append((texts, "must hold lists of ids, and holds text; Ids(..., separator='|') reads ids with '|' between them"))
    faults.append((rows(narrow), _NARROW))
    faults += [(rows(bad), reason.replace("is an id and must hold", "has ids, which must be")) for bad, reason, _ in ids.fault_rows()]
    known = ids.at_rows(ids.texts != "", False) & ~narrow
    owner = owner[known]
    counts = np.bincount(owner, minlength=len(lists))
    return IdLists(series, ids, owner, known, counts, [fault for fault in faults if fault[0].any()])


def _cells(values: Any, separator: str | None) -> tuple[pd.Series, list[Collection[Any]], np.ndarray, np.ndarray]:
    """The values as a Series, the list of each, which are no lists, and which of these are text."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        values = list(values)
    if hasattr(values, "to_pylist"):  # of pyarrow
        values = values.to_pylist()
    if isinstance(values, pd.Series) or (isinstance(values, np.ndarray) and values.dtype.kind != "O"):
        series = plain_series(values)
    else:
        series = pd.Series(list(values), dtype=object)
    cells, missing = series.to_numpy(dtype=object), series.isna().to_numpy(dtype=bool)
    wrong, texts = np.zeros(len(cells), dtype=bool), np.zeros(len(cells), dtype=bool)
    lists: list[Collection[Any]] = []
    for row, cell in enumerate(cells):
        found: Collection[Any] | None = () if missing[row] else _list_of(cell, separator)
        if found is None:
            wrong[row], texts[row] = True, isinstance(cell, str | bytes)
        lists.append(() if found is None else found)
    return series, lists, wrong, texts


def _list_of(cell: Any, separator: str | None) -> Collection[Any] | None:
    """The elements of a value that is not missing; None: it is no list."""
    if isinstance(cell, str | bytes):
        if separator is None:
            return None
        return cell.split(separator) if isinstance(cell, str) else cell.split(separator.encode())
    if isinstance(cell, np.ndarray):
        return cell if cell.ndim == 1 else None
    if isinstance(cell, _ONE_ID):
        return None if separator is None else (cell,)
    if hasattr(cell, "as_py"):  # a value of pyarrow
        return () if (found := cell.as_py()) is None else _list_of(found, separator)
    if isinstance(cell, set | frozenset):
        return sorted(cell, key=str)  # a set has no order of its own
    if isinstance(cell, pd.Series | pd.Index):
        return cell.to_numpy()
    return cell if isinstance(cell, Sequence) and not isinstance(cell, bytearray | memoryview) else None


def _joined(lists: list[Collection[Any]]) -> tuple[pd.Series, np.ndarray]:
    """The elements of all lists as one column, and which of them are floats of less than 64 bits."""
    kinds = {(type(found), getattr(found, "dtype", None)) for found in lists if len(found)}
    if len(kinds) == 1 and isinstance(dtype := next(iter(kinds))[1], np.dtype) and dtype.kind in "biu":
        whole = np.concatenate([np.asarray(found) for found in lists if len(found)])
        return pd.Series(whole), np.zeros(len(whole), dtype=bool)
    flat = list(chain.from_iterable(lists))
    narrow = np.zeros(len(flat), dtype=bool)
    if any(issubclass(kind, float | np.floating) for kind in set(map(type, flat))):
        narrow[:] = [isinstance(value, np.float16 | np.float32) and not np.isnan(value) for value in flat]
        flat = list(map(_without_fraction, flat))
    return as_series(flat), narrow


def _without_fraction(value: Any) -> Any:
    """A float64 that is an integer as this integer, and one that is missing as None: an integer list with gaps arrives as floats.

    Every list is read by itself: what other rows hold does not decide whether a float is an id.
    """
    if not isinstance(value, float | np.floating):
        return value
    if np.isnan(value) or isinstance(value, np.float16 | np.float32):
        return None
    return int(value) if value == np.floor(value) and abs(value) < 2**53 else value
