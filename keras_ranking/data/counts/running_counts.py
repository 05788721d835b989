"""RunningCounts: views, outcomes and rates by key, over windows, as a state that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from keras_ranking.count_column import window_name
from keras_ranking.data.counts.exposure import expected_outcomes
from keras_ranking.data.counts.keys import KeyNumbers, key_columns
from keras_ranking.data.counts.running_sums import RunningSums
from keras_ranking.data.counts.state import State, check_delay
from keras_ranking.data.counts.windowed import Key, amounts_of, priors_of, smoothed


class RunningCounts(State):
    """Views, outcomes, smoothed rates and exposure-corrected rates of each row's keys, over windows that end `delay` before the row.

    The columns and formulas of `point_in_time_counts`, and with `expected` those of `exposure_corrected_rates`, for the rows that came in
    by `update`; equal to these functions on all rows at once.

    Args:
        keys: a column, a tuple of columns (their combination), or a list of such.
        windows: lengths in seconds; None = all time.
        actions: columns to sum.
        time: column with whole Unix seconds or datetimes.
        delay: seconds, a whole number >= 1.
        prior: (a, b) of the smoothed rates, for all actions, or {action: (a, b)}.
        expected: None, or what an outcome is divided by in an exposure-corrected rate: 'list_size', or a column.
        request: column of the list, for 'list_size'.
        expected_prior: outcomes and expected outcomes added.

    Raises:
        ValueError: no key or window, a delay or window below 1, a bad prior, names that collide.

    Example:
        >>> log = pd.DataFrame({"time": [0, 1000, 1000, 2000], "item": [7, 7, 8, 7], "click": [1, 0, 1, 0]})
        >>> counts = kr.data.RunningCounts("item", [None])
        >>> counts.update(log)["item_views_all"].tolist()
        [0.0, 1.0, 0.0, 2.0]
        >>> counts.features(pd.DataFrame({"item": [7, 9]}), time=3000)["item_click_all"].tolist()
        [1.0, 0.0]
    """

    settings: ClassVar[tuple[str, ...]] = (
        "by",
        "windows",
        "actions",
        "time",
        "delay",
        "prior",
        "expected",
        "request",
        "expected_prior",
    )

    def __init__(
        self,
        keys: Key | Sequence[Key],
        windows: Sequence[int | None] = (None,),
        actions: str | Sequence[str] = ("click",),
        time: str = "time",
        delay: int = 600,
        prior: tuple[float, float] | Mapping[str, tuple[float, float]] = (1.0, 20.0),
        expected: str | None = None,
        request: str | None = None,
        expected_prior: float = 1.0,
    ) -> None:
        super().__init__(time)
        self.by = [list(key_columns(key)) for key in ([keys] if isinstance(keys, (str, tuple)) else keys)]
        self.windows = [window if window is None else check_delay("windows", window) for window in windows]
        self.actions = [actions] if isinstance(actions, str) else list(actions)
        self.delay, self.expected, self.request = check_delay("delay", delay), expected, request
        if not self.by or not self.windows:
            raise ValueError(f"`keys` and `windows` must not be empty. Received: keys={keys}, windows={windows}")
        if not 0 < expected_prior < np.inf:
            raise ValueError(f"`expected_prior` must be a finite number above 0. Received: expected_prior={expected_prior}")
        if expected == "list_size" and request is None:
            raise ValueError("expected='list_size' needs `request`, the column of the list. Received: request=None")
        self.prior = {action: list(pair) for action, pair in priors_of(prior, self.actions).items()}
        self.expected_prior = float(expected_prior)
        reach = self.delay + max((window for window in self.windows if window is not None), default=0)
        width = 1 + len(self.actions) + (expected is not None)
        for columns in self.by:
            self.keys["_".join(columns)] = KeyNumbers(columns)
            self.sums["_".join(columns)] = RunningSums(width, reach)
        if len(self.keys) < len(self.by) or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"two counts would have one name: rename an action or key. Received: keys={keys}, actions={self.actions}")

    @classmethod
    def _made(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> RunningCounts:
        return cls(**{("keys" if name == "by" else name): value for name, value in settings.items()} | {"keys": _tuples(settings["by"])})

    @property
    def columns(self) -> tuple[str, ...]:
        names = []
        for label in self.keys:
            for window in map(window_name, self.windows):
                names.append(f"{label}_views_{window}")
                for action in self.actions:
                    names += [f"{label}_{action}_{window}", f"{label}_{action}_rate_{window}"]
                    names += [f"{label}_{action}_per_{self.expected}_{window}"] if self.expected is not None else []
        return tuple(names)

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        parts = [np.ones(len(events)), *(amounts_of(events, action, counted) for action in self.actions)]
        if self.expected is not None:
            parts.append(expected_outcomes(events, self.expected, self.request, counted))
        amounts = np.column_stack(parts)
        for label, numbers in self.keys.items():
            codes = numbers.of_rows(events)
            rows = np.flatnonzero(counted & (codes >= 0))
            self.sums[label].add(codes[rows], times[rows], np.take(amounts, rows, axis=0), len(numbers))

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        out = {}
        for label, numbers in self.keys.items():
            codes = numbers.of_rows(rows, add=False)
            for window, found in self.sums[label].over(codes, times, self.delay, self.windows):
                name = window_name(window)
                out[f"{label}_views_{name}"] = found[:, 0]
                for place, action in enumerate(self.actions, start=1):
                    out[f"{label}_{action}_{name}"] = found[:, place]
                    out[f"{label}_{action}_rate_{name}"] = smoothed(found[:, place], found[:, 0], self.prior[action])
                    if self.expected is not None:
                        ratio = (found[:, place] + self.expected_prior) / (found[:, -1] + self.expected_prior)
                        out[f"{label}_{action}_per_{self.expected}_{name}"] = ratio
        return out


def _tuples(keys: Sequence[Sequence[str]]) -> list[Key]:
    return [columns[0] if len(columns) == 1 else tuple(columns) for columns in keys]
