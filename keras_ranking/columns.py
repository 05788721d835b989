"""The kinds of columns of a log, each with the encoding of its values for a model; and tasks, the labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from keras_ranking.column_base import Column
from keras_ranking.count_column import Count
from keras_ranking.id_columns import Category, Id, Ids
from keras_ranking.number_column import Number
from keras_ranking.semantic_id_column import SemanticId
from keras_ranking.task import Task
from keras_ranking.values import Faults, raise_first

__all__ = ["Category", "Count", "Feature", "Id", "Ids", "Number", "SemanticId", "Task", "Vector"]


class Vector(Column):
    """A precomputed vector of fixed size (a content or profile embedding), float32.

    Args:
        name: column of the log; each value a sequence of `size` numbers.
        size: length of the vector.
        missing: the number that fills the vector of a row that has none (None, NaN), such as 0.0. None: such a row is an error.
        known: 'item', 'context', 'member' or 'after'.
        column: column of the log where that has another name; None: `name`.

    Example:
        >>> kr.Vector("text_embedding", size=2).encode([[0.5, 1.0], [0.0, 2.0]]).tolist()
        [[0.5, 1.0], [0.0, 2.0]]
        >>> kr.Vector("text_embedding", size=2, missing=0.0).encode([[0.5, 1.0], None]).tolist()
        [[0.5, 1.0], [0.0, 0.0]]
    """

    kind: Literal["vector"] = "vector"
    size: int = Field(ge=1)
    missing: float | None = Field(default=None, allow_inf_nan=False)

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    def _unstated(self) -> tuple[str, ...]:
        return () if self.missing is not None else ("missing",)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def encode(self, values: Any) -> np.ndarray:
        series, block, faults = self._block(values)
        raise_first(self.name, series, faults)
        return block

    def faults(self, values: Any) -> Faults:
        return self._block(values)[2]

    def _block(self, values: Any) -> tuple[Any, np.ndarray, Faults]:
        """The values as a Series, their vectors (n, size), zero where a value is none, and the faults."""
        whole = isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and values.ndim == 2 and values.shape[1] == self.size
        rows = values if whole else list(values)
        wrong = np.zeros(len(rows), dtype=bool)
        if not whole:
            absent = [self.missing is not None and (value is None or value is pd.NA or _is_nan(value)) for value in rows]
            fill = [self.missing] * self.size
            rows = [fill if none else value for value, none in zip(rows, absent, strict=True)] if any(absent) else rows
            wrong[:] = [not self._is_vector(value) for value in rows]
        out = np.zeros((len(rows), self.size), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a value beyond float32 becomes infinite and is a fault below
            if whole:
                out[:] = rows
            elif not wrong.all():
                out[~wrong] = [value for value, bad in zip(rows, wrong, strict=True) if not bad]
        series = values if isinstance(values, pd.Series) else pd.Series(list(rows), dtype=object)
        faults: Faults = [(wrong, f"must hold vectors of {self.size} numbers")]
        infinite: np.ndarray = np.asarray(~np.isfinite(out).all(axis=1))
        if infinite.any():
            beyond = infinite.copy()
            beyond[infinite] = [bool(np.isfinite(np.asarray(rows[row], dtype=np.float64)).all()) for row in np.flatnonzero(infinite)]
            faults += [(infinite & ~beyond, "must hold finite numbers"), (beyond, "must hold numbers within float32")]
        return series, out, faults

    def _is_vector(self, value: Any) -> bool:
        try:
            sized = not isinstance(value, str | bytes) and len(value) == self.size
        except TypeError:  # a number, or an array of no dimension
            return False
        if not sized:
            return False
        if np.ma.isMaskedArray(value) and np.ma.getmaskarray(value).any():
            return False
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError):  # lists of several lengths
            return False
        if array.dtype.kind not in "fiu" or array.shape != (self.size,):
            return False
        return isinstance(value, np.ndarray) or not any(isinstance(number, bool | np.bool_) for number in value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


Feature = Annotated[Id | Category | Ids | SemanticId | Number | Vector | Count, Field(discriminator="kind")]
