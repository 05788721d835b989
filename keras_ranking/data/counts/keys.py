"""Keys of a state as numbers that stay the same while rows come in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import key_codes, key_faults, require_column
from keras_ranking.values import native_series, raise_first


class KeyNumbers:
    """A number for each key, in order of first appearance. Keys are values of a column, or tuples of several columns' values.

    Args:
        columns: of the key.
        keys: those known already, in order.
    """

    def __init__(self, columns: Sequence[str], keys: Sequence[Any] = ()) -> None:
        self.columns = tuple(columns)
        self._numbers: dict[Hashable, int] = {_key(key): number for number, key in enumerate(keys)}
        self._watched: pd.DataFrame | None = None
        self._codes: np.ndarray | None = None  # of the watched rows

    def __len__(self) -> int:
        return len(self._numbers)

    def of_rows(self, events: pd.DataFrame, add: bool = True) -> np.ndarray:
        """The number of each row's key, int64; -1 where a column of it is missing, or, without `add`, where it is not known.

        Raises:
            ValueError: a missing column, or values that cannot be told apart.
        """
        if events is self._watched and self._codes is not None:
            return self._codes
        for column in self.columns:
            require_column(events, column)
            raise_first(column, events[column], key_faults(events[column]))
        local = key_codes(events, self.columns)
        if not len(local):
            return local
        first = np.full(int(local.max()) + 2, -1, dtype=np.int64)  # row of each key; the last place is that of a missing key, -1
        first[local[::-1]] = np.arange(len(local) - 1, -1, -1)
        places = np.flatnonzero(first[:-1] >= 0)  # in order of first appearance
        parts = [native_series(events[column]).to_numpy()[first[places]].tolist() for column in self.columns]
        values = [_key(value) for value in (parts[0] if len(parts) == 1 else zip(*parts, strict=True))]
        numbers, known = np.full(len(first), -1, dtype=np.int64), self._numbers
        numbers[places] = [known.setdefault(value, len(known)) if add else known.get(value, -1) for value in values]
        codes = np.asarray(numbers[local])
        if add and events is self._watched:
            self._codes = codes
        return codes

    def watch(self, rows: pd.DataFrame | None) -> None:
        """Number these rows once, however often `of_rows` is asked for them; None: no rows."""
        self._watched, self._codes = rows, None

    def as_json(self) -> list[Any]:
        """The keys in order, as JSON keeps them."""
        return [list(key) if isinstance(key, tuple) else key for key in self._numbers]


def key_columns(key: str | Sequence[str]) -> tuple[str, ...]:
    """The columns of a key that is given as one or as several."""
    return (key,) if isinstance(key, str) else tuple(key)


def _key(value: Any) -> Any:
    """A key as a Python value."""
    if isinstance(value, (tuple, list)):
        return tuple(_key(part) for part in value)
    return value.item() if isinstance(value, np.generic) else value
