"""Long dwell and contributions: against loops, and no threshold from today or later."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest

from keras_ranking.columns import Task
from keras_ranking.training import contribution_labels, long_dwell_labels

pytestmark = pytest.mark.one_backend
DAY = 86_400
CLUSTERS = ("position", "kind", "platform")


def log_(rows: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Eight days without an order, of which the third has no rows and the sixth no dwells; some dwells and clusters are missing."""
    rng = np.random.default_rng(seed)
    day = rng.choice([0, 1, 3, 4, 5, 6, 7], size=rows)
    dwell = np.round(np.exp(rng.normal(2, 1, rows) + rng.random(rows)), 1)
    dwell[(rng.random(rows) < 0.1) | (day == 5)] = np.nan
    kind = rng.choice(np.array(["video", "text", "job", None], dtype=object), size=rows, p=[0.5, 0.3, 0.1, 0.1])
    return pd.DataFrame(
        {
            "time": day * DAY + rng.integers(0, DAY, rows) + 1_767_225_600,
            "position": rng.choice([1, 2, 3], size=rows, p=[0.6, 0.3, 0.1]),
            "kind": kind,
            "platform": rng.choice(["ios", "web"], size=rows),
            "dwell": dwell,
        },
        index=rng.permutation(rows) + 7,
    )


def plain(value: object) -> bool:
    return value is not None and value == value


def reference(
    log: pd.DataFrame, percentile: float, smallest: int, offset: int = 0, day_seconds: int = DAY, same_day: bool = False
) -> tuple[list[float], list[float], list[int], list[int]]:
    """One row after another, one dwell after another."""
    rows = log.to_dict("records")
    days = [math.floor((row["time"] + offset) / day_seconds) for row in rows]
    with_dwell = sorted({day for day, row in zip(days, rows) if plain(row["dwell"])})
    labels, thresholds, levels, ages = [], [], [], []
    for day, row in zip(days, rows):
        earlier = [other for other in with_dwell if (other <= day if same_day else other < day)]
        found, level, age = math.nan, -1, -1
        for dropped in range(len(CLUSTERS) + 1) if earlier else []:
            names = CLUSTERS[: len(CLUSTERS) - dropped]
            if not all(plain(row[name]) for name in names):
                continue
            dwells = [
                other["dwell"]
                for when, other in zip(days, rows)
                if when == earlier[-1] and plain(other["dwell"]) and all(other[name] == row[name] for name in names)
            ]
            if len(dwells) >= (smallest if names else 1):
                found, level, age = float(np.percentile(np.array(dwells, dtype=np.float64), percentile)), dropped, day - earlier[-1]
                break
        labels.append(math.nan if math.isnan(found) or not plain(row["dwell"]) else float(row["dwell"] > found))
        thresholds.append(found)
        levels.append(level)
        ages.append(age)
    return labels, thresholds, levels, ages


@pytest.mark.parametrize(("percentile", "smallest", "offset"), [(90, 14, 0), (50, 8, 19_800), (99.5, 60, -28_800), (90, 1, 0)])
def test_against_the_loop(percentile: float, smallest: int, offset: int) -> None:
    log = log_(800)
    labels, thresholds, levels, ages = reference(log, percentile, smallest, offset)
    got = long_dwell_labels(log, "dwell", "time", CLUSTERS, percentile, smallest, timezone_offset=offset)
    np.testing.assert_array_equal(got.labels, labels)
    np.testing.assert_allclose(got.threshold, thresholds, rtol=1e-13)
    np.testing.assert_array_equal(got.level, levels)
    np.testing.assert_array_equal(got.age, ages)
    for series in (got.labels, got.threshold, got.level, got.age):
        assert series.index.equals(log.index)
    if smallest == 14:
        assert set(levels) == {-1, 0, 1, 2, 3} and set(ages) == {-1, 1, 2}  # every level is met, and days without a day before
    if smallest > 1:
        assert np.nanmean(labels) == pytest.approx(1 - percentile / 100, abs=0.06)
    # controls: another day's beginning, percentile, or smallest cluster gives other labels
    for other in ({"percentile": 70}, {"min_cluster": 200}, {"timezone_offset": offset + 40_000}):
        arguments = {"percentile": percentile, "min_cluster": smallest, "timezone_offset": offset, **other}
        changed = long_dwell_labels(log, "dwell", "time", CLUSTERS, **arguments)
        assert not changed.threshold.equals(got.threshold)


def test_the_table_holds_the_thresholds_that_were_used() -> None:
    log = log_()
    got = long_dwell_labels(log, "dwell", "time", CLUSTERS, min_cluster=25)
    table = got.thresholds
    assert list(table.columns) == ["day", "level", *CLUSTERS, "rows", "threshold"]
    assert (table["rows"][table["level"] < 3] >= 25).all() and (table["level"] == 3).sum() == 6  # days with a dwell
    day = log["time"] // DAY
    for level in range(4):
        names = CLUSTERS[: 3 - level]
        assert table[table["level"] == level][list(CLUSTERS[3 - level :])].isna().all(axis=None)
        rows = (got.level == level).to_numpy()
        left = log[rows].assign(day=day[rows] - got.age[rows], want=got.threshold[rows])
        merged = left.merge(table[table["level"] == level], on=["day", *names], how="left", suffixes=("", "_table"))
        assert len(merged) == rows.sum() > 0
        np.testing.assert_array_equal(merged["threshold"], merged["want"])


@pytest.mark.parametrize("same_day", [False, True])
def test_nothing_of_today_or_later_moves_a_threshold_of_today(same_day: bool) -> None:
    """The control, thresholds of the same day, leaks."""
    log = log_(400)
    today = 4 + 1_767_225_600 // DAY
    late = (log["time"] // DAY >= today).to_numpy()
    changed = log.copy()
    changed.loc[late, "dwell"] = changed.loc[late, "dwell"][::-1].to_numpy() * 3 + 1
    first, second = (
        reference(frame, 90, 20, same_day=True)[1] if same_day else long_dwell_labels(frame, "dwell", "time", CLUSTERS, 90, 20).threshold
        for frame in (log, changed)
    )
    until = (log["time"] // DAY <= today).to_numpy()
    equal = np.array_equal(np.asarray(first)[until], np.asarray(second)[until], equal_nan=True)
    assert equal != same_day
    assert not np.array_equal(first, second, equal_nan=True)  # tomorrow's do move: the change was not too small to see
    if same_day:
        return
    # nor do rows dropped or added; and labels move with their own dwell alone
    shorter = log[~(log["time"] // DAY > today).to_numpy() | (np.arange(len(log)) % 2 == 0)]
    again = long_dwell_labels(shorter, "dwell", "time", CLUSTERS, 90, 20)
    both = shorter.index[(shorter["time"] // DAY <= today).to_numpy()]
    whole = long_dwell_labels(log, "dwell", "time", CLUSTERS, 90, 20)
    for name in ("labels", "threshold", "level", "age"):
        pd.testing.assert_series_equal(getattr(again, name)[both], getattr(whole, name)[both])


def test_back_off_by_hand() -> None:
    log = pd.DataFrame(
        {
            "time": [0] * 6 + [DAY] * 5 + [5 * DAY],
            "position": [1, 1, 1, 1, 2, 2, 1, 1, 2, 3, np.nan, 1],
            "kind": ["v", "v", "v", "t", "t", "t", "v", "t", "t", "v", "v", "new"],
            "dwell": [1.0, 2, 3, 10, 5, 9, 2.5, 2.7, 9, 9, 1, 9],
        }
    )
    got = long_dwell_labels(log, "dwell", "time", ["position", "kind"], percentile=50, min_cluster=2)
    #                     1 v  1 t: all of 1   2 t  3 v: the day   no position    5 days on: 1 of day 1 is 2.6
    assert got.level.tolist() == [-1] * 6 + [0, 1, 0, 2, 2, 1]
    np.testing.assert_array_equal(got.threshold[6:], [2.0, 2.5, 7.0, 4.0, 4.0, 2.6])
    assert got.labels[6:].tolist() == [1, 1, 1, 1, 0, 1] and got.labels[:6].isna().all()
    assert got.age.tolist() == [-1] * 6 + [1] * 5 + [4]


def test_a_dwell_at_the_threshold_is_not_long() -> None:
    log = pd.DataFrame({"time": [0, 1, DAY, DAY], "dwell": [0.3, 0.3, 0.3, np.nextafter(0.3, 1)]})
    assert long_dwell_labels(log, "dwell", "time", []).labels.tolist()[2:] == [0.0, 1.0]


def test_empty_frames_and_missing_dwells() -> None:
    log = log_(50)
    for frame in (log.iloc[:0], log.assign(dwell=np.nan), log.assign(time=5)):
        got = long_dwell_labels(frame, "dwell", "time", CLUSTERS)
        assert got.labels.isna().all() and got.threshold.isna().all() and (got.level == -1).all() and (got.age == -1).all()
        assert len(got.labels) == len(frame) and list(got.thresholds.columns) == ["day", "level", *CLUSTERS, "rows", "threshold"]
    unknown = log.assign(dwell=log["dwell"].astype("Float64"))
    pd.testing.assert_series_equal(
        long_dwell_labels(unknown, "dwell", "time", CLUSTERS).labels, long_dwell_labels(log, "dwell", "time", CLUSTERS).labels
    )
    labels = Task("long_dwell", missing="unknown").encode(long_dwell_labels(log, "dwell", "time", CLUSTERS).labels)
    assert set(np.unique(labels[~np.isnan(labels)])) <= {0.0, 1.0} and np.isnan(labels).any()


def test_datetimes_and_seconds_agree() -> None:
    log = log_(200)
    stamps = log.assign(time=pd.to_datetime(log["time"], unit="s", utc=True).dt.tz_convert("Asia/Tokyo"))
    pd.testing.assert_series_equal(
        long_dwell_labels(stamps, "dwell", "time", CLUSTERS, 90, 5).labels, long_dwell_labels(log, "dwell", "time", CLUSTERS, 90, 5).labels
    )


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"dwell": [1.0, -2.0]}, {}, "column 'dwell' must hold finite numbers >= 0. Received: -2.0 at row 1"),
        ({"dwell": [np.inf, 2.0]}, {}, "column 'dwell' must hold finite numbers >= 0. Received: inf at row 0"),
        ({"dwell": [1.0, "long"]}, {}, "column 'dwell' must hold finite numbers >= 0. Received: 'long' at row 1"),
        ({"dwell": pd.to_datetime([0, 1])}, {}, "column 'dwell' must hold finite numbers >= 0. Received: Timestamp"),
        ({"time": [1.0, np.nan]}, {}, "column 'time' must hold a time in every row. Received: .*nan.* at row 1"),
        ({"time": pd.to_datetime([0, None])}, {}, "column 'time' must hold a time in every row. Received: NaT at row 1"),
        ({}, {"dwell": "x"}, "column 'x' is not in the log. It has:"),
        ({}, {"clusters": ["y"]}, "column 'y' is not in the log"),
        ({}, {"clusters": "kind"}, "`clusters` must be a list of distinct columns. Received: clusters='kind'"),
        ({}, {"clusters": ["kind", "kind"]}, "`clusters` must be a list of distinct columns"),
        ({}, {"clusters": ["dwell"]}, "`clusters` must not hold the dwell.*Received: 'dwell'"),
        ({}, {"percentile": 100}, "`percentile` must lie strictly between 0 and 100. Received: percentile=100"),
        ({}, {"percentile": math.nan}, "`percentile` must lie strictly"),
        ({}, {"min_cluster": 0}, "`min_cluster` must be a positive integer. Received: min_cluster=0"),
        ({}, {"day_seconds": 1.5}, "`day_seconds` must be a positive integer"),
        ({}, {"timezone_offset": 0.5}, "`timezone_offset` must be an integer"),
    ],
)
def test_wrong_input_is_named(change: dict, arguments: dict, message: str) -> None:
    log = pd.DataFrame({"time": [1, 2], "kind": ["a", "b"], "dwell": [1.0, 2.0]}).assign(**change)
    with pytest.raises(ValueError, match=message):
        long_dwell_labels(log, **{"dwell": "dwell", "time": "time", "clusters": ["kind"], **arguments})


def test_contributions() -> None:
    values = [0, 1, 3, np.nan]
    log = pd.DataFrame([(a, b, c) for a in values for b in values for c in values], columns=["like", "comment", "share"])
    want = [1.0 if any(v > 0 for v in row) else math.nan if any(v != v for v in row) else 0.0 for row in log.itertuples(index=False)]
    np.testing.assert_array_equal(contribution_labels(log), want)
    np.testing.assert_array_equal(contribution_labels(log, ["like"]), [math.nan if v != v else float(v > 0) for v in log["like"]])
    boolean = pd.DataFrame({"like": [True, False]}, index=[4, 2])
    pd.testing.assert_series_equal(contribution_labels(boolean, ["like"]), pd.Series([1.0, 0.0], index=[4, 2], name="contribution"))
    assert contribution_labels(log.iloc[:0]).empty
    for arguments, message in (
        ({"actions": ()}, "`actions` must name at least one column"),
        ({"actions": "like"}, "`actions` must be a list of distinct columns"),
        ({"actions": ["vote"]}, "column 'vote' is not in the log"),
    ):
        with pytest.raises(ValueError, match=message):
            contribution_labels(log, **arguments)
    with pytest.raises(ValueError, match="column 'like' must hold finite numbers >= 0. Received: -1 at row 1"):
        contribution_labels(pd.DataFrame({"like": [0, -1]}), ["like"])


def test_large_logs_take_no_loop_over_rows() -> None:
    log = pd.concat([log_(20_000, seed) for seed in range(10)], ignore_index=True)
    begin = time.process_time()
    long_dwell_labels(log, "dwell", "time", CLUSTERS)
    assert time.process_time() - begin < 3  # 200,000 rows; 0.2 s here
