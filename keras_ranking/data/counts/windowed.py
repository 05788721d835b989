"""Point-in-time counts: what was known about a key when a row was scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.count_column import window_name
from keras_ranking.data.counts.running_sums import RunningSums
from keras_ranking.data.log_columns import key_codes, require_column, require_frame, unix_seconds
from keras_ranking.values import numbers_of, raise_first

Prior = tuple[float, float]
Key = str | tuple[str, ...]


def point_in_time_counts(
    events: pd.DataFrame,
    keys: Key | Sequence[Key],
    windows: Sequence[int | None],
    actions: Iterable[str] = ("click",),
    time: str = "time",
    delay: int = 600,
    prior: Prior | Mapping[str, Prior] = (1.0, 20.0),
    counted: Any = None,
    round: str | None = None,
) -> pd.DataFrame:
    """Views, actions and smoothed rates of each row's key, over windows that end `delay` seconds before the row.

    For row i, key k and window w (seconds) the rows counted are those with the same key and

        t_i - delay - w < t_j <= t_i - delay                    (w = None: t_j <= t_i - delay)

        views   = number of those rows
        action  = sum of the action's column over those rows
        rate    = (action + a) / (views + b)                    with prior = (a, b)

    Since delay >= 1, later rows, rows of the same second and the row itself are never counted; the order of the rows in the
    frame does not matter. `delay` should be at least the time after which an action is in the log: with a shorter one, counts in
    training include actions that serving does not know yet. O(n log n), and the same
    sums as those of `RunningCounts`: each is added up row by row in float64, so counts of whole numbers are exact.

    Args:
        events: one row per impression.
        keys: a column, a tuple of columns (their combination), or a list of such.
        windows: lengths in seconds; None = all time.
        actions: columns to sum (0/1 or any finite amount).
        time: column with whole Unix seconds or datetimes.
        delay: seconds, a whole number >= 1.
        prior: (a, b) for all actions, or {action: (a, b)}; a >= 0, b > 0. Our choice: 1 action in 20 views.
        counted: boolean per row: which rows are counted (all rows get counts). None: all.
        round: 'floor', 'ceil' or 'nearest': how times with a fraction of a second are rounded; then a row can be counted up to a second
            early. None: a fraction is an error.

    Returns:
        DataFrame with the index of `events`; columns `{key}_views_{window}` (int64), `{key}_{action}_{window}` and
        `{key}_{action}_rate_{window}` (float64), where window is "all", "24h", "15m", "90s", and a tuple's key its columns
        joined by "_". A row with a missing key has counts 0 and rate a / b.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: an unknown column, a time that is missing or not whole seconds, a delay below 1, a window below 1, a bad prior, an
            action that is missing or not finite, keys in which ids collide (float16, float32, floats from 2**53 on), names that collide.

    Example:
        >>> log = pd.DataFrame({"time": [0, 1000, 1000, 2000], "item": [7, 7, 8, 7], "click": [1, 0, 1, 0]})
        >>> kr.data.point_in_time_counts(log, "item", [None], delay=600)["item_views_all"].tolist()
        [0, 1, 0, 2]
    """
    actions = (actions,) if isinstance(actions, str) else tuple(actions)
    key_list: list[Key] = [keys] if isinstance(keys, (str, tuple)) else list(keys)
    wanted = [key if isinstance(key, tuple) else (key,) for key in key_list]
    require_frame(events)
    _check_arguments(events, wanted, windows, actions, time, delay)
    priors = priors_of(prior, actions)
    mask = np.ones(len(events), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    if mask.shape != (len(events),):
        raise ValueError(f"`counted` must hold one boolean per row ({len(events)}). Received: shape {mask.shape}")
    amounts = np.column_stack([np.ones(len(events)), *(amounts_of(events, action, mask) for action in actions)])
    times = unix_seconds(events, time, round) if len(events) else np.zeros(0, dtype=np.int64)

    out: dict[str, np.ndarray] = {}

    def put(name: str, values: np.ndarray) -> None:
        if name in out:
            raise ValueError(f"two counts would be named '{name}': rename an action or key. Received: keys={keys}, actions={actions}")
        out[name] = values

    lengths = [window if window is None else int(window) for window in windows]
    for key in wanted:
        codes, label = key_codes(events, key), "_".join(key)
        rows, sums = np.flatnonzero(mask & (codes >= 0)), RunningSums(amounts.shape[1], 0)
        sums.add(codes[rows], times[rows], np.take(amounts, rows, axis=0), int(codes.max(initial=-1)) + 1)
        for window, found in sums.over(codes, times, int(delay), lengths):
            put(f"{label}_views_{window_name(window)}", found[:, 0].astype(np.int64))
            for place, action in enumerate(actions, start=1):
                put(f"{label}_{action}_{window_name(window)}", found[:, place])
                put(f"{label}_{action}_rate_{window_name(window)}", smoothed(found[:, place], found[:, 0], priors[action]))
    return pd.DataFrame(out, index=events.index)


def smoothed(action: np.ndarray, views: np.ndarray, prior: Sequence[float]) -> np.ndarray:
    """The rate (action + a) / (views + b)."""
    a, b = prior
    return np.asarray((action + a) / (views + b), dtype=np.float64)


def _check_arguments(
    events: pd.DataFrame, keys: Sequence[tuple[str, ...]], windows: Sequence[int | None], actions: Sequence[str], time: str, delay: int
) -> None:
    for column in dict.fromkeys([time, *(column for key in keys for column in key), *actions]):
        require_column(events, column)
    if not _is_whole(delay):
        raise ValueError(f"`delay` must be whole seconds, at least 1 (at 0 a row would count itself). Received: delay={delay!r}")
    if not isinstance(windows, Iterable):
        raise ValueError(f"`windows` must be a list of seconds, such as [3600, None]. Received: windows={windows!r}")
    for window in windows:
        if window is not None and not _is_whole(window):
            raise ValueError(f"`windows` must hold whole seconds, at least 1, or None. Received: {window!r}")
    if not windows or not keys:
        raise ValueError(f"`keys` and `windows` must not be empty. Received: keys={list(keys)}, windows={list(windows)}")


def _is_whole(seconds: Any) -> bool:
    return isinstance(seconds, (int, float, np.integer, np.floating)) and bool(seconds >= 1) and seconds == np.floor(seconds)


def priors_of(prior: Prior | Mapping[str, Prior], actions: Sequence[str]) -> dict[str, Prior]:
    priors: dict[str, Prior] = {}
    for action in actions:
        if isinstance(prior, Mapping):
            if action not in prior:
                raise ValueError(f"`prior` must name every action. Received: prior={dict(prior)}, which has no '{action}'")
            priors[action] = prior[action]
        else:
            priors[action] = prior
        a, b = priors[action]
        if not (0 <= a < np.inf and 0 < b < np.inf):
            raise ValueError(f"`prior` must be (a, b) with a >= 0 and b > 0. Received: {priors[action]}")
    return priors


def amounts_of(events: pd.DataFrame, action: str, mask: np.ndarray, remedy: str = "", places: np.ndarray | None = None) -> np.ndarray:
    amounts, _ = numbers_of(events[action])
    wrong = mask & ~np.isfinite(amounts)
    raise_first(action, events[action], [(wrong, "must hold finite numbers in every counted row")], remedy, places)
    return amounts
