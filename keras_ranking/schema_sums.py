"""Means and standard deviations of a schema's numbers from sums over parts of a log, which merge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.number_column import Number
from keras_ranking.schema import Schema
from keras_ranking.values import require_frame


@dataclass(frozen=True)
class ColumnSums:
    """What is known of one number over some rows.

    Attributes:
        rows: number of rows.
        mean, std: of the values before standardising.
        low, high: least and largest of them.

    Example:
        >>> from keras_ranking.schema_sums import ColumnSums
        >>> ColumnSums.of(np.array([1.0, 3.0])).merged(ColumnSums.of(np.array([5.0]))).mean
        3.0
    """

    rows: int
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: np.ndarray) -> ColumnSums:
        """The sums of these values."""
        if not len(numbers):
            return cls(0, 0.0, 0.0, math.inf, -math.inf)
        return cls(len(numbers), float(numbers.mean()), float(numbers.std()), float(numbers.min()), float(numbers.max()))

    def merged(self, other: ColumnSums) -> ColumnSums:
        """The sums over the rows of both (Chan, Golub and LeVeque, 1979)."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        rows, apart = self.rows + other.rows, other.mean - self.mean
        share = other.rows / rows
        variance = (1 - share) * self.std**2 + share * other.std**2 + apart**2 * share * (1 - share)
        return ColumnSums(rows, self.mean + apart * share, math.sqrt(variance), min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class SchemaSums:
    """Sums from which `Schema.fit` has its means and standard deviations, for logs that come in parts.

        n = n_a + n_b,   mean = mean_a + (mean_b - mean_a) n_b / n
        n var = n_a var_a + n_b var_b + (mean_b - mean_a)^2 n_a n_b / n

    The sums of one part give the constants of `Schema.fit` to the bit; those of several parts, merged in one order, give the same
    bits again, and `Schema.fit` of all rows to 1e-12 relative.

    Attributes:
        columns: by name of a number whose constants are not fitted, its sums.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> parts = [log.events.iloc[:500], log.events.iloc[500:]]
        >>> sums = kr.data.SchemaSums.merged([kr.data.SchemaSums.of(log.schema, part) for part in parts])
        >>> whole = log.schema.fit(log.events)
        >>> [abs(a.mean - b.mean) < 1e-9 for a, b in zip(sums.fitted(log.schema).features, whole.features) if a.name == "age_hours"]
        [True]
    """

    columns: dict[str, ColumnSums] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: Schema, events: pd.DataFrame) -> SchemaSums:
        """The sums of rows, which may be none.

        Args:
            schema: what the columns are; numbers that have their constants are left out.
            events: rows to train on.

        Raises:
            TypeError: `events` is not a DataFrame.
            ValueError: a value that its column refuses.
        """
        require_frame(events)
        return cls({column.name: ColumnSums.of(column.before_standardise(events[column.name])) for column in _unfitted(schema)})

    @classmethod
    def merged(cls, parts: Iterable[SchemaSums]) -> SchemaSums:
        """The sums over the rows of all parts, in the order given."""
        made: dict[str, ColumnSums] = {}
        for part in parts:
            for name, sums in part.columns.items():
                made[name] = made[name].merged(sums) if name in made else sums
        return cls(made)

    def fitted(self, schema: Schema) -> Schema:
        """The schema with the constants; edges of bins are not among them.

        Raises:
            ValueError: no sums of a column, or sums over no rows.
        """
        wanted = {column.name for column in _unfitted(schema)}

        def fitted(column: Any) -> Any:
            if column.name not in wanted:
                return column
            sums = self.columns.get(column.name)
            if sums is None or not sums.rows:
                raise ValueError(f"column '{column.name}' cannot be fitted on a log without rows.")
            constant = sums.low == sums.high
            mean = (sums.low if constant else sums.mean) if column.mean is None else column.mean
            std = (1.0 if constant else sums.std or 1.0) if column.std is None else column.std
            return column.model_copy(update={"mean": mean, "std": std})

        return schema.model_copy(update={"features": tuple(map(fitted, schema.features)), "actions": tuple(map(fitted, schema.actions))})

    def plain(self) -> dict[str, dict[str, float]]:
        """For JSON, which keeps every bit of a finite float."""
        return {name: asdict(sums) for name, sums in self.columns.items() if sums.rows}

    @classmethod
    def read(cls, plain: Mapping[str, Mapping[str, Any]]) -> SchemaSums:
        """What `plain` wrote."""
        return cls({name: ColumnSums(**sums) for name, sums in plain.items()})


def _unfitted(schema: Schema) -> list[Number]:
    if tasks := [task.name for task in schema.tasks if not task.fitted]:
        raise ValueError(f"task '{tasks[0]}' must have its `mean` and `std` where a log comes in parts. Received: mean=None, std=None")
    columns = (*schema.features, *schema.actions)
    return [
        column
        for column in columns
        if isinstance(column, Number) and column.transform.endswith("standardise") and (column.mean is None or column.std is None)
    ]
