"""point_in_time_counts against counting by hand, and nothing from the future."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.count_column import window_name
from keras_ranking.data.counts.windowed import point_in_time_counts


def make_log(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "time": rng.integers(1_700_000_000, 1_700_006_000, size=rows),
            "item": rng.integers(0, 12, size=rows),
            "topic": rng.choice(["a", "b", "c"], size=rows),
            "click": rng.integers(0, 2, size=rows),
            "dwell": rng.exponential(10, size=rows),
        },
        index=rng.permutation(rows) + 1000,
    )


def by_hand(log: pd.DataFrame, key: tuple[str, ...], window: int | None, action: str, delay: int, counted: np.ndarray) -> tuple[list, list]:
    views, sums = [], []
    keys, times, amounts = list(zip(*(log[column] for column in key))), log["time"].tolist(), log[action].tolist()
    for i in range(len(log)):
        seen, total = 0, 0.0
        for j in range(len(log)):
            age = times[i] - times[j]
            if counted[j] and keys[i] == keys[j] and age >= delay and (window is None or age < delay + window):
                seen, total = seen + 1, total + amounts[j]
        views.append(seen)
        sums.append(total)
    return views, sums


@pytest.mark.parametrize("key", ["item", ("topic", "item")])
@pytest.mark.parametrize("window", [300, None])
def test_equals_counting_by_hand(key, window):
    log = make_log(150)
    counted = np.random.default_rng(1).random(len(log)) < 0.7
    got = point_in_time_counts(log, key, [window], ["click", "dwell"], delay=120, prior={"click": (1, 5), "dwell": (0, 2)}, counted=counted)
    columns = (key,) if isinstance(key, str) else key
    name = "_".join(columns)
    for action, (a, b) in {"click": (1, 5), "dwell": (0, 2)}.items():
        views, sums = by_hand(log, columns, window, action, 120, counted)
        suffix = window_name(window)
        assert got[f"{name}_views_{suffix}"].tolist() == views
        np.testing.assert_allclose(got[f"{name}_{action}_{suffix}"], sums, rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(got[f"{name}_{action}_rate_{suffix}"], (np.array(sums) + a) / (np.array(views) + b), rtol=1e-9)
    assert got.index.equals(log.index)
    assert max(views) > 1  # the case is not empty


def changed_rows(count, log: pd.DataFrame, row: int) -> np.ndarray:
    """Rows whose counts move when the click and the item of one row change."""
    other = log.copy()
    other.iloc[row, other.columns.get_loc("click")] = 50
    other.iloc[row, other.columns.get_loc("item")] = 99
    moved = (count(log).to_numpy() != count(other).to_numpy()).any(axis=1)
    moved[row] = False  # its own key changed, so its own counts may
    return moved


def test_a_row_not_yet_visible_changes_nothing():
    log, delay = make_log(), 600

    def count(frame: pd.DataFrame) -> pd.DataFrame:
        return point_in_time_counts(frame, "item", [900, None], delay=delay)

    touched = 0
    for row in range(0, len(log), 13):
        moved = changed_rows(count, log, row)
        touched += int(moved.sum())
        assert (log["time"].to_numpy()[moved] >= log["time"].iloc[row] + delay).all()
    assert touched > 100  # later rows do move: the test can see


def test_the_leak_test_catches_counts_without_a_delay():
    log, delay = make_log(), 600

    def leaky(frame: pd.DataFrame) -> pd.DataFrame:
        item, time = frame["item"].to_numpy(), frame["time"].to_numpy()
        seen = (item[:, None] == item) & (time[:, None] >= time)  # delay 0: the row's own second, and itself
        return pd.DataFrame({"sums": seen @ frame["click"].to_numpy()}, index=frame.index)

    early = [log["time"].to_numpy()[changed_rows(leaky, log, row)] < log["time"].iloc[row] + delay for row in range(0, len(log), 13)]
    assert np.concatenate(early).any()
    itself = log.copy()
    itself.iloc[5, itself.columns.get_loc("click")] += 1
    assert leaky(itself)["sums"].iloc[5] != leaky(log)["sums"].iloc[5]
    assert point_in_time_counts(itself, "item", [None]).iloc[5].equals(point_in_time_counts(log, "item", [None]).iloc[5])


def test_no_row_counts_itself_or_its_own_second():
    log = pd.DataFrame({"time": [10, 10, 11], "item": [1, 1, 1], "click": [1, 1, 1]})
    assert point_in_time_counts(log, "item", [None], delay=1)["item_views_all"].tolist() == [0, 0, 2]


def test_order_of_rows_does_not_matter():
    log = make_log()
    straight = point_in_time_counts(log, ["item", ("item", "topic")], [60, 3600, None])
    shuffled = point_in_time_counts(log.sample(frac=1, random_state=3), ["item", ("item", "topic")], [60, 3600, None])
    pd.testing.assert_frame_equal(straight, shuffled.loc[log.index])


def test_datetimes_and_seconds_agree():
    log = make_log()
    stamps = log.assign(time=pd.to_datetime(log["time"], unit="s").dt.tz_localize("UTC").dt.tz_convert("Europe/Copenhagen"))
    pd.testing.assert_frame_equal(point_in_time_counts(log, "item", [900]), point_in_time_counts(stamps, "item", [900]))


def test_a_missing_key_matches_nothing():
    log = pd.DataFrame({"time": [1, 2000, 4000], "item": [None, None, "x"], "topic": ["a", "a", "a"], "click": [1, 1, 1]})
    for key, name in (("item", "item"), (("topic", "item"), "topic_item")):
        got = point_in_time_counts(log, key, [None], prior=(1, 4))
        assert got[f"{name}_views_all"].tolist() == [0, 0, 0]
        assert got[f"{name}_click_rate_all"].tolist() == [0.25] * 3


def test_an_empty_log_has_empty_counts():
    got = point_in_time_counts(make_log().iloc[:0], "item", [60])
    assert list(got.columns) == ["item_views_1m", "item_click_1m", "item_click_rate_1m"] and not len(got)


def test_window_names():
    assert [window_name(window) for window in (None, 3600, 86400, 900, 90)] == ["all", "1h", "24h", "15m", "90s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay": 0}, "`delay` must be whole seconds, at least 1"),
        ({"windows": [0]}, "`windows` must hold whole seconds"),
        ({"windows": []}, "must not be empty"),
        ({"keys": "author"}, "column 'author' is not in the log"),
        ({"actions": ["like"]}, "column 'like' is not in the log"),
        ({"prior": (1, 0)}, "`prior` must be"),
        ({"prior": {"dwell": (1, 2)}}, "which has no 'click'"),
        ({"counted": [True]}, "`counted` must hold one boolean per row"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"keys": "item", "windows": [60], **change}
    with pytest.raises(ValueError, match=message):
        point_in_time_counts(make_log(), **arguments)


def test_bad_values_name_column_row_and_value():
    log = make_log()
    with pytest.raises(ValueError, match="column 'dwell' must hold finite numbers in every counted row. Received: nan at row 3"):
        point_in_time_counts(log.assign(dwell=log["dwell"].where(np.arange(len(log)) != 3)), "item", [60], ["dwell"])
    with pytest.raises(
        ValueError, match=r"column 'time' must hold whole Unix seconds .* a fraction of a second. Received: .*0.5.* at row 2"
    ):
        point_in_time_counts(log.assign(time=np.where(np.arange(len(log)) == 2, 0.5, 7.0)), "item", [60])


def test_a_million_rows_take_seconds():
    import time

    rng = np.random.default_rng(0)
    rows = 1_000_000
    log = pd.DataFrame({"time": rng.integers(0, 10**6, rows), "item": rng.integers(0, 10**4, rows), "click": rng.integers(0, 2, rows)})
    start = time.process_time()
    point_in_time_counts(log, "item", [3600, None])
    assert time.process_time() - start < 6  # about one second on an idle core; ten million rows in about ten


def test_names_that_collide_are_refused() -> None:
    log = pd.DataFrame({"time": [0, 1000], "item": [7, 7], "click": [1, 0], "click_rate": [1.0, 2.0], "views": [1, 1]})
    for actions in (["click", "click_rate"], ["views"]):
        with pytest.raises(ValueError, match=r"two counts would be named 'item_(click_rate|views)_all'"):
            point_in_time_counts(log, "item", [None], delay=600, actions=actions)
