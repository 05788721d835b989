"""Reader of EB-NeRD: rows, history, layouts and errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_ebnerd
from tests.data.readers.ebnerd_files import T0, shown_rows, small_ebnerd, write


def test_one_row_per_article_in_view(small):
    log, behaviors, _ = small
    rows = shown_rows(log)
    assert len(rows) == behaviors["article_ids_inview"].str.split().map(len).sum()
    assert rows["click"].sum() == behaviors["article_ids_clicked"].str.split().map(set).map(len).sum()
    for _, impression in behaviors.iloc[::2].iterrows():
        mine = rows.loc[impression["impression_id"]]
        clicked = [int(article) for article in set(impression["article_ids_clicked"].split())]
        assert sorted(mine.index) == sorted(int(article) for article in impression["article_ids_inview"].split())
        assert sorted(mine.index[mine["click"] == 1]) == sorted(clicked)
        assert (mine["time"] == int(pd.Timestamp(impression["impression_time"]).timestamp())).all()
        expected = impression["next_read_time"] if len(clicked) == 1 else np.nan
        np.testing.assert_array_equal(mine["dwell"], np.where(mine["click"] == 1, expected, 0.0))
    rows, report = check_events(log.events, log.schema)
    assert report.kept == len(log.events)
    assert [int(note.split()[0]) for note in log.notes[:2]] == [8, 16]  # repeated clicks, clicks without a known dwell


def test_long_dwell_is_unknown_without_a_measured_click(small):
    rows = shown_rows(small[0])
    read = rows["dwell"].where(rows["click"] == 1)
    assert rows["long_dwell"].isna().equals(read.isna()) and (rows["long_dwell"].dropna() == (read.dropna() >= 60)).all()
    assert 0 < rows["long_dwell"].sum() < rows["long_dwell"].notna().sum()


def test_history_has_no_repetition_and_no_click_of_the_log(small):
    log, _, history = small
    clicks_before = log.events[log.events["split"] == "history"]
    assert not clicks_before.duplicated(["member", "time", "article_id"]).any()
    assert (
        (clicks_before["request"] < 0).all()
        and clicks_before["request"].is_unique
        and (clicks_before["session"] < 0).all()
        and (clicks_before["click"] == 1).all()
    )
    assert set(clicks_before.loc[clicks_before["article_id"] == 950, "member"]) == set(range(3, 9))  # the unexplained clicks stay
    clicked = log.events[(log.events["split"] != "history") & (log.events["click"] == 1)]
    late = clicks_before[clicks_before["time"] >= T0].merge(clicked, on=["member", "article_id"])
    assert late.empty
    given = history["article_id_fixed"].str.split().map(len).sum()
    noted = [int(note.split()[0]) for note in log.notes if "history clicks" in note]
    assert len(clicks_before) == given - sum(noted) and all(noted)


def test_history_rows_do_not_depend_on_later_clicks(tmp_path):
    """A history click of an article that is shown again days later: the row is the same, clicked or not."""
    behaviors, history = small_ebnerd()
    mine = behaviors[behaviors["user_id"] == 3]
    last = mine.index[pd.to_datetime(mine["impression_time"]).argmax()]
    behaviors.loc[last, "article_ids_inview"] += " 950"
    found = {}
    for clicked in (behaviors.loc[last, "article_ids_clicked"], "950"):
        behaviors.loc[last, "article_ids_clicked"] = clicked
        log = read_ebnerd(write(tmp_path / "log", behaviors, history))
        found[clicked == "950"] = log.events[(log.events["split"] == "history") & (log.events["article_id"] == 950)]
    shown = pd.Timestamp(behaviors.loc[last, "impression_time"]).timestamp()
    assert set(found[True]["member"]) == set(range(3, 9)) and found[True]["time"].max() < shown
    pd.testing.assert_frame_equal(found[True].reset_index(drop=True), found[False].reset_index(drop=True))


def test_lists_of_one_article_are_lists(tmp_path):
    behaviors, history = small_ebnerd()
    behaviors["article_ids_clicked"] = behaviors["article_ids_clicked"].str.split().str[0]
    for column in history.columns[2:]:
        history[column] = history[column].str.split().str[0]
    log = read_ebnerd(write(tmp_path / "log", behaviors, history))
    rows = log.events[log.events["split"] != "history"]
    assert rows.groupby("request")["click"].sum().eq(1).all()


def test_history_sessions_end_with_a_pause(small):
    clicks_before = small[0].events.query("split == 'history'").sort_values(["member", "time"])
    pause = clicks_before["time"].diff()[(clicks_before["member"].diff() == 0)] > 1800
    same = (clicks_before["session"].diff() == 0)[(clicks_before["member"].diff() == 0)]
    assert (same == ~pause).all() and clicks_before.groupby("session")["member"].nunique().max() == 1


def test_published_layout_gives_the_same_log(small, tmp_path):
    pytest.importorskip("pyarrow")
    log, behaviors, history = small
    for split in ("train", "validation"):
        folder = tmp_path / split
        folder.mkdir()
        part = behaviors[behaviors["split"] == split].drop(columns="split")
        part = part.assign(impression_time=pd.to_datetime(part["impression_time"]))
        for name in ("article_ids_inview", "article_ids_clicked"):
            part[name] = [np.array(value.split(), dtype=np.int32) for value in part[name]]
        part.to_parquet(folder / "behaviors.parquet")
        clicks_before = history[history["split"] == split].drop(columns="split")
        for name, kind in (("impression_time_fixed", "datetime64[us]"), ("article_id_fixed", np.int32)):
            clicks_before[name] = [np.array(value.split(), dtype=kind) for value in clicks_before[name]]
        for name in ("read_time_fixed", "scroll_percentage_fixed"):
            clicks_before[name] = [np.array(value.split(), dtype=np.float32) for value in clicks_before[name]]
        clicks_before.to_parquet(folder / "history.parquet")
    other = read_ebnerd(tmp_path, tasks=("click", "long_dwell"))
    pd.testing.assert_frame_equal(other.events, log.events, check_dtype=False)
    assert other.notes == log.notes


def test_max_history_keeps_the_latest(small, tmp_path):
    _, behaviors, history = small
    log = read_ebnerd(write(tmp_path, behaviors, history), max_history=2)
    clicks_before = log.events[log.events["split"] == "history"]
    assert clicks_before.groupby("member").size().max() == 2 and any("beyond the latest 2" in note for note in log.notes)
    longer = small[0].events.query("split == 'history'").sort_values("time").groupby("member").tail(2)
    assert sorted(clicks_before["time"]) == sorted(longer["time"])


def test_errors_name_what_is_missing(small, tmp_path):
    _, behaviors, history = small
    with pytest.raises(FileNotFoundError, match="not a folder"):
        read_ebnerd(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="looked for ebnerd_behaviors.csv.gz"):
        read_ebnerd(tmp_path)
    with pytest.raises(ValueError, match=r"column 'session_id' is not in ebnerd_behaviors.csv.gz. It has: \["):
        read_ebnerd(write(tmp_path, behaviors.drop(columns="session_id"), history))
    with pytest.raises(ValueError, match="`tasks` must be among"):
        read_ebnerd(write(tmp_path, behaviors, history), tasks=("buy",))
    behaviors = behaviors.assign(impression_id=7)
    with pytest.raises(ValueError, match="column 'impression_id' must not repeat. Received: 7 twice"):
        read_ebnerd(write(tmp_path, behaviors, history))


def test_missing_split(small):
    with pytest.raises(ValueError, match=r"the log 'ebnerd' has no rows with split 'test'. It has: \['history', 'train', 'validation'\]"):
        small[0].split("test")
