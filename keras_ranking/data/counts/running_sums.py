"""Sums by key over the rows up to a moment, as a state that goes on."""

from __future__ import annotations

import numpy as np
import pandas as pd


class RunningSums:
    """Sums of rows of amounts by key: how much there was up to any moment from now on.

    Rows that every later question counts are kept as one sum a key, younger ones one by one. The sum of a key is added up in order of time,
    so that later rows and other keys change no bit of it.

    Args:
        width: amounts a row.
        reach: seconds: a question is never of a moment more than this before the newest row.
    """

    def __init__(self, width: int, reach: int) -> None:
        self.width, self.reach = int(width), int(reach)
        self.old = np.zeros((0, self.width))  # by key
        self.codes, self.times = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)  # young rows, by key and time
        self.amounts = np.zeros((0, self.width))
        self._index()

    def add(self, codes: np.ndarray, times: np.ndarray, amounts: np.ndarray, keys: int) -> None:
        """Take in rows, none more than `reach` older than the newest.

        Args:
            codes: int64 (n,), from 0 to `keys` - 1.
            times: int64 (n,).
            amounts: float64 (n, width).
            keys: number of keys there are.
        """
        if keys > len(self.old):
            self.old = np.concatenate([self.old, np.zeros((keys - len(self.old), self.width))])
        if not len(codes):
            return
        codes, times = np.concatenate([self.codes, codes]), np.concatenate([self.times, times])
        order = np.lexsort((times, codes))
        self.codes, self.times = codes[order], times[order]
        self.amounts = np.concatenate([self.amounts, amounts])[order]
        self._index()

    def forget(self, newest: int) -> None:
        """Keep what is older than any later question as sums; `newest` is the time of the newest row of the log."""
        old = self.times <= newest - self.reach
        if not old.any():
            return
        ends = np.flatnonzero(np.r_[self.codes[1:] != self.codes[:-1], True])
        begins = np.r_[0, ends[:-1] + 1]
        count = np.add.reduceat(old.astype(np.int64), begins)  # the old rows of a key are its first
        has = count > 0
        self.old[self.codes[begins[has]]] = self._upto[begins[has] + count[has] - 1]
        self.codes, self.times, self.amounts = self.codes[~old], self.times[~old], self.amounts[~old]
        self._index()

    def until(self, codes: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Sums (n, width) of the rows with the key `codes` and a time up to `moments`; 0 where the key is -1 or unknown."""
        known = (codes >= 0) & (codes < len(self.old))
        out = np.zeros((len(codes), self.width))
        out[known] = self.old[codes[known]]
        if not len(self.codes) or not known.any():
            return out
        place = np.searchsorted(self._places, self._place(codes[known], moments[known]), side="right") - 1
        found = (place >= 0) & (self.codes[np.maximum(place, 0)] == codes[known])
        rows = np.flatnonzero(known)[found]
        out[rows] = self._upto[place[found]]
        return out

    def _index(self) -> None:
        self._first = int(self.times.min()) if len(self.times) else 0
        self._span = int(self.times.max()) - self._first + 2 if len(self.times) else 2
        if len(self.codes) and (int(self.codes[-1]) + 1) * self._span > 2**62:
            raise ValueError("`time` spans too long a range for so many keys: are the times seconds?")
        self._places = self._place(self.codes, self.times)
        begin = np.r_[True, self.codes[1:] != self.codes[:-1]] if len(self.codes) else np.zeros(0, dtype=bool)
        amounts = self.amounts.copy()
        amounts[begin] += self.old[self.codes[begin]]
        sums = pd.DataFrame(amounts).groupby(self.codes, sort=False).cumsum()
        self._upto = sums.to_numpy(dtype=np.float64).reshape(len(self.codes), self.width)

    def _place(self, codes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(key, time) as one number, in the order of both."""
        places: np.ndarray = codes * self._span + np.clip(times - self._first, -1, self._span - 2) + 1
        return places

    def arrays(self) -> dict[str, np.ndarray]:
        """The state, for a file."""
        return {"old": self.old, "codes": self.codes, "times": self.times, "amounts": self.amounts}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state that `arrays` gave."""
        self.old, self.codes, self.times, self.amounts = (arrays[name] for name in ("old", "codes", "times", "amounts"))
        self._index()
