"""ChoiceStrengths: how often an item is chosen out of its lists, learned online by a Plackett-Luce model, point in time."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers, key_columns
from keras_ranking.data.log_columns import key_codes, require_column, require_frame, unix_seconds
from keras_ranking.values import numbers_of, raise_first

_VERSION = 1


@dataclass(frozen=True)
class _Lists:
    """Lists of one second whose outcomes become known at the same time: rows side by side, list after list."""

    due: int
    codes: np.ndarray  # of the items; -1: no key
    outcomes: np.ndarray
    starts: np.ndarray  # first row of each list


class ChoiceStrengths:
    """A strength for each item, moved after each list by the gradient of the list's softmax.

    With strengths s, a list R with outcomes y and Y = sum_R y > 0, known `delay` seconds after it was shown:

        share_i = exp(s_i) / sum_R exp(s_j)
        s_i    <- (1 - forget) s_i + step / sqrt(1 + slowing n_i) (y_i - Y share_i),     n_i: lists before in which i was

    A row reads the strengths that follow from all lists with t_j <= t_i - delay. Lists of the same second move them together, so neither
    the order of rows nor the row's own list plays a part. An item without lists has s = 0. Unlike a rate over views, a strength accounts
    for what else was in the list. The form is that of online Elo ratings for lists; all numbers are our choice.

    The same object serves: `update` continues from the state it has, equal to starting anew on all rows, and `features` reads it for a
    request, so that training and serving cannot differ.

    Args:
        key: column of the item, or a tuple of columns.
        request: column of the list.
        outcome: column of the outcome, 0 or more; a list with a missing one is read and not learned from.
        time: column with whole Unix seconds or datetimes; one time a list.
        delay: seconds, a whole number >= 1.
        step, slowing, forget: see the formula.

    Raises:
        ValueError: a delay below 1, a `step` that is not positive, a negative `slowing`, or a `forget` outside [0, 1).

    Example:
        >>> log = pd.DataFrame(
        ...     {"time": [0, 0, 700, 700, 1400, 1400], "list": [1, 1, 2, 2, 3, 3], "item": list("ababab"), "click": [1, 0, 1, 0, 0, 1]}
        ... )
        >>> strengths = kr.data.ChoiceStrengths("item", "list")
        >>> strengths.update(log)["item_click_strength"].round(2).tolist()
        [0.0, 0.0, 0.3, -0.3, 0.51, -0.51]
        >>> strengths.features(["a", "new"], time=3000)["item_click_share"].round(2).tolist()
        [0.52, 0.48]
    """

    def __init__(
        self,
        key: str | tuple[str, ...],
        request: str,
        outcome: str = "click",
        time: str = "time",
        delay: int = 600,
        step: float = 0.6,
        slowing: float = 0.02,
        forget: float = 0.002,
    ) -> None:
        if isinstance(delay, bool) or int(delay) != delay or delay < 1:
            raise ValueError(f"`delay` must be whole seconds, at least 1. Received: delay={delay!r}")
        if not 0 < step < np.inf or not 0 <= slowing < np.inf or not 0 <= forget < 1:
            received = f"step={step}, slowing={slowing}, forget={forget}"
            raise ValueError(f"`step` must be positive, `slowing` 0 or more, and `forget` from 0 to below 1. Received: {received}")
        self.key, self.request, self.outcome, self.time = key, request, outcome, time
        self.delay, self.step, self.slowing, self.forget = int(delay), float(step), float(slowing), float(forget)
        self.last: int | None = None  # newest time that was read
        self._keys = KeyNumbers(key_columns(key))
        self._strengths, self._lists = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._waiting: deque[_Lists] = deque()

    @property
    def columns(self) -> tuple[str, str]:
        """Names of the columns that `update` and `features` return."""
        label = "_".join(key_columns(self.key))
        return f"{label}_{self.outcome}_strength", f"{label}_{self.outcome}_share"

    def update(self, events: pd.DataFrame, round: str | None = None) -> pd.DataFrame:
        """Read each row's strength and share at its time, and learn from its list.

        Args:
            events: whole lists, in any order, none earlier than the newest one before.
            round: as `point_in_time_counts`.

        Returns:
            DataFrame with the index of `events`: float64 strength and share, see `columns`. A row without a key has the strength 0.

        Raises:
            TypeError: `events` is not a DataFrame.
            ValueError: an unknown column, a row without a request, several times in a list, a negative or infinite outcome, rows
                earlier than the newest one of an earlier call.
        """
        keys, times, lists, outcomes = self._read(events, round)
        strength, share = np.zeros(len(events)), np.zeros(len(events))
        order = np.lexsort((lists, times))
        bounds = np.flatnonzero(np.r_[True, np.diff(times[order]) > 0]) if len(order) else np.zeros(0, dtype=np.int64)
        for rows in np.split(order, bounds[1:]) if len(order) else ():
            moment = int(times[rows[0]])
            self._advance(moment)
            codes, starts = keys[rows], np.flatnonzero(np.r_[True, np.diff(lists[rows]) != 0])
            strength[rows], share[rows] = self._shares(codes, starts)
            self._waiting.append(_Lists(moment + self.delay, codes, outcomes[rows], starts))
            self.last = moment
        return pd.DataFrame(dict(zip(self.columns, (strength, share), strict=True)), index=events.index)

    def features(self, items: Sequence[Any] | pd.DataFrame, time: int) -> pd.DataFrame:
        """Strength and share of one list's items at a time, for a request; nothing is learned.

        Args:
            items: key of each item; tuples where the key has several columns; or a frame with the columns of the key. Unknown ones have
                the strength 0.
            time: Unix seconds, not before the newest row.

        Raises:
            ValueError: an earlier time.
        """
        if self.last is not None and time < self.last:
            raise ValueError(f"`time` must not be before the newest row, {self.last}. Received: time={time}")
        state = self
        if self._waiting and self._waiting[0].due <= time:  # rows between now and `time` may still come
            state = copy.copy(self)
            state._strengths, state._lists, state._waiting = self._strengths.copy(), self._lists.copy(), deque(self._waiting)
            state._advance(int(time))
        columns = key_columns(self.key)
        frame = items if isinstance(items, pd.DataFrame) else pd.DataFrame(list(items), columns=list(columns))
        codes = self._keys.of_rows(frame, add=False)
        found = state._shares(codes, np.zeros(min(1, len(codes)), dtype=np.int64))
        return pd.DataFrame(dict(zip(self.columns, found, strict=True)))

    def anew(self) -> ChoiceStrengths:
        """The same state before its first row."""
        return ChoiceStrengths(**self._settings())

    @property
    def digest(self) -> str:
        """SHA-256 of all that the state knows: equal digests mean equal columns for all later rows."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the state to a JSON file."""
        Path(path).write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        waiting = [
            {"due": w.due, "codes": w.codes.tolist(), "outcomes": [_or_none(y) for y in w.outcomes], "starts": w.starts.tolist()}
            for w in self._waiting
        ]
        state = {
            "version": _VERSION,
            "settings": self._settings(),
            "last": self.last,
            "keys": self._keys.as_json(),
            "strengths": self._strengths.tolist(),
            "lists": self._lists.tolist(),
            "waiting": waiting,
        }
        return json.dumps(state)

    @classmethod
    def load(cls, path: str | Path) -> ChoiceStrengths:
        """Read a state that `save` wrote.

        Raises:
            ValueError: a file of something else, or of a later version.
        """
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("version") != _VERSION:
            raise ValueError(f"'{path}' is not a state of ChoiceStrengths that this version reads.")
        settings = state["settings"]
        made = cls(**{**settings, "key": tuple(settings["key"]) if isinstance(settings["key"], list) else settings["key"]})
        made.last = state["last"]
        made._keys = KeyNumbers(key_columns(made.key), state["keys"])
        made._strengths, made._lists = np.array(state["strengths"], dtype=np.float64), np.array(state["lists"], dtype=np.int64)
        for w in state["waiting"]:
            outcomes = np.array([np.nan if y is None else y for y in w["outcomes"]], dtype=np.float64)
            made._waiting.append(_Lists(w["due"], np.array(w["codes"], dtype=np.int64), outcomes, np.array(w["starts"], dtype=np.int64)))
        return made

    def _settings(self) -> dict[str, Any]:
        names = ("key", "request", "outcome", "time", "delay", "step", "slowing", "forget")
        return {name: getattr(self, name) for name in names}

    def _read(self, events: pd.DataFrame, round: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Code of the item, time, number of the list and outcome of each row."""
        require_frame(events)
        for column in (*key_columns(self.key), self.request, self.outcome, self.time):
            require_column(events, column)
        times = unix_seconds(events, self.time, round) if len(events) else np.zeros(0, dtype=np.int64)
        lists = key_codes(events, (self.request,))
        raise_first(self.request, events[self.request], [(lists < 0, "must name the list of each row")])
        outcomes, no_number = numbers_of(events[self.outcome])
        wrong = no_number | (outcomes < 0) | np.isinf(outcomes)
        raise_first(self.outcome, events[self.outcome], [(wrong, "must hold finite numbers, 0 or more")])
        first = pd.Series(times).groupby(lists).transform("first").to_numpy() if len(times) else times
        raise_first(self.time, events[self.time], [(times != first, "must be the same in all rows of a list")])
        if self.last is not None and len(times) and times.min() < self.last:
            raise ValueError(f"rows must not be earlier than the newest one before, {self.last}. Received: {int(times.min())}")
        return self._coded(events), times, lists, outcomes

    def _coded(self, events: pd.DataFrame) -> np.ndarray:
        codes = self._keys.of_rows(events)
        new = len(self._keys) - len(self._strengths)
        self._strengths, self._lists = np.append(self._strengths, np.zeros(new)), np.append(self._lists, np.zeros(new, dtype=np.int64))
        return codes

    def _shares(self, codes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Strength, and share in its list, of each row."""
        if not len(codes):
            return np.zeros(0), np.zeros(0)
        strength = np.where(codes >= 0, np.append(self._strengths, 0.0)[codes], 0.0)
        sizes = np.diff(np.append(starts, len(codes)))
        weight = np.exp(strength - np.repeat(np.maximum.reduceat(strength, starts), sizes))
        return strength, weight / np.repeat(np.add.reduceat(weight, starts), sizes)

    def _advance(self, time: int) -> None:
        """Learn from the lists whose outcomes are known at a time."""
        while self._waiting and self._waiting[0].due <= time:
            due = [self._waiting.popleft()]
            while self._waiting and self._waiting[0].due == due[0].due:
                due.append(self._waiting.popleft())
            offsets = np.cumsum([0, *(len(lists.codes) for lists in due)])
            codes, outcomes = np.concatenate([w.codes for w in due]), np.concatenate([w.outcomes for w in due])
            starts = np.concatenate([w.starts + offset for w, offset in zip(due, offsets, strict=False)])
            self._learn(codes, outcomes, starts)

    def _learn(self, codes: np.ndarray, outcomes: np.ndarray, starts: np.ndarray) -> None:
        sizes = np.diff(np.append(starts, len(codes)))
        total = np.repeat(np.add.reduceat(outcomes, starts), sizes)
        _, share = self._shares(codes, starts)
        learned = (total > 0) & (codes >= 0)  # not of a list with a missing outcome, whose total is NaN
        items, place = np.unique(codes[learned], return_inverse=True)
        gradient = np.bincount(place, (outcomes - total * share)[learned], len(items))
        rate = self.step / np.sqrt(1 + self.slowing * self._lists[items])
        self._strengths[items] = (1 - self.forget) * self._strengths[items] + rate * gradient
        self._lists[items] += np.bincount(place, minlength=len(items))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
