"""Number: a column of numbers, with its transform, its constants and the bins of a piecewise-linear encoding."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from keras_ranking.column_base import Column
from keras_ranking.number_edges import MOST_BINS, checked_edges, quantile_edges
from keras_ranking.ops.logarithm import log1p
from keras_ranking.values import Faults, numbers_of, plain_series, raise_first

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Number(Column):
    """A number, transformed to float32.

    | transform           | formula                                  |
    |---------------------|------------------------------------------|
    | `identity`          | x                                        |
    | `log1p`             | ln(1 + x), x >= 0                        |
    | `standardise`       | (x - mean) / std                         |
    | `log1p_standardise` | (ln(1 + x) - mean) / std, x >= 0         |

    `mean`, `std` and `edges` are constants stored in the schema: give them, or let `Schema.fit` measure them on training rows. `edges`
    are those of a piecewise-linear encoding, see `NumericEmbedding`. They change no value that `encode` returns.

    Args:
        name: column of the log.
        transform: see the table.
        mean, std: fitted constants, in units of the (log-)value; None = not fitted yet.
        missing: the raw value that replaces a missing one. None: a missing value is an error.
        bins: most bins of the piecewise-linear encoding; None: the column has none. The paper tunes it; 16 is a start (our choice).
        edges: bounds of the bins, in units of the encoded value, increasing; None = not fitted yet. There are fewer than `bins` + 1 where
            quantiles of the training rows are equal.
        known: 'item', 'context', 'member' or 'after'.
        column: column of the log where that has another name, such as "price eur"; None: `name`.

    Example:
        >>> kr.Number("age_hours", transform="standardise", mean=10.0, std=4.0, missing=10.0).encode([2.0, 14.0, None]).tolist()
        [-2.0, 1.0, 0.0]
        >>> kr.Number("age_hours", bins=2).fit([0.0, 1.0, 2.0, 30.0, 40.0]).edges
        (0.0, 2.0, 40.0)
    """

    kind: Literal["number"] = "number"
    transform: Literal["identity", "log1p", "standardise", "log1p_standardise"] = "identity"
    mean: float | None = Field(default=None, allow_inf_nan=False)
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    missing: float | None = Field(default=None, allow_inf_nan=False)
    bins: int | None = Field(default=None, ge=1, le=MOST_BINS)
    edges: tuple[float, ...] | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @model_validator(mode="after")
    def _check_edges(self) -> Number:
        if self.edges is None:
            return self
        if self.bins is None or not 2 <= len(self.edges) <= self.bins + 1:
            raise ValueError(f"`edges` must be from 2 to `bins` + 1 numbers. Received: bins={self.bins}, {len(self.edges)} edges")
        object.__setattr__(self, "edges", checked_edges(self.edges))
        return self

    def _unstated(self) -> tuple[str, ...]:
        return () if self.bins is not None else ("bins", "edges")

    @property
    def fitted(self) -> bool:
        """Whether all constants are known: those of a standardising transform, and the edges of the bins."""
        return self._standardises and (self.bins is None or self.edges is not None)

    @property
    def _standardises(self) -> bool:
        """Whether `encode` can run: true unless a standardising transform has no constants yet."""
        return not self.transform.endswith("standardise") or (self.mean is not None and self.std is not None)

    def fit(self, values: Any) -> Number:
        """The same column with the constants that it lacks, measured on these values of training rows. See `Schema.fit`.

        Raises:
            ValueError: no values, or one that the column refuses.
        """
        series, made = plain_series(values), self
        numbers = self.before_standardise(series)
        if not len(numbers):
            raise ValueError(f"column '{self.name}' cannot be fitted on a log without rows.")
        if not self._standardises:
            constant = numbers.min() == numbers.max()  # std == 0 would miss it: rounding of the mean gives a std of 1e-17
            mean = float(numbers[0] if constant else numbers.mean()) if self.mean is None else self.mean
            std = float(1.0 if constant else numbers.std() or 1.0) if self.std is None else self.std  # 0: a spread below float64
            made = self.model_copy(update={"mean": mean, "std": std})
        if made.bins is not None and made.edges is None:
            encoded, faults = made._standardised(series)
            for refused, _ in faults:  # beyond float32: whoever encodes the rows raises it, or leaves it out
                encoded = np.where(refused, np.nan, encoded)
            edges = quantile_edges(encoded[~np.isnan(encoded)].astype(np.float32), made.bins)
            made = made.model_copy(update={"edges": checked_edges(edges, f"edges of column '{self.name}'")})
        return made

    def before_standardise(self, values: Any) -> np.ndarray:
        """The values after imputation and logarithm, in float64; what `Schema.fit` measures mean and std of."""
        series = plain_series(values)
        numbers, faults = self._before_standardise(series)
        raise_first(self.name, series, faults)
        return numbers

    def _before_standardise(self, series: pd.Series) -> tuple[np.ndarray, Faults]:
        numbers, wrong = numbers_of(series)
        missing = np.isnan(numbers) & ~wrong
        if self.missing is not None:
            numbers = np.where(missing, self.missing, numbers)
        faults = [(wrong, "must hold numbers"), (np.isinf(numbers), "must hold finite numbers")]
        if self.missing is None:
            faults.append((missing, f"must not be missing; state Number('{self.name}', missing=...) to replace missing values"))
        numbers = np.where(np.isfinite(numbers), numbers, 0.0)
        if self.transform.startswith("log1p"):
            faults.append((numbers < 0, f"has transform={self.transform!r} and must not be negative"))
            numbers = log1p(np.maximum(numbers, 0.0))  # this function, not numpy's: a served graph computes the same bits
        faults.append((np.abs(numbers) > _FLOAT32_MAX, "must hold numbers within float32"))
        return numbers, faults

    def _standardised(self, series: pd.Series) -> tuple[np.ndarray, Faults]:
        numbers, faults = self._before_standardise(series)
        if self.transform.endswith("standardise") and self.mean is not None and self.std is not None:
            with np.errstate(over="ignore"):
                numbers = (numbers - self.mean) / self.std
            beyond = ~(np.abs(numbers) <= _FLOAT32_MAX)
            faults.append((beyond, f"must be within float32 after transform={self.transform!r}"))
        return numbers, faults

    def faults(self, values: Any) -> Faults:
        return self._standardised(plain_series(values))[1]

    def encode(self, values: Any) -> np.ndarray:
        if not self._standardises:
            raise ValueError(
                f"column '{self.name}' has transform={self.transform!r} without `mean` and `std`: "
                "call `schema = schema.fit(training_rows)` first."
            )
        series = plain_series(values)
        numbers, faults = self._standardised(series)
        raise_first(self.name, series, faults)
        return numbers.astype(np.float32)
