"""RunningMoments: how often, how regularly and how much: visits of a member, purchases of an item by a member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers, key_columns
from keras_ranking.data.counts.moments import merged_moments, places_up_to
from keras_ranking.data.counts.state import State, check_delay
from keras_ranking.data.counts.windowed import amounts_of


class RunningMoments(State):
    """The rhythm of a key and the size of what was done at once: of a member's visits, or of a member's purchases of an item.

    The rows of a key in one second are one moment. Over the moments 1 .. n of the row's key, t_1 < ... < t_n, up to `delay` before the
    row:

        moments        = n
        gap_last       = t_n - t_(n-1),  gap_mean = (t_n - t_1) / (n - 1)       NaN for n < 2
        due            = (t - t_n) / gap_mean                                   NaN for n < 2; 1: the usual gap has passed
        rows_last      = rows of moment n,  rows_mean = rows / n                NaN for n = 0
        {action}_sum_last, {action}_sum_mean: the same of the sum of an action's column over the rows of a moment

    With the member as key, rows of purchases give the size of baskets, and rows of lists with the outcome as action how many of a list
    are taken: what a rate by row cannot say. With the member and the item, `due` says whether it is time to buy again. Our choice.

    Args:
        key: a column or a tuple of columns, such as "member" or ("member", "item").
        actions: columns to sum over the rows of a moment, such as "quantity".
        time: column with whole Unix seconds or datetimes.
        delay: seconds, a whole number >= 1.

    Raises:
        ValueError: a delay below 1.

    Example:
        >>> log = pd.DataFrame({"member": 1, "time": [0, 0, 100, 160], "quantity": [2.0, 1.0, 4.0, 1.0]})
        >>> state = kr.data.RunningMoments("member", ["quantity"])
        >>> out = state.update(log)
        >>> out[["member_moments", "member_gap_last", "member_quantity_sum_mean"]].iloc[-1].tolist()
        [2.0, 100.0, 3.5]
        >>> state.features(pd.DataFrame({"member": [1]}), time=200)["member_due"].tolist()
        [0.5]
    """

    settings: ClassVar[tuple[str, ...]] = ("by", "actions", "time", "delay")

    def __init__(self, key: str | Sequence[str], actions: str | Sequence[str] = (), time: str = "time", delay: int = 1) -> None:
        super().__init__(time)
        self.by, self.actions = list(key_columns(key)), [actions] if isinstance(actions, str) else list(actions)
        self.delay = check_delay("delay", delay)
        self.keys = {"key": KeyNumbers(self.by)}
        self._codes, self._times = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, 1 + len(self.actions)))  # rows, and sums of the actions, of each moment that is kept
        # Of each key, what its older moments add up to: how many, the first time, the last time, and the sums.
        self._before = np.zeros((0, 3 + self._rows.shape[1]))

    @classmethod
    def _made(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> RunningMoments:
        made = cls(**{("key" if name == "by" else name): value for name, value in settings.items()})
        made._codes, made._times, made._rows, made._before = (arrays[f"moments_{name}"] for name in ("codes", "times", "rows", "before"))
        return made

    def anew(self) -> RunningMoments:
        made = super().anew()
        made._codes, made._times, made._rows, made._before = self._codes[:0], self._times[:0], self._rows[:0], self._before[:0]
        return made

    def _more(self) -> dict[str, np.ndarray]:
        return {"moments_codes": self._codes, "moments_times": self._times, "moments_rows": self._rows, "moments_before": self._before}

    @property
    def columns(self) -> tuple[str, ...]:
        label = "_".join(self.by)
        sums = [f"{label}_{name}" for name in ("rows", *(f"{action}_sum" for action in self.actions))]
        rhythm = [f"{label}_{name}" for name in ("moments", "gap_last", "gap_mean", "due")]
        return (*rhythm, *(f"{name}_{which}" for name in sums for which in ("last", "mean")))

    def update(self, events: pd.DataFrame, counted: Any = None, round: str | None = None) -> pd.DataFrame:
        out = super().update(events, counted, round)
        if self.last is not None and len(self._codes):
            # Of the moments that every later question sees, the newest of a key is kept; older ones are added up.
            settled = self._times <= self.last - self.delay
            older = settled & np.r_[settled[1:] & (self._codes[1:] == self._codes[:-1]), False]
            codes, times = self._codes[older], self._times[older].astype(np.float64)
            fresh = self._before[:, 0] == 0
            first = np.r_[True, codes[1:] != codes[:-1]] if len(codes) else np.zeros(0, dtype=bool)
            begins = first & fresh[codes]
            self._before[codes[begins], 1] = times[begins]
            np.maximum.at(self._before[:, 2], codes, times)
            np.add.at(self._before[:, 0], codes, 1.0)
            np.add.at(self._before[:, 3:], codes, self._rows[older])
            self._codes, self._times, self._rows = self._codes[~older], self._times[~older], self._rows[~older]
        return out

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        amounts = np.column_stack([np.ones(len(events)), *(amounts_of(events, action, counted) for action in self.actions)])
        codes = self.keys["key"].of_rows(events)
        rows = np.flatnonzero(counted & (codes >= 0))
        codes, times = np.concatenate([self._codes, codes[rows]]), np.concatenate([self._times, times[rows]])
        amounts = np.concatenate([self._rows, amounts[rows]])
        self._codes, self._times, self._rows = merged_moments(codes, times, amounts)
        new = len(self.keys["key"]) - len(self._before)
        empty = np.zeros((new, self._before.shape[1]))
        empty[:, 2] = -np.inf
        self._before = np.concatenate([self._before, empty])

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        codes, moments = self.keys["key"].of_rows(rows, add=False), times - self.delay
        out = {name: np.full(len(rows), np.nan) for name in self.columns}
        out[self.columns[0]][:] = 0.0
        if not len(self._codes) or not len(rows):
            return out
        at = self._newest(codes, moments)
        there = np.flatnonzero(at >= 0)
        at = at[there]
        # Of each moment that is kept: its number in its key, the time of the one before, the time of the first, and sums so far.
        begins = np.r_[True, self._codes[1:] != self._codes[:-1]]
        begin = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        base, known = self._before[self._codes], self._before[self._codes, 0] > 0
        number = np.arange(len(self._codes)) - begin + 1 + base[:, 0]
        before = np.where(begins, np.where(known, base[:, 2], np.nan), np.r_[np.nan, self._times[:-1]])
        first = np.where(known, base[:, 1], self._times[begin])
        # By key: a running sum over all keys would carry the rounding of others, later rows among them.
        sums = pd.DataFrame(self._rows).groupby(self._codes).cumsum().to_numpy() + base[:, 3:]
        found = number[at]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(found > 1, (self._times[at] - first[at]) / (found - 1), np.nan)
            due = (times[there] - self._times[at]) / mean
        values = [found, self._times[at] - before[at], mean, due]
        for column in range(self._rows.shape[1]):
            values += [self._rows[at, column], sums[at, column] / found]
        for name, value in zip(self.columns, values, strict=True):
            out[name][there] = value
        return out

    def _newest(self, codes: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Place of the newest kept moment of each key up to a time; -1 where there is none."""
        at = places_up_to(self._codes, self._times, codes, moments)
        return np.where((codes >= 0) & (at >= 0) & (self._codes[np.maximum(at, 0)] == codes), at, -1)
