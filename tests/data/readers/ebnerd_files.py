"""Small files in the layout of EB-NeRD, for the tests of its reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.data.readers import Log

T0 = int(pd.Timestamp("2023-05-18 07:00:00").timestamp())
DAY = 86400


def words(values) -> str:
    return " ".join(str(value) for value in values)


def stamp(seconds, letter: str = " ") -> str:
    return pd.Timestamp(int(seconds), unit="s").strftime(f"%Y-%m-%d{letter}%H:%M:%S")


def small_ebnerd(seed: int = 0, lists: int = 160, members: int = 9) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A log in the layout of EB-NeRD, small enough to count by hand, with the special cases of the real one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, time in enumerate(np.sort(rng.integers(T0, T0 + 4 * DAY, size=lists))):
        shown = rng.choice(30, size=rng.integers(5, 9), replace=False) + 900
        clicked = shown[: 2 if number % 20 == 7 else 1]
        listed = [*clicked, clicked[0]] if number % 20 == 9 else clicked  # the real log has some repeated clicks
        rows.append(
            {
                "split": "train" if time < T0 + 2 * DAY else "validation",
                "impression_id": 5000 + number,
                "article_id": np.nan if rng.random() < 0.7 else 900.0,
                "impression_time": stamp(time),
                "read_time": float(rng.choice([5, 30, 100, 400, 900])),
                "device_type": rng.integers(1, 4),
                "article_ids_inview": words(rng.permutation(shown)),
                "article_ids_clicked": words(listed),
                "user_id": rng.integers(0, members),
                "is_sso_user": 0,
                "is_subscriber": rng.integers(0, 2),
                "session_id": number // 2,
                "next_read_time": np.nan if number % 10 == 3 else float(rng.integers(0, 200)),
                "next_scroll_percentage": float(rng.integers(0, 101)),
            }
        )
    behaviors = pd.DataFrame(rows)
    histories = []
    clicks = {member: np.sort(rng.integers(T0 - 5 * DAY, T0, size=rng.integers(1, 8))) for member in range(members)}
    for split, member in [("train", member) for member in range(6)] + [("validation", member) for member in range(3, members)]:
        opened_before = [(time, 900 + int(time) % 30) for time in clicks[member]]
        if split == "validation":
            mine = behaviors[(behaviors["user_id"] == member) & (behaviors["split"] == "train")]
            opened = zip(pd.to_datetime(mine["impression_time"]), mine["article_ids_clicked"])
            opened_before += [(int(time.timestamp()) + 30, int(clicked.split()[0])) for time, clicked in opened]
            opened_before += [(T0 + DAY + 60 * member, 950)]  # a click without an impression in the log
        opened_before.sort()
        histories.append(
            {
                "split": split,
                "user_id": member,
                "impression_time_fixed": words(stamp(time, "T") for time, _ in opened_before),
                "scroll_percentage_fixed": words("nan" if index % 4 == 0 else 50 for index in range(len(opened_before))),
                "article_id_fixed": words(article for _, article in opened_before),
                "read_time_fixed": words(index * 7 for index in range(len(opened_before))),
            }
        )
    return behaviors, pd.DataFrame(histories)


def write(folder: Path, behaviors: pd.DataFrame, history: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    behaviors.to_csv(folder / "ebnerd_behaviors.csv.gz", index=False)
    history.to_csv(folder / "ebnerd_history.csv.gz", index=False)
    return folder


def features(log: Log) -> list[str]:
    return [feature.name for feature in log.schema.features]


def shown_rows(log: Log) -> pd.DataFrame:
    return log.events[log.events["split"] != "history"].set_index(["request", "article_id"], drop=False).sort_index()
