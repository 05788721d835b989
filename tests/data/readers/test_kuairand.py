"""Reader of KuaiRand."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_kuairand
from tests.data.readers.kuairand_files import BEGIN, DAY, write_pure


def test_kuairand_both_layouts(tmp_path):
    rng = np.random.default_rng(0)
    rows = 200
    log = pd.DataFrame(
        {
            "user_id": rng.integers(0, 5, rows),
            "video_id": rng.integers(0, 20, rows),
            "date": np.where(np.arange(rows) < 150, 20220417, 20220418),
            "hourmin": 900,
            "time_ms": 1_650_000_000_000 + np.arange(rows) * 700_000,
            "is_click": rng.integers(0, 2, rows),
            "long_view": rng.integers(0, 2, rows),
            "is_like": 1,
            "play_time_ms": rng.integers(0, 90_000, rows),
            "duration_ms": rng.integers(0, 90_000, rows),
        }
    )
    log.loc[1, ["user_id", "time_ms"]] = log.loc[0, ["user_id", "time_ms"]].to_numpy()
    extract, release = tmp_path / "extract", tmp_path / "release" / "data"
    extract.mkdir()
    release.mkdir(parents=True)
    log.to_csv(extract / "kuairand_feedback.csv.gz", index=False)
    log[:100].to_csv(release / "log_standard_4_08_to_4_21.csv", index=False)
    log[100:].to_csv(release / "log_standard_4_22_to_5_08.csv", index=False)
    got = read_kuairand(extract)
    pd.testing.assert_frame_equal(got.events, read_kuairand(release.parent).events)
    assert got.events["split"].value_counts().to_dict() == {"train": 150, "validation": 50}
    assert got.events["request_id"].nunique() == rows - 1
    assert {action.name for action in got.schema.actions} == {"is_click", "long_view", "play_seconds", "is_like"}
    assert "play_seconds" not in {feature.name for feature in got.schema.features}
    last = got.events.iloc[-1]
    earlier = got.events.iloc[:-1]
    same = earlier[earlier["video_id"] == last["video_id"]]
    assert last["video_click_rate"] == pytest.approx((same["is_click"].sum() + 10) / (len(same) + 20))
    check_events(got.events, got.schema)
    log.drop(columns="is_click").to_csv(extract / "kuairand_feedback.csv.gz", index=False)
    with pytest.raises(ValueError, match="column 'is_click' is not in kuairand_feedback.csv.gz"):
        read_kuairand(extract)


def test_pure_has_tables_and_earlier_impressions(tmp_path):
    log, _, users, videos = write_pure(tmp_path)
    got = read_kuairand(tmp_path)
    events = got.events
    history = events[events["split"] == "history"]
    assert history[["user_id", "video_id", "time", "long_view", "is_like"]].sort_values("time").values.tolist() == [
        [0, 3, BEGIN - 52, 1, 0],
        [0, 4, BEGIN - 51, 0, 0],
        [0, 19, BEGIN - 50, 1, 1],
        [1, 7, BEGIN - 10, 0, 1],
        [1, 3, BEGIN - 9, 1, 0],
    ]
    assert history["is_click"].isna().all() and (history["request_id"] < 0).all() and (history["duration_seconds"] == 12).all()
    assert any("their times are made up, one second apart" in note for note in got.notes)
    assert any("1 members of kuairand_pure_past.csv.gz have no impression" in note for note in got.notes)
    shown = events[events["split"] != "history"]
    assert len(shown) == len(log) and shown["past_events"].isna().sum() == (~shown["user_id"].isin([0, 1])).sum()
    assert (shown["split"] == np.where(shown["time"] >= BEGIN + DAY, "validation", "train")).all()
    last = shown.iloc[-1]
    for key, name in (("user_id", "user"), ("video_id", "video")):
        same = events[(events[key] == last[key]) & (events["time"] < last["time"])]
        assert last[f"{name}_views"] == len(same)
        assert last[f"{name}_long_view_rate"] == pytest.approx((same["long_view"].sum() + 10) / (len(same) + 20))
        assert last[f"{name}_click_rate"] == pytest.approx((same["is_click"].sum() + 10) / (same["is_click"].notna().sum() + 20))
    assert last["author_id"] == 100 + last["video_id"] and last["upload_age_days"] == pytest.approx(last["time"] / DAY - 19_115)
    assert set(events.loc[events["video_id"] % 2 == 0, "tag"]) == {"20"}
    features = {feature.name for feature in got.schema.features}
    assert {"author_id", "tag", "onehot_feat0", "fans_user_num", "past_events", "tab"} <= features
    assert {"play_seconds", "play_time_ms", "onehot_feat3", "video_seconds"}.isdisjoint(features)
    assert check_events(events, got.schema)[1].kept == len(events)
    fitted = got.schema.fit(shown[shown["split"] == "train"])
    assert np.isfinite(next(action for action in fitted.actions if action.name == "is_click").encode(events["is_click"])).all()

    # The release has the same columns, without earlier impressions.
    data = tmp_path / "release" / "data"
    data.mkdir(parents=True)
    days = pd.to_datetime(log["time_ms"] // 1000 + 8 * 3600, unit="s").dt.strftime("%Y%m%d").astype(int)
    log.assign(date=days)[:200].to_csv(data / "log_standard_4_22_to_5_08_pure.csv", index=False)
    log.assign(date=days)[200:].to_csv(data / "log_random_4_22_to_5_08_pure.csv", index=False)
    users.to_csv(data / "user_features_pure.csv", index=False)
    videos.assign(tag=videos["tag"].str.replace(" ", ",")).to_csv(data / "video_features_basic_pure.csv", index=False)
    both = read_kuairand(tmp_path / "release", logs="both")
    common = [name for name in both.events if name in shown and name != "tag" and not name.endswith(("_views", "_long_view_rate"))]
    pd.testing.assert_frame_equal(
        both.events[common].reset_index(drop=True), shown[common].reset_index(drop=True), check_dtype=False, check_like=True
    )
    assert "past_events" not in both.events and "is_click" not in {task.name for task in both.schema.tasks if task.missing == "unknown"}
    assert [len(read_kuairand(tmp_path / "release", logs=logs).events) for logs in ("standard", "random")] == [200, len(log) - 200]


def test_where_to_split(tmp_path):
    write_pure(tmp_path)
    noon = BEGIN + DAY // 2
    for moment in (noon, datetime(2022, 5, 4, 12), datetime(2022, 5, 4, 4, tzinfo=UTC), np.int64(noon)):
        events = read_kuairand(tmp_path, split_at=moment).events.query("split != 'history'")
        assert (events["split"] == np.where(events["time"] >= noon, "validation", "train")).all()
    pd.testing.assert_frame_equal(read_kuairand(tmp_path, split_at=date(2022, 5, 5)).events, read_kuairand(tmp_path).events)
    events = read_kuairand(tmp_path, train_share=0.6).events.query("split != 'history'")
    assert (events["split"] == "train").mean() == pytest.approx(0.6, abs=0.01)
    assert events.query("split == 'train'")["time"].max() < events.query("split == 'validation'")["time"].min()
    assert "dates begin on 20220504, and validation on 20220501" in read_kuairand(tmp_path, validation_from=20220501).notes[-1]
    with pytest.raises(ValueError, match="one of `validation_from`, `train_share` and `split_at` must say where to split"):
        read_kuairand(tmp_path, validation_from=20220505, train_share=0.6)
    with pytest.raises(ValueError, match="`train_share` must lie strictly between 0 and 1. Received: train_share=1"):
        read_kuairand(tmp_path, train_share=1)
    with pytest.raises(ValueError, match="`split_at` must be a date, a datetime or Unix seconds. Received: split_at='2022-05-05'"):
        read_kuairand(tmp_path, split_at="2022-05-05")


def test_several_releases_and_logs(tmp_path):
    log, past, *_ = write_pure(tmp_path)
    assert read_kuairand(tmp_path).schema == read_kuairand(tmp_path, release="pure").schema
    with pytest.raises(ValueError, match="`logs` must be 'standard' for kuairand_pure_impressions.csv.gz"):
        read_kuairand(tmp_path, logs="both")
    with pytest.raises(ValueError, match="`logs` must be one of 'standard', 'random', 'both'. Received: logs='all'"):
        read_kuairand(tmp_path, logs="all")
    dated = log.assign(date=20220417)
    dated.to_csv(tmp_path / "log_standard_4_08_to_4_21_1k.csv", index=False)
    with pytest.raises(
        ValueError, match=r"`release` must be given .*'pure' \(kuairand_pure_imp.*'1k' \(log_standard_4_08_to_4_21_1k.csv\)"
    ):
        read_kuairand(tmp_path)
    assert len(read_kuairand(tmp_path, release="1k").events) == len(log)
    with pytest.raises(FileNotFoundError, match=r"has no random log: looked for log_random\*_1k"):
        read_kuairand(tmp_path, release="1k", logs="random")
    dated.to_csv(tmp_path / "kuairand_feedback.csv.gz", index=False)
    assert "`release` chooses, 'sample' was read" in read_kuairand(tmp_path).notes[-1]
    past.assign(is_like="K").to_csv(tmp_path / "kuairand_pure_past.csv.gz", index=False)
    with pytest.raises(ValueError, match="column 'is_like' of kuairand_pure_past.csv.gz must have one mark per video. Received: user_id 0"):
        read_kuairand(tmp_path, release="pure")
