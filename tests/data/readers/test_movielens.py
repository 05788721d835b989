"""Reader of MovieLens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_movielens


def test_movielens_all_layouts(tmp_path):
    rng = np.random.default_rng(0)
    rows = 100
    log = pd.DataFrame(
        {
            "user_id": rng.integers(1, 8, rows),
            "item_id": rng.integers(1, 30, rows),
            "rating": rng.integers(1, 6, rows),
            "timestamp": 874_965_478 + rng.integers(0, 40, rows) * 1000,
        }
    )
    named = ["userId", "movieId", "rating", "timestamp"]
    layouts = {
        "sample": lambda folder: log.to_csv(folder / "ml100k_ratings.csv.gz", index=False),
        "ml-100k": lambda folder: log.to_csv(folder / "u.data", index=False, header=False, sep="\t"),
        "ml-1m": lambda folder: (folder / "ratings.dat").write_text("\n".join("::".join(map(str, row)) for row in log.to_numpy())),
        "ml-20m": lambda folder: log.set_axis(named, axis=1).to_csv(folder / "ratings.csv", index=False),
    }
    logs = []
    for name, save in layouts.items():
        (tmp_path / name).mkdir()
        save(tmp_path / name)
        logs.append(read_movielens(tmp_path / name))
    for other in logs[1:]:
        pd.testing.assert_frame_equal(other.events, logs[0].events)
    events = logs[0].events
    assert (events["liked"] == (events["rating"] >= 4)).all() and events["request_id"].is_unique
    assert events.query("split == 'train'")["time"].max() < events.query("split == 'validation'")["time"].min()
    assert "rating" not in {feature.name for feature in logs[0].schema.features}
    check_events(events, logs[0].schema)
    row = events.iloc[-1]
    same = events[(events["item_id"] == row["item_id"]) & (events["time"] < row["time"])]
    assert row["item_like_rate"] == pytest.approx((same["liked"].sum() + 10) / (len(same) + 20))
    with pytest.raises(FileNotFoundError, match="looked for ml100k_ratings.csv.gz, ratings.csv"):
        (tmp_path / "empty").mkdir()
        read_movielens(tmp_path / "empty")
