"""RunningExpectation: what could be expected of a row from rates alone, as a state that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers, key_columns
from keras_ranking.data.counts.running_sums import RunningSums
from keras_ranking.data.counts.state import State, check_delay
from keras_ranking.data.counts.windowed import Key
from keras_ranking.data.log_columns import require_column
from keras_ranking.values import numbers_of, raise_first

_ALL = "all rows"


class RunningExpectation(State):
    """The chance of an outcome from the rates of the row's keys, and the residual that the outcome leaves.

    With rates q of each key k, drawn to the rate q_0 of all rows, over the rows up to `delay` before:

        q_0 = (sum of y + 1) / (rows + 2),       q_k = (sum of y of k + weight q_0) / (rows of k + weight)
        expected = sigmoid( sum_k logit q_k - (number of keys - 1) logit q_0 )
        residual = y - expected,                 0 where y is missing

    Rates of item and member add up as in a logistic regression without weights. A history that holds residuals says in what a member
    differs from what the item's and the member's rates say already. The form is our choice. The residual of a row is known when its
    outcome is: it is an action of the past, never a feature of its own row.

    Args:
        keys: columns, or tuples of columns, such as ["item", "member"].
        outcome: 0/1 column.
        time: column with whole Unix seconds or datetimes.
        delay: seconds, a whole number >= 1: of others' outcomes and of own ones.
        weight: rows of the overall rate that each key's rate starts from. Our choice: 5.

    Raises:
        ValueError: no key, a delay below 1, a weight that is not positive.

    Example:
        >>> log = pd.DataFrame({"member": [1, 1, 1], "item": [5, 6, 5], "time": [0, 10, 20], "click": [1, 1, 0]})
        >>> kr.data.RunningExpectation(["item", "member"], delay=1).update(log).round(2).values.tolist()
        [[0.5, 0.5], [0.72, 0.28], [0.85, -0.85]]
    """

    settings: ClassVar[tuple[str, ...]] = ("by", "outcome", "time", "delay", "weight")

    def __init__(self, keys: Key | Sequence[Key], outcome: str = "click", time: str = "time", delay: int = 1, weight: float = 5.0) -> None:
        super().__init__(time)
        self.by = [list(key_columns(key)) for key in ([keys] if isinstance(keys, (str, tuple)) else keys)]
        if not self.by or not 0 < weight < np.inf:
            raise ValueError(f"`keys` must not be empty, and `weight` positive. Received: keys={keys}, weight={weight}")
        self.outcome, self.delay, self.weight = outcome, check_delay("delay", delay), float(weight)
        self.keys = {"_".join(columns): KeyNumbers(columns) for columns in self.by}
        self.sums = {label: RunningSums(2, self.delay) for label in (*self.keys, _ALL)}

    @classmethod
    def _made(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> RunningExpectation:
        keys = [tuple(columns) for columns in settings["by"]]
        return cls(keys, **{name: value for name, value in settings.items() if name != "by"})

    @property
    def columns(self) -> tuple[str, ...]:
        return f"{self.outcome}_expected", f"{self.outcome}_residual"

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        require_column(events, self.outcome)
        outcome = self._outcome(events)
        counted = counted & ~np.isnan(outcome)
        amounts = np.column_stack([np.ones(len(events)), np.nan_to_num(outcome)])
        for label, numbers in self.keys.items():
            codes = numbers.of_rows(events)
            rows = np.flatnonzero(counted & (codes >= 0))
            self.sums[label].add(codes[rows], times[rows], np.take(amounts, rows, axis=0), len(numbers))
        rows = np.flatnonzero(counted)
        self.sums[_ALL].add(np.zeros(len(rows), dtype=np.int64), times[rows], np.take(amounts, rows, axis=0), 1)

    def _outcome(self, events: pd.DataFrame) -> np.ndarray:
        outcome, no_number = numbers_of(events[self.outcome])
        wrong = no_number | ~(np.isnan(outcome) | ((outcome >= 0) & (outcome <= 1)))
        raise_first(self.outcome, events[self.outcome], [(wrong, "must hold numbers from 0 to 1")])
        return outcome

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        moments = times - self.delay
        every = self.sums[_ALL].until(np.zeros(len(rows), dtype=np.int64), moments)
        overall = (every[:, 1] + 1.0) / (every[:, 0] + 2.0)
        logit = -(len(self.by) - 1) * _logit(overall)
        for label, numbers in self.keys.items():
            found = self.sums[label].until(numbers.of_rows(rows, add=False), moments)
            logit = logit + _logit((found[:, 1] + self.weight * overall) / (found[:, 0] + self.weight))
        expected = 1.0 / (1.0 + np.exp(-logit))
        outcome = self._outcome(rows) if self.outcome in rows else np.full(len(rows), np.nan)
        return dict(zip(self.columns, (expected, np.where(np.isnan(outcome), 0.0, outcome - expected)), strict=True))


def _logit(rate: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(rate) - np.log1p(-rate), dtype=np.float64)
