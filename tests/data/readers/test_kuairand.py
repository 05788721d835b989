"""Reader of KuaiRand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_kuairand


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
