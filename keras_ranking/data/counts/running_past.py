"""RunningPast: a key's last outcomes and the time since, as a state that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers, key_columns
from keras_ranking.data.counts.moments import merged_moments, places_up_to
from keras_ranking.data.counts.state import State, check_delay
from keras_ranking.data.counts.windowed import amounts_of


class RunningPast(State):
    """What was last done with each row's key, and how long ago; with the member in the key, the member's own past.

    Over the seconds in which the key had rows, up to `delay` before the row, the newest first:

        seconds_since    = t - the newest second                   `never` where there is none
        {action}_last_k  = mean of the action over the rows of the k-th second, NaN where there is none

    Rows of one second are one moment, whose order means nothing.

    Args:
        key: a column or a tuple of columns, such as ("member", "author").
        actions: columns of outcomes, 0/1 or any finite amount.
        last: number of moments.
        time: column with whole Unix seconds or datetimes.
        delay: seconds, a whole number >= 1.
        never: `seconds_since` of a key without a past, in seconds.

    Raises:
        ValueError: a delay or `last` below 1.

    Example:
        >>> log = pd.DataFrame({"member": 1, "author": list("aab"), "time": [0, 50, 80], "click": [1, 0, 1]})
        >>> past = kr.data.RunningPast(("member", "author"), last=1)
        >>> past.update(log)["member_author_click_last_1"].tolist()
        [nan, 1.0, nan]
        >>> past.features(pd.DataFrame({"member": [1], "author": ["b"]}), time=100).iloc[0].tolist()
        [20.0, 1.0]
    """

    settings: ClassVar[tuple[str, ...]] = ("by", "actions", "last_moments", "time", "delay", "never")

    def __init__(
        self,
        key: str | Sequence[str],
        actions: str | Sequence[str] = ("click",),
        last: int = 3,
        time: str = "time",
        delay: int = 1,
        never: float = 365 * 86400.0,
    ) -> None:
        super().__init__(time)
        if last < 1:
            raise ValueError(f"`last` must be a positive integer. Received: last={last}")
        self.by, self.actions = list(key_columns(key)), [actions] if isinstance(actions, str) else list(actions)
        self.last_moments, self.delay, self.never = int(last), check_delay("delay", delay), float(never)
        self.keys = {"key": KeyNumbers(self.by)}
        # Moments by key and time: how many there were before, the time and the means of each, newest `last` and those still unknown kept.
        self._codes, self._times = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, 1 + len(self.actions)))  # number of rows and sums of the actions, by moment

    @classmethod
    def _made(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> RunningPast:
        names = {"by": "key", "last_moments": "last"}
        made = cls(**{names.get(name, name): value for name, value in settings.items()})
        made._codes, made._times, made._rows = (arrays[f"moments_{name}"] for name in ("codes", "times", "rows"))
        return made

    def anew(self) -> RunningPast:
        made = super().anew()
        made._codes, made._times, made._rows = self._codes[:0], self._times[:0], self._rows[:0]
        return made

    def _more(self) -> dict[str, np.ndarray]:
        return {"moments_codes": self._codes, "moments_times": self._times, "moments_rows": self._rows}

    @property
    def columns(self) -> tuple[str, ...]:
        label = "_".join(self.by)
        lasts = [f"{label}_{action}_last_{place}" for action in self.actions for place in range(1, self.last_moments + 1)]
        return (f"{label}_seconds_since", *lasts)

    def update(self, events: pd.DataFrame, counted: Any = None, round: str | None = None) -> pd.DataFrame:
        out = super().update(events, counted, round)
        if self.last is not None and len(self._codes):
            # Of what every later question sees, the newest `last` moments of a key are enough.
            settled = self._times <= self.last - self.delay
            ends = np.r_[self._codes[1:] != self._codes[:-1], True]
            total = np.cumsum(settled)
            end = np.flatnonzero(ends)[np.searchsorted(np.flatnonzero(ends), np.arange(len(ends)))]
            keep = ~settled | (total[end] - total < self.last_moments)
            self._codes, self._times, self._rows = self._codes[keep], self._times[keep], self._rows[keep]
        return out

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        amounts = np.column_stack([np.ones(len(events)), *(amounts_of(events, action, counted) for action in self.actions)])
        codes = self.keys["key"].of_rows(events)
        rows = np.flatnonzero(counted & (codes >= 0))
        codes, times = np.concatenate([self._codes, codes[rows]]), np.concatenate([self._times, times[rows]])
        amounts = np.concatenate([self._rows, amounts[rows]])
        self._codes, self._times, self._rows = merged_moments(codes, times, amounts)

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        codes, moments = self.keys["key"].of_rows(rows, add=False), times - self.delay
        out = {name: np.full(len(rows), np.nan) for name in self.columns}
        out[self.columns[0]][:] = self.never
        if not len(self._codes) or not len(rows):
            return out
        newest = places_up_to(self._codes, self._times, codes, moments)
        for place in range(self.last_moments):
            at = np.maximum(newest - place, 0)
            there = (newest - place >= 0) & (codes >= 0) & (self._codes[at] == codes)
            if place == 0:
                out[self.columns[0]] = np.where(there, times - self._times[at], self.never).astype(np.float64)
            for action, sums in enumerate(self._rows[:, 1:].T):
                name = self.columns[1 + action * self.last_moments + place]
                out[name] = np.where(there, sums[at] / self._rows[at, 0], np.nan)
        return out
