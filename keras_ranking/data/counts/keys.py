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

    def __len__(self) -> int:
        return len(self._numbers)

    def of_rows(self, events: pd.DataFrame, add: bool = True) -> np.ndarray:
        """The number of each row's key, int64; -1 where a column of it is missing, or, without `add`, where it is not known.

        Raises:
            ValueError: a missing column, or values that cannot be told apart.
        """
        for column in self.columns:
            require_column(events, column)
            raise_first(column, events[column], key_faults(events[column]))
        local = key_codes(events, self.columns)
        if not len(local):
            return local
        columns = [native_series(events[column]).to_numpy() for column in self.columns]
        found, first = np.unique(local, return_index=True)
        numbers = np.full(int(found[-1]) + 2, -1, dtype=np.int64)  # the last place is that of a missing key, -1
        for place, row in sorted(zip(found, first, strict=True), key=lambda pair: pair[1]):
            if place >= 0:
                value = _key(columns[0][row]) if len(columns) == 1 else tuple(_key(column[row]) for column in columns)
                numbers[place] = self._numbers.setdefault(value, len(self._numbers)) if add else self._numbers.get(value, -1)
        return np.asarray(numbers[local])

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
