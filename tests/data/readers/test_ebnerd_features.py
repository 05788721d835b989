"""Reader of EB-NeRD: features equal counts by hand, and nothing from the future of a row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.readers import read_ebnerd
from tests.data.readers.ebnerd_files import DAY, T0, features, shown_rows, write


def test_features_equal_counting_by_hand(small):
    log, _, history = small
    rows = shown_rows(log).sort_values("time").reset_index(drop=True)
    old = [
        (one.split, one.user_id, int(pd.Timestamp(time).timestamp()), int(article))
        for one in history.itertuples()
        for time, article in zip(one.impression_time_fixed.split(), one.article_id_fixed.split())
    ]
    checked = {"seen": 0, "clicked": 0, "in_history": 0, "history_clicks": 0}
    for _, row in rows.iloc[::17].iterrows():
        before = rows[rows["time"] <= row["time"] - 600]
        article = before[before["article_id"] == row["article_id"]]
        for name, hours in (("1h", 1), ("6h", 6), ("24h", 24), ("all", 10**6)):
            inside = article[article["time"] > row["time"] - 600 - hours * 3600]
            assert row[f"views_{name}"] == len(inside)
            assert row[f"ctr_{name}"] == pytest.approx(
                100 * (inside.loc[inside["click_after"] <= 600, "click"].sum() + 1) / (len(inside) + 12)
            )
        own = rows[(rows["member"] == row["member"]) & (rows["time"] < row["time"])]
        mine = own[own["article_id"] == row["article_id"]]
        happened = rows[(rows["member"] == row["member"]) & (rows["time"] + rows["click_after"] < row["time"])]
        clicks_before = [click for click in old if click[0] == row["split"]]
        expected = {
            "seen": len(mine),
            "clicked": happened.loc[happened["article_id"] == row["article_id"], "click"].sum(),
            "impressions_so_far": own["request"].nunique(),
            "history_clicks": sum(a == row["article_id"] and t <= row["time"] - 600 for _, _, t, a in clicks_before),
            "in_history": sum(a == row["article_id"] and m == row["member"] and t < row["time"] for _, m, t, a in clicks_before),
            "history_size": sum(m == row["member"] and t < row["time"] for _, m, t, a in clicks_before),
        }
        for name, value in expected.items():
            assert row[name] == value, name
        for name in checked:
            checked[name] += expected[name]
        assert np.isnan(row["gap"]) if own.empty else row["gap"] == row["time"] - own["time"].max()
        sights = [*rows.loc[rows["article_id"] == row["article_id"], "time"], *(t for _, _, t, a in old if a == row["article_id"])]
        first = min(sights)
        assert row["article_age"] == pytest.approx((row["time"] - first) / 3600 if first <= row["time"] - 600 else 0.0)
        together = rows[rows["request"] == row["request"]]
        above = (together["ctr_24h"] > row["ctr_24h"]).sum() + 0.5 * (together["ctr_24h"] == row["ctr_24h"]).sum()
        assert row["ctr_24h_rank"] == pytest.approx(above / len(together))
    assert all(checked.values())  # every kind of count occurred


def test_nothing_from_the_future(small, tmp_path):
    """Neither cutting the log after a time, nor changing every click of the ten minutes before it, changes a feature up to that time."""
    log, behaviors, history = small
    moment = T0 + 3 * DAY
    times = pd.to_datetime(behaviors["impression_time"]).map(lambda time: int(time.timestamp()))
    before = behaviors[times <= moment]
    cut = shown_rows(read_ebnerd(write(tmp_path / "cut", before, history)))
    full = shown_rows(log).loc[cut.index]
    names = [name for name in features(log) if name != "article_id"]
    pd.testing.assert_frame_equal(full[names], cut[names])

    last = behaviors[times <= moment].index[-1]
    near = (times > times[last] - 600) & (behaviors["user_id"] != behaviors["user_id"][last]) & (times <= times[last])
    other = behaviors.copy()
    other.loc[near, "article_ids_clicked"] = other.loc[near, "article_ids_inview"].str.split().str[-1]
    turned = shown_rows(read_ebnerd(write(tmp_path / "turned", other, history))).loc[behaviors["impression_id"][last]]
    pd.testing.assert_frame_equal(turned[names], shown_rows(log).loc[behaviors["impression_id"][last]][names])


def test_control_a_feature_of_the_whole_log_is_found(small):
    log, _, _ = small
    rows = shown_rows(log)
    moment = T0 + 3 * DAY
    leaky = rows.groupby(level="article_id")["click"].transform("mean")
    cut = rows[rows["time"] <= moment]
    assert not np.allclose(leaky.loc[cut.index], cut.groupby(level="article_id")["click"].transform("mean"))


def test_actions_are_what_was_known_when_they_become_visible(small, tmp_path):
    log, behaviors, history = small
    assert log.schema.feedback_delay == 120 and not {"read_time", "scroll_percentage"} & set(log.events.columns)
    assert {action.name for action in log.schema.actions} == {"known_click", "known_dwell", "known_scroll"}
    for _, row in log.events.iterrows():
        left = 120 - row["click_after"]
        clicked = row["click"] == 1 and left >= 0
        assert row["known_click"] == clicked
        if not clicked:
            assert row["known_dwell"] == row["known_scroll"] == 0
        elif np.isnan(row["dwell"]):
            assert np.isnan(row["known_dwell"])
        else:
            assert row["known_dwell"] == min(row["dwell"], left)
            np.testing.assert_equal(row["known_scroll"], row["scroll"] if row["dwell"] <= left else np.nan)
    assert (log.events["dwell"] > log.events["known_dwell"]).any() and (log.events["click"] > log.events["known_click"]).any()
    # Behaviour after the two minutes changes no input of a score.
    later = behaviors.assign(next_read_time=behaviors["next_read_time"].mask(behaviors["next_read_time"] >= 120, 1500.0))
    other = read_ebnerd(write(tmp_path, later, history), tasks=("click", "long_dwell"))
    names = [*features(log), "known_click", "known_dwell", "known_scroll"]
    pd.testing.assert_frame_equal(shown_rows(other)[names], shown_rows(log)[names])
    assert not shown_rows(other)["dwell"].equals(shown_rows(log)["dwell"])
