"""Sums by key over the rows up to a moment, as a state that goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_SHORT = 64  # rows of a key up to which the keys are summed side by side
_EXACT = 2.0**53  # below it, float64 holds every whole number


class RunningSums:
    """Sums of rows of amounts by key: how much there was up to any moment from now on.

    Rows that every later question counts are kept as one sum a key, younger ones one by one. The sum of a key is added up row by row in
    order of time, so that later rows and other keys change no bit of it, and going on equals starting anew to the bit.

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
        if len(self.codes):
            codes, times = np.concatenate([self.codes, codes]), np.concatenate([self.times, times])
            amounts = np.concatenate([self.amounts, amounts])
        self._measure(times)
        order = np.argsort(self._place(codes, times), kind="stable")
        self.codes, self.times, self.amounts = codes[order], times[order], np.take(amounts, order, axis=0)
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

    def until(self, codes: np.ndarray, moments: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """Sums (n, width) of the rows with the key `codes` and a time up to `moments`; 0 where the key is -1 or unknown.

        `order` sorts the questions by key and moment: several times faster in a long log.
        """
        if not len(self.codes):
            place = np.full(len(codes), -1, dtype=np.int64)
        else:
            wanted, place = self._place(codes, moments), np.empty(len(codes), dtype=np.int64)
            if order is None:
                place[:] = np.searchsorted(self._places, wanted, side="right")
            else:
                place[order] = np.searchsorted(self._places, wanted[order], side="right")
            place -= 1
            place[self.codes[place] != codes] = -1  # none of this key up to the moment
        out: np.ndarray = np.take(self._upto, place, axis=0)  # several times as fast as self._upto[place]
        if self._settled:
            rows = np.flatnonzero((place < 0) & (codes >= 0) & (codes < len(self.old)))
            out[rows] = self.old[codes[rows]]
        return out

    def over(
        self, codes: np.ndarray, times: np.ndarray, delay: int, windows: Sequence[int | None]
    ) -> Iterator[tuple[int | None, np.ndarray]]:
        """For each window the sums (n, width) of the rows of `codes` with times - delay - window < t <= times - delay; None: no begin."""
        order = np.argsort(self._place(codes, times), kind="stable")
        until = self.until(codes, times - delay, order)
        for window in windows:
            yield window, until if window is None else until - self.until(codes, times - delay - window, order)

    def _measure(self, times: np.ndarray) -> None:
        """The range of the times, by which (key, time) is one number."""
        self._first = int(times.min()) if len(times) else 0
        self._span = int(times.max()) - self._first + 2 if len(times) else 2
        if len(self.old) * self._span > 2**62:
            raise ValueError("`time` spans too long a range for so many keys: are the times seconds?")

    def _index(self) -> None:
        self._measure(self.times)
        self._places = self._place(self.codes, self.times)
        begins = np.flatnonzero(np.r_[True, self.codes[1:] != self.codes[:-1]]) if len(self.codes) else np.zeros(0, dtype=np.int64)
        self._settled = bool(self.old.any())
        amounts = self.amounts.copy() if self._settled else self.amounts
        if self._settled:
            amounts[begins] += self.old[self.codes[begins]]
        self._upto = np.zeros((len(amounts) + 1, self.width))  # the last is that of no row
        if len(amounts):
            _add_up(amounts, begins, self._upto[:-1])

    def _place(self, codes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(key, time) as one number, in the order of both: key * span + (time - first) + 1, the 1 for what is before the first row."""
        places: np.ndarray = codes * self._span + np.clip(times - self._first, -1, self._span - 2) + 1
        return places

    def arrays(self) -> dict[str, np.ndarray]:
        """The state, for a file."""
        return {"old": self.old, "codes": self.codes, "times": self.times, "amounts": self.amounts}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state that `arrays` gave."""
        self.old, self.codes, self.times, self.amounts = (arrays[name] for name in ("old", "codes", "times", "amounts"))
        self._index()


def _add_up(amounts: np.ndarray, begins: np.ndarray, out: np.ndarray) -> None:
    """To `out`: sums of each row and those before it in its group, added up row by row from the first; groups begin at `begins`."""
    lengths, rest = np.diff(np.r_[begins, len(amounts)]), []
    for place, column in enumerate(amounts.T):
        values = np.ascontiguousarray(column)
        with np.errstate(invalid="ignore", over="ignore"):
            total = np.cumsum(values)
            whole = bool((values == np.rint(values)).all()) and (total[-1] if values.min() >= 0 else np.abs(values).sum()) < _EXACT
        if not whole:
            rest.append(place)
            continue
        # Exact, so that the sums of all groups may go through one another.
        out[:, place] = total - np.repeat(total[begins] - values[begins], lengths)
    if rest:
        out[:, rest] = _one_by_one(amounts[:, rest], begins, lengths)


def _one_by_one(amounts: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`_add_up` without a difference of sums: of long groups one after the other, of short ones place by place."""
    out = amounts.copy()
    for begin, length in zip(begins[lengths > _SHORT], lengths[lengths > _SHORT], strict=True):
        np.cumsum(amounts[begin : begin + length], axis=0, out=out[begin : begin + length])
    short = lengths <= _SHORT
    begins, lengths = begins[short], lengths[short]
    for place in range(1, int(lengths.max(initial=1))):
        rows = begins[lengths > place] + place
        out[rows] += out[rows - 1]
    return out
