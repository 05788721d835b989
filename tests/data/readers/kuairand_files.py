"""The files of a small KuaiRand-Pure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

DAY = 86_400
BEGIN = 1_651_593_600  # 2022-05-04 00:00 in China


def write_pure(folder: Path, rows: int = 300, tabs: int = 15) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Write them; returns impressions, lists of earlier ones, users and videos. Splits are cut at `BEGIN` + `DAY`."""
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "user_id": rng.integers(0, 12, rows),
            "video_id": rng.integers(0, 20, rows),
            "time_ms": (BEGIN * 1000 + np.sort(rng.integers(0, 3 * DAY, rows)) * 1000),
            "tab": rng.integers(0, tabs, rows),
            **{name: rng.integers(0, 2, rows) for name in ("is_click", "long_view", "is_like", "is_hate")},
            "play_time_ms": rng.integers(0, 90_000, rows),
            "duration_ms": rng.integers(1, 90_000, rows),
        }
    ).drop_duplicates(["user_id", "video_id", "time_ms"])
    past = pd.DataFrame(
        {
            "user_id": [0, 1, 99],
            "past_events": [70, 2, 1],
            "last_time_ms": [(BEGIN - 50) * 1000 + 900, (BEGIN - 9) * 1000, 5_000],
            "video_ids": ["3 4 19", "7 3", "1"],
            "long_view": ["L-L", "-L", "-"],
            "is_like": ["--K", "K-", "-"],
        }
    )
    users = pd.DataFrame({"user_id": range(12), "user_active_degree": "full_active", "is_live_streamer": -124, "is_video_author": 1})
    users[["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]] = [5, 1, -1, 400]
    users[[f"onehot_feat{number}" for number in range(18)]] = [1.0] * 12 + [np.nan] * 6
    videos = pd.DataFrame({"video_id": range(20), "author_id": range(100, 120), "video_type": "NORMAL", "upload_dt": "2022-05-03"})
    videos = videos.assign(upload_type="Web", video_duration=12_000.0, music_id=1, music_type=[9.0, np.nan] * 10, tag=["20 43", None] * 10)
    for name, frame in (("impressions", log), ("past", past), ("users", users), ("videos", videos)):
        frame.to_csv(folder / f"kuairand_pure_{name}.csv.gz", index=False)
    return log, past, users, videos
