"""Labels computed from a log: long dwell relative to similar items, and contribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import key_codes, require_column, require_frame, unix_seconds
from keras_ranking.values import native_frame, numbers_of, raise_first


@dataclass(frozen=True)
class LongDwell:
    """Labels of `long_dwell_labels` and where each came from. The first four are Series with the index of the events.

    Args:
        labels: 1.0 or 0.0; NaN = unknown, no dwell or no threshold.
        threshold: seconds that the row's dwell had to exceed; NaN where there was none.
        level: number of cluster columns dropped to find a threshold, 0 = none, C = all (the whole day); -1 = no threshold.
        age: days between the row's day and the day measured: 1 = the day before, more = the day before had no dwell;
            -1 = no threshold.
        thresholds: one row per threshold that may be used: `day` (number of the day measured), `level`, the cluster columns
            (missing where dropped), `rows` (known dwells behind it), `threshold`.

    Example:
        >>> log = pd.DataFrame({"time": [0, 5, 9, 86_400, 86_401], "dwell": [1, 3, 50, 60, 2]})
        >>> result = kr.training.long_dwell_labels(log, "dwell", "time", [])
        >>> result.labels.tolist(), result.threshold.round(1).tolist()
        ([nan, nan, nan, 1.0, 0.0], [nan, nan, nan, 40.6, 40.6])
    """

    labels: pd.Series
    threshold: pd.Series
    level: pd.Series
    age: pd.Series
    thresholds: pd.DataFrame


def long_dwell_labels(
    events: pd.DataFrame,
    dwell: str,
    time: str,
    clusters: Sequence[str],
    percentile: float = 90.0,
    min_cluster: int = 100,
    day_seconds: int = 86_400,
    timezone_offset: int = 0,
    round: str | None = None,
) -> LongDwell:
    """Binary label: the dwell is above the percentile that its cluster had the day before.

        day(t) = floor((t + timezone_offset) / day_seconds)
        y_i = [dwell_i > percentile_p of {dwell_j : cluster_j = cluster_i, day_j = the latest day < day_i with any dwell}]

    LiRank (2402.06859, stated): a regression of dwell is too noisy, and one threshold for all becomes outdated and favours long
    content. So the threshold is the 90th percentile of a cluster (position, content type, platform, ...), measured daily. Our
    choice: it is measured on the day *before*, since a threshold of the same day would depend on dwells that come after the row;
    the smallest cluster; and the back-off. A dwell belongs to the day of its impression even if it ended after midnight:
    thresholds make labels, never inputs.

    Back-off: where the cluster has fewer than `min_cluster` known dwells on the day measured, the last of `clusters` is
    dropped, then the one before it, until all are dropped and the whole day is the cluster, of whatever size. A row whose
    value of a cluster column is missing has no cluster until that column is dropped. For each
    row, `level` and `age` say what its threshold was measured on.

    Rows of the first day have no threshold and an unknown label (NaN), as have rows without dwell; a
    `Task(missing='unknown')` gives them weight 0. Percentiles interpolate linearly, and a dwell equal to its threshold is not
    long. All rows with a dwell are measured, zeros too: to count opened items alone, set the dwell of the others to NaN.

    Args:
        events: one row per impression, in any order.
        dwell: column of dwells, seconds >= 0; missing = not known.
        time: column with Unix seconds or datetimes (UTC where they name no zone).
        clusters: columns that make up a cluster, the most important first. (): one cluster a day.
        percentile: p, above 0 and below 100. *Stated:* 90, as an example.
        min_cluster: fewest known dwells of a cluster. *Our choice:* 100, ten of which are above the 90th percentile.
        day_seconds: length of a day.
        timezone_offset: seconds that local time is ahead of UTC, to make days begin at local midnight. Fixed: no summer time.
        round: 'floor', 'ceil' or 'nearest': how times with a fraction of a second are rounded. None: a fraction is an error.

    Returns:
        `LongDwell`: labels, threshold, level and age of each row, and the table of thresholds.

    Raises:
        ValueError: an unknown column, a dwell that is text, negative or infinite, a missing time (with column and row), an
            argument out of range.

    Example:
        >>> log = pd.DataFrame({"time": [0, 5, 9, 86_400, 86_401, 86_402], "kind": list("aabaab"), "dwell": [1, 3, 50, 2, 2.9, 9]})
        >>> result = kr.training.long_dwell_labels(log, "dwell", "time", ["kind"], min_cluster=2)
        >>> result.labels.tolist()  # threshold of "a": 2.8; "b" has one dwell: the whole day's 40.6
        [nan, nan, nan, 0.0, 1.0, 0.0]
        >>> result.level.tolist()
        [-1, -1, -1, 0, 0, 1]
    """
    names = _check_arguments(events, dwell, time, clusters, percentile, min_cluster, day_seconds, timezone_offset)
    events = native_frame(events, names)
    seconds = _amounts(events, dwell)
    days = (unix_seconds(events, time, round) + int(timezone_offset)) // int(day_seconds) if len(events) else np.zeros(0, dtype=np.int64)
    known = ~np.isnan(seconds)
    measured = np.unique(days[known])
    place = np.searchsorted(measured, days, side="left") - 1  # the latest measured day before the row's own; -1: none
    own = np.searchsorted(measured, days)  # of a row with a dwell: the place of its own day
    threshold = np.full(len(events), np.nan)
    level = np.full(len(events), -1, dtype=np.int64)
    tables = []
    for dropped in range(len(names) + 1):
        kept = tuple(names[: len(names) - dropped])
        cluster = key_codes(events, kept)
        width = int(cluster.max(initial=0)) + 1
        rows = np.flatnonzero(known & (cluster >= 0))
        group, values, sizes = _percentiles(own[rows] * width + cluster[rows], seconds[rows], percentile)
        enough = sizes >= (min_cluster if kept else 1)
        group, values, sizes = group[enough], values[enough], sizes[enough]
        tables.append(_table(events, kept, dropped, measured, cluster, rows, width, group, sizes, values))
        if not len(group):
            continue
        wanted = place * width + cluster
        found = np.minimum(np.searchsorted(group, wanted), len(group) - 1)
        hit = (level < 0) & (place >= 0) & (cluster >= 0) & (group[found] == wanted)
        threshold[hit], level[hit] = values[found[hit]], dropped
    without = np.isnan(threshold) | ~known
    labels = np.where(without, np.nan, (seconds > threshold).astype(np.float64))
    age = np.where(level < 0, -1, days - measured[np.maximum(place, 0)] if len(measured) else -1)
    columns = ["day", "level", *names, "rows", "threshold"]
    index = events.index
    return LongDwell(
        labels=pd.Series(labels, index=index, name="long_dwell"),
        threshold=pd.Series(threshold, index=index, name="threshold"),
        level=pd.Series(level, index=index, name="level"),
        age=pd.Series(age, index=index, name="age"),
        thresholds=pd.concat(tables, ignore_index=True).reindex(columns=columns),
    )


def contribution_labels(events: pd.DataFrame, actions: Sequence[str] = ("like", "comment", "share")) -> pd.Series:
    """Contribution: whether the member did any of the actions.

    LiRank states a tower of like, comment, share and vote; the default of three is our choice.

        y_i = 1 if some action_i > 0;  NaN if none is, but one is missing;  0 if all are 0

    Args:
        events: one row per impression.
        actions: columns of 0 and 1, or of counts.

    Returns:
        Series `contribution` of 1.0, 0.0 and NaN (unknown), with the index of `events`.

    Raises:
        ValueError: no actions, an unknown column, a value that is text, negative or infinite.

    Example:
        >>> kr.training.contribution_labels(pd.DataFrame({"like": [0, 1, 0], "share": [0, None, None]}), ["like", "share"]).tolist()
        [0.0, 1.0, nan]
    """
    names = _names("actions", actions)
    if not names:
        raise ValueError("`actions` must name at least one column. Received: actions=()")
    _require(events, names)
    amounts = np.stack([_amounts(events, name) for name in names])
    done, unknown = (amounts > 0).any(axis=0), np.isnan(amounts).any(axis=0)
    return pd.Series(np.where(done, 1.0, np.where(unknown, np.nan, 0.0)), index=events.index, name="contribution")


def _percentiles(codes: np.ndarray, values: np.ndarray, percentile: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups in ascending order, the percentile of each (linear interpolation), and its size."""
    grouped = pd.Series(values).groupby(codes, sort=True)
    found = grouped.quantile(percentile / 100)
    return found.index.to_numpy(dtype=np.int64), found.to_numpy(dtype=np.float64), grouped.size().to_numpy()


def _table(
    events: pd.DataFrame,
    kept: tuple[str, ...],
    dropped: int,
    measured: np.ndarray,
    cluster: np.ndarray,
    rows: np.ndarray,
    width: int,
    group: np.ndarray,
    sizes: np.ndarray,
    values: np.ndarray,
) -> pd.DataFrame:
    """The thresholds of one level."""
    first = np.zeros(width, dtype=np.int64)
    first[cluster[rows][::-1]] = rows[::-1]  # some row of each cluster, to read the cluster's values from
    table: pd.DataFrame = events[list(kept)].iloc[first[group % width]].reset_index(drop=True)
    table["day"], table["level"] = measured[group // width], dropped
    table["rows"], table["threshold"] = sizes, values
    return table


def _names(argument: str, columns: Sequence[str]) -> list[str]:
    names = [columns] if isinstance(columns, str) else list(columns)
    if isinstance(columns, str) or len(set(names)) != len(names):
        raise ValueError(f"`{argument}` must be a list of distinct columns. Received: {argument}={columns!r}")
    return names


def _require(events: pd.DataFrame, names: Sequence[str]) -> None:
    require_frame(events)
    for name in names:
        require_column(events, name)


def _check_arguments(
    events: pd.DataFrame,
    dwell: str,
    time: str,
    clusters: Sequence[str],
    percentile: float,
    min_cluster: int,
    day_seconds: int,
    timezone_offset: int,
) -> list[str]:
    names = _names("clusters", clusters)
    _require(events, [dwell, time, *names])
    taken = {dwell, time, "day", "level", "rows", "threshold"} & set(names)
    if taken:
        stated = "the dwell, the time or a column of the table of thresholds"
        raise ValueError(f"`clusters` must not hold {stated}. Received: {sorted(taken)[0]!r}")
    if not 0 < percentile < 100:
        raise ValueError(f"`percentile` must lie strictly between 0 and 100. Received: percentile={percentile}")
    for name, value, least in (
        ("min_cluster", min_cluster, 1),
        ("day_seconds", day_seconds, 1),
        ("timezone_offset", timezone_offset, None),
    ):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or (least is not None and value < least):
            stated = "an integer" if least is None else "a positive integer"
            raise ValueError(f"`{name}` must be {stated}. Received: {name}={value!r}")
    return names


def _amounts(events: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64 >= 0, NaN where missing."""
    amounts, wrong = numbers_of(events[name])
    raise_first(name, events[name], [(wrong | np.isinf(amounts) | (amounts < 0), "must hold finite numbers >= 0")])
    return amounts
