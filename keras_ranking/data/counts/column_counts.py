"""ColumnCounts: the `Count` columns of a schema, as a state that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from keras_ranking.columns import Count
from keras_ranking.data.counts.keys import KeyNumbers
from keras_ranking.data.counts.running_sums import RunningSums
from keras_ranking.data.counts.state import State, check_delay
from keras_ranking.data.counts.windowed import amounts_of, smoothed
from keras_ranking.data.log_columns import require_column
from keras_ranking.values import numbers_of, raise_first

_FIELDS = {"name", "key", "action", "of", "window", "prior", "where"}


class ColumnCounts(State):
    """The columns that a schema states as `Count`, for the rows that come in by `update`; with the formulas of `Count`.

    Counts of one key share one sum by key, whatever their windows.

    Args:
        counts: `Count`s, or their fields as dictionaries.
        time: column with whole Unix seconds or datetimes.
        delay: seconds, a whole number >= 1: `Schema.feedback_delay`.

    Raises:
        ValueError: no count, two of one name, a delay below 1.

    Example:
        >>> log = pd.DataFrame({"time": [0, 1000, 1000, 2000], "item": [7, 7, 8, 7], "click": [1, 0, 1, 0]})
        >>> counts = kr.data.ColumnCounts([kr.Count("item", of="views"), kr.Count("item", action="click", prior=(1, 2))], delay=600)
        >>> counts.update(log).round(2).values.tolist()
        [[0.0, 0.5], [1.0, 0.67], [0.0, 0.5], [2.0, 0.5]]
    """

    settings: ClassVar[tuple[str, ...]] = ("counts", "time", "delay")

    def __init__(self, counts: Sequence[Count | Mapping[str, Any]], time: str = "time", delay: int = 60) -> None:
        super().__init__(time)
        made = [count if isinstance(count, Count) else Count(**count) for count in counts]
        names = [count.name for count in made]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`counts` must be `Count`s with different names. Received: {names}")
        self.delay = check_delay("delay", delay)
        self.counts = [count.model_dump(mode="json", include=_FIELDS) for count in made]
        groups: dict[tuple[tuple[str, ...], str | None], list[Count]] = {}
        for count in made:
            groups.setdefault((count.key_columns, count.where), []).append(count)
        self._groups = {str(number): group for number, group in enumerate(groups.values())}
        self._actions = {label: _distinct(count.action for count in group) for label, group in self._groups.items()}
        for label, group in self._groups.items():
            reach = self.delay + max((count.window for count in group if count.window is not None), default=0)
            self.keys[label] = KeyNumbers(group[0].key_columns)
            self.sums[label] = RunningSums(1 + len(self._actions[label]), reach)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(count["name"] for count in self.counts)

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        for label, group in self._groups.items():
            amounts = counted_amounts(events, group, counted)
            codes = self.keys[label].of_rows(events)
            rows = np.flatnonzero(shown_rows(events, group[0].where, counted) & (codes >= 0))
            self.sums[label].add(codes[rows], times[rows], np.take(amounts, rows, axis=0), len(self.keys[label]))

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        out = {}
        for label, group in self._groups.items():
            codes, actions = self.keys[label].of_rows(rows, add=False), self._actions[label]
            windows = _distinct(count.window for count in group) + [None] * any(count.window is None for count in group)
            for window, found in self.sums[label].over(codes, times, self.delay, windows):
                for count in (count for count in group if count.window == window):
                    views = found[:, 0]
                    done = views if count.action is None else found[:, 1 + actions.index(count.action)]
                    out[count.name] = done if count.prior is None else smoothed(done, views, count.prior)
        return out


def counted_amounts(events: pd.DataFrame, counts: Sequence[Count], counted: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
    """Float64 (rows, 1 + actions): a one, and the actions of counts that share their key and `where`.

    Raises:
        ValueError: a column that is not in the log, or an action that is missing or not finite in a row that counts.
    """
    mask, name = shown_rows(events, counts[0].where, counted, places), counts[0].name
    parts = [np.ones(len(events))]
    for action in _distinct(count.action for count in counts):
        require_column(events, action, f"of count '{name}' is not in the log")
        remedy = f"; Count(..., where='a column') says which rows count for '{name}'" if counts[0].where is None else ""
        parts.append(amounts_of(events, action, mask, remedy, places))
    return np.column_stack(parts)


def shown_rows(events: pd.DataFrame, where: str | None, counted: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
    """Which of the rows that count are marked in the column `where`; None: all of them.

    Raises:
        ValueError: a column that is not in the log, or holds something else than 0, 1 and booleans.
    """
    if where is None:
        return counted
    require_column(events, where, "of `where` of a count is not in the log")
    marks, _ = numbers_of(events[where])
    wrong = counted & (marks != 0) & (marks != 1)
    raise_first(where, events[where], [(wrong, "must hold 0 or 1, or booleans: which rows count")], places=places)
    return np.asarray(counted & (marks == 1))


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value is not None))
