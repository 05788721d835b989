"""The files of KuaiRand: logs of each release, tables of users and videos, and lists of earlier impressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Feature, Id, Number
from keras_ranking.data.readers.log import require_columns
from keras_ranking.data.readers.tables import at_rows, choose_release, found_releases

LOGS = ("standard", "random", "both")
_PURE = "kuairand_pure_impressions.csv*"
_NAMED = {name: (f"log_*_{name}*.csv*", f"data/log_*_{name}*.csv*") for name in ("pure", "1k", "27k")}
_LAYOUTS = {"sample": ("kuairand_feedback.csv.gz",), **_NAMED, "pure": (_PURE, *_NAMED["pure"])}
_OTHER = {"other": ("log_standard*.csv*", "log_random*.csv*", "data/log_standard*.csv*", "data/log_random*.csv*")}
_ONE_HOT = tuple(f"onehot_feat{number}" for number in range(18) if number not in (3, 8))  # these two have hundreds of values
_USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER_CATEGORIES = ("user_active_degree", "is_live_streamer", "is_video_author", *_ONE_HOT)
_VIDEO_CATEGORIES = ("video_type", "upload_type", "music_type")
USER_FEATURES: tuple[Feature, ...] = (
    *(Category(name=name, buckets=256, known="context") for name in _USER_CATEGORIES),
    *(Number(name=name, transform="log1p_standardise", missing=0.0, known="context") for name in _USER_NUMBERS),
)
VIDEO_FEATURES: tuple[Feature, ...] = (
    Id(name="author_id", buckets=16384),
    *(Category(name=name, buckets=64) for name in _VIDEO_CATEGORIES),
    Category(name="tag", buckets=256),
    Number(name="upload_age_days", transform="log1p_standardise", missing=0.0),
)


def log_files(folder: str | Path, release: str | None, logs: str) -> tuple[str, list[Path], str]:
    """The release to read, its log files, and a note where the folder holds others.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: an unknown release, several and none chosen, or another word for `logs`.
    """
    if logs not in LOGS:
        raise ValueError(f"`logs` must be one of {', '.join(map(repr, LOGS))}. Received: logs={logs!r}")
    layouts = {**_LAYOUTS, **_OTHER}
    found = found_releases(folder, layouts, "KuaiRand log")
    if any(name in found for name in _NAMED):
        found.pop("other", None)
    chosen, note = choose_release(found, release, layouts, default="sample")
    first = found[chosen]
    if not first.name.startswith("log_"):
        if logs != "standard":
            raise ValueError(f"`logs` must be 'standard' for {first.name}, which has no random log. Received: logs={logs!r}")
        return chosen, [first], note
    ending = "*.csv*" if chosen == "other" else f"*_{chosen}*.csv*"
    wanted = ("standard", "random") if logs == "both" else (logs,)
    paths = [path for kind in wanted for path in sorted(first.parent.glob(f"log_{kind}{ending}"))]
    if not paths:
        raise FileNotFoundError(f"`folder` has no {logs} log: looked for log_{logs}{ending} in {str(first.parent)!r}.")
    return chosen, paths, note


def table_files(log: Path, release: str) -> dict[str, Path]:
    """The tables of users and videos beside a log; none for the sample and for files whose release is unknown."""
    if log.name.startswith("kuairand_pure"):
        patterns = {name: f"kuairand_pure_{name}.csv*" for name in ("users", "videos")}
    elif release in _NAMED:
        patterns = {"users": f"user_features_{release}.csv*", "videos": f"video_features_basic_{release}.csv*"}
    else:
        return {}
    found = {name: next(iter(sorted(log.parent.glob(pattern))), None) for name, pattern in patterns.items()}
    return {name: path for name, path in found.items() if path is not None}


def user_columns(path: Path, ids: pd.Series) -> pd.DataFrame:
    """The columns of `USER_FEATURES` of each row's member. A count below zero in the table is missing."""
    table = pd.read_csv(path)
    names = [feature.name for feature in USER_FEATURES]
    require_columns(table, ["user_id", *names], path)
    table[list(_USER_NUMBERS)] = table[list(_USER_NUMBERS)].where(table[list(_USER_NUMBERS)] >= 0)
    return at_rows(table, "user_id", ids)[names]


def video_columns(path: Path, ids: pd.Series, time: pd.Series) -> pd.DataFrame:
    """The columns of `VIDEO_FEATURES` of each row's video, and `video_seconds`, its length. `tag` is the first of its tags."""
    table = pd.read_csv(path, dtype={"tag": str})
    require_columns(table, ["video_id", "author_id", *_VIDEO_CATEGORIES, "upload_dt", "tag", "video_duration"], path)
    table["tag"] = table["tag"].str.split(r"[ ,]", regex=True).str[0]
    table["uploaded"] = (pd.to_datetime(table["upload_dt"]) - pd.Timestamp(0)) / pd.Timedelta(days=1)
    rows = at_rows(table, "video_id", ids)
    # The release states the day alone; an impression of that day has age 0.
    rows["upload_age_days"] = np.maximum(time / 86_400 - rows["uploaded"], 0.0)
    rows["video_seconds"] = rows["video_duration"] / 1000
    return rows[[*(feature.name for feature in VIDEO_FEATURES), "video_seconds"]]


def past_rows(path: Path, members: pd.Series, notes: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """The lists of earlier impressions as rows with split "history", and the number of earlier impressions of each member.

    The lists have an order and the time of the last one; the rows get times one second apart that end there.
    """
    lists = pd.read_csv(path, dtype={"video_ids": str, "long_view": str, "is_like": str})
    require_columns(lists, ("user_id", "past_events", "last_time_ms", "video_ids", "long_view", "is_like"), path)
    known = lists["user_id"].isin(members)
    if not known.all():
        notes.append(f"{int((~known).sum()):,} members of {path.name} have no impression and are left out")
    lists = lists[known]
    videos = lists["video_ids"].fillna("").str.split()
    size = np.array([len(listed) for listed in videos], dtype=np.int64)
    for name in ("long_view", "is_like"):
        if (wrong := lists[name].fillna("").str.len().to_numpy() != size).any():
            row = lists[wrong].iloc[0]
            raise ValueError(
                f"column '{name}' of {path.name} must have one mark per video. Received: user_id {row['user_id']}: {row[name]!r}"
            )
    place = np.repeat(np.arange(len(lists)), size)
    back = np.repeat(np.cumsum(size), size) - np.arange(1, size.sum() + 1)  # 0 for the last of each list
    rows = pd.DataFrame(
        {
            "user_id": lists["user_id"].to_numpy()[place],
            "video_id": np.array([int(video) for listed in videos for video in listed], dtype=np.int64),
            "time": lists["last_time_ms"].to_numpy()[place] // 1000 - back,
            "long_view": np.array(list("".join(lists["long_view"].fillna("")))) == "L",
            "is_like": np.array(list("".join(lists["is_like"].fillna("")))) == "K",
            "request_id": -1 - np.arange(len(place)),
        }
    )
    rows = rows.astype({"long_view": np.float64, "is_like": np.float64})
    notes.append(
        f"{len(rows):,} earlier impressions are 'history'; their times are made up, one second apart and ending at the member's "
        "last_time_ms, and only their long_view and is_like are known"
    )
    return rows, lists.set_index("user_id")["past_events"]
