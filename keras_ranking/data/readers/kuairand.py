"""KuaiRand: short videos, many actions and the time watched (Gao et al., CIKM 2022, doi:10.1145/3511808.3557624)."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Id, Number, Task
from keras_ranking.data.readers.cuts import cut_by_time
from keras_ranking.data.readers.kuairand_tables import (
    USER_FEATURES,
    VIDEO_FEATURES,
    log_files,
    past_rows,
    table_files,
    user_columns,
    video_columns,
)
from keras_ranking.data.readers.log import HISTORY, Log, require_columns
from keras_ranking.data.readers.tables import earlier_counts
from keras_ranking.schema import Schema

_COLUMNS = ("user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "is_click", "long_view")
_OPTIONAL_ACTIONS = ("is_like", "is_hate", "is_follow", "is_comment", "is_forward", "is_profile_enter")
_CHINA = 8 * 3600  # `date` and `hourmin` are China time
VALIDATION_FROM = {"pure": 20_220_505}
_USUAL = 20_220_418
_UNKNOWN = {"is_click": 0.45, "play_seconds": 5.0}  # of earlier impressions: share of clicks and median of the time watched


def kuairand_schema(
    actions: tuple[str, ...], feedback: int = 120, tables: tuple[str, ...] = (), tab: bool = False, past: bool = False
) -> Schema:
    """The schema of `read_kuairand`.

    Args:
        actions: those of the optional 0/1 columns that the log has.
        feedback: the `feedback_delay`.
        tables: "users" and "videos", where the folder has these tables.
        tab: whether the log has the column `tab`.
        past: whether it has earlier impressions, of which some actions are unknown.
    """
    rates = ("user_click_rate", "user_long_view_rate", "video_click_rate", "video_long_view_rate")
    missing = {name: _UNKNOWN.get(name, 0.0) if past else None for name in ("is_click", "play_seconds", *actions)}
    return Schema(
        member="user_id",
        time="time",
        request="request_id",
        features=(
            Id(name="video_id", buckets=32768),
            Number(name="duration_seconds", transform="log1p_standardise", missing=0.0),
            *(VIDEO_FEATURES if "videos" in tables else ()),
            *(Number(name=name, transform="standardise", known="context") for name in rates),
            *(Number(name=name, transform="log1p_standardise", known="context") for name in ("user_views", "video_views")),
            *((Number(name="past_events", transform="log1p_standardise", missing=0.0, known="context"),) if past else ()),
            Number(name="hour", transform="standardise", known="context"),
            *((Category(name="tab", vocabulary=tuple(map(str, range(15))), known="context"),) if tab else ()),
            *(USER_FEATURES if "users" in tables else ()),
        ),
        actions=(
            Number(name="is_click", missing=missing["is_click"]),
            Number(name="long_view"),
            Number(name="play_seconds", transform="log1p_standardise", missing=missing["play_seconds"]),
            *(Number(name=name, missing=missing[name]) for name in actions),
        ),
        tasks=(Task(name="is_click", missing="unknown" if past else "error"), Task(name="long_view")),
        feedback_delay=feedback,
    )


def read_kuairand(
    folder: str | Path,
    delay: int = 1,
    feedback: int = 120,
    validation_from: int | None = None,
    train_share: float | None = None,
    split_at: date | datetime | int | None = None,
    release: str | None = None,
    logs: str = "standard",
) -> Log:
    """Read KuaiRand: one row per video shown, tasks `is_click` and `long_view`, all actions and the time watched.

    | release | files, in the folder or its `data/` |
    |---|---|
    | `sample` | `kuairand_feedback.csv.gz` |
    | `pure`, `1k`, `27k` | `log_standard*_1k.csv`, `log_random*_1k.csv`, with `user_features_1k.csv`, `video_features_basic_1k.csv` |
    | `pure` | or `kuairand_pure_impressions.csv.gz`, with `_past`, `_users` and `_videos` |
    | `other` | any `log_standard*.csv` |

    Where the folder holds several, `sample` is read if it is one of them, and `log.notes` says so; else `release` must choose.

    `is_click` and `long_view` follow from the time watched, so `play_seconds` is an action: an input of later events only. It
    is the time watched within `feedback` seconds of the start, which later requests can know.
    The log has no request id; videos of one user at one millisecond (`time_ms`) are taken as one request. Videos
    of unknown duration have a duration of 0 in the release and here. Rows that repeat user, video and millisecond of another
    row are left out, and `Log.notes` says how many. The features are counts over earlier rows: views and smoothed rates of the user
    and of the video, (actions + 10) / (views + 20); with the tables also what describes the user (activity, followers, ...) and the
    video (author, type, first tag, days since the upload).

    Earlier impressions (`kuairand_pure_past.csv.gz`, up to 50 a member) are rows with split "history". The file has their order and the
    time of the last; they get times one second apart that end there. Views and the rate of long views count them; whether they were
    clicked is unknown. `past_events` is how many a member had.

    Args:
        folder: where the files are.
        delay: seconds after which feedback is counted, at least 1.
        feedback: seconds after the start at which the row's actions are taken; the schema's `feedback_delay`. Our choice: 120.
        validation_from: date (yyyymmdd, China time) from which on rows are "validation"; earlier ones are "train". None: 20220505 for
            `pure`, 20220418 for the others.
        train_share: instead of a date: the first rows by time, this share of the requests, are "train".
        split_at: instead of `validation_from`, a date (China time), a datetime (without a zone: China time) or Unix seconds.
        release: see the table.
        logs: of a release: 'standard', 'random' (videos inserted at random) or 'both'.

    Returns:
        `Log` with the name "kuairand".

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a missing column, several releases and none chosen, or more than one way to split.

    Example:
        >>> columns = ["user_id", "video_id", "date", "time_ms", "play_time_ms", "duration_ms", "is_click", "long_view"]
        >>> rows = [(7, 1, 20220417, 1650200000000, 9000, 20000, 1, 0), (7, 2, 20220418, 1650290000000, 500, 8000, 0, 0)]
        >>> pd.DataFrame(rows, columns=columns).to_csv("log_standard_1.csv", index=False)
        >>> log = kr.data.read_kuairand(".")
        >>> log.events[["split", "play_seconds", "user_views"]].values.tolist()
        [['train', 9.0, 0.0], ['validation', 0.5, 1.0]]
    """
    ways = {"validation_from": validation_from, "train_share": train_share, "split_at": split_at}
    given = {name: value for name, value in ways.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"one of `validation_from`, `train_share` and `split_at` must say where to split. Received: {given}")
    if train_share is not None and not 0 < train_share < 1:
        raise ValueError(f"`train_share` must lie strictly between 0 and 1. Received: train_share={train_share}")
    chosen, paths, others = log_files(folder, release, logs)
    notes = ["the log has no request id: videos of one user and millisecond are one request"]
    events = _impressions(paths, feedback, notes)
    actions = tuple(name for name in _OPTIONAL_ACTIONS if name in events.columns)
    past_at = sorted(paths[0].parent.glob("kuairand_pure_past.csv*")) if paths[0].name.startswith("kuairand_pure") else []
    before = None
    if past_at:
        rows, before = past_rows(past_at[0], events["user_id"], notes)
        events = pd.concat([rows.assign(split=HISTORY), events], ignore_index=True)
        events = events.sort_values(["time", "user_id"], kind="stable", ignore_index=True)
        events["past_events"] = events["user_id"].map(before)
        events["hour"] = _hour(events["time"])
    tables = table_files(paths[0], chosen)
    if "users" in tables:
        events = pd.concat([events, user_columns(tables["users"], events["user_id"])], axis=1)
    if "videos" in tables:
        of_videos = video_columns(tables["videos"], events["video_id"], events["time"])
        events["duration_seconds"] = events["duration_seconds"].fillna(of_videos["video_seconds"])
        events = pd.concat([events, of_videos.drop(columns="video_seconds")], axis=1)
    shown = (events["split"] != HISTORY).to_numpy()
    keys = {"user_id": "user", "video_id": "video"}
    clicks = earlier_counts(events, keys, "impressions", {"is_click": "click_rate"}, delay, counted=shown)
    counts = earlier_counts(events, keys, "views", {"long_view": "long_view_rate"}, delay)
    both = pd.concat([clicks, counts], axis=1)
    order = [f"{key}_{what}" for key in keys.values() for what in ("views", "click_rate", "long_view_rate")]
    events = pd.concat([events, both[order]], axis=1)
    notes += [others] if others else []
    events["split"] = events.pop("split")
    schema = kuairand_schema(actions, feedback, tuple(tables), "tab" in events.columns, bool(past_at))
    if train_share is not None:
        split, note = cut_by_time(events[shown], schema, train_share)
        events.loc[shown, "split"] = split
        notes.append(note)
        return Log(events=events, schema=schema, name="kuairand", notes=tuple(notes))
    if split_at is not None:
        later = events["time"] >= _seconds(split_at)
        begin = str(split_at)
    else:
        day = VALIDATION_FROM.get(chosen, _USUAL) if validation_from is None else validation_from
        later, begin = _dates(events) >= day, str(day)
    events.loc[shown, "split"] = np.where(later[shown], "validation", "train")
    if not (events["split"] == "train").any():
        first = _dates(events)[shown].min()
        notes.append(
            f"no row is 'train': dates begin on {first}, and validation on {begin}. Earlier rows are in the file "
            f"log_standard_4_08_to_4_21*.csv of the release; the folder has {', '.join(path.name for path in paths)}"
        )
    return Log(events=events, schema=schema, name="kuairand", notes=tuple(notes))


def _impressions(paths: list[Path], feedback: int, notes: list[str]) -> pd.DataFrame:
    """The rows of the logs in order of time, each video of a user and millisecond once."""
    frames = []
    for path in paths:
        frame = pd.read_csv(path)
        require_columns(frame, _COLUMNS, path)
        frames.append(frame)
    events = pd.concat(frames, ignore_index=True)
    repeated = events.duplicated(["user_id", "video_id", "time_ms"]).to_numpy()
    if repeated.any():
        notes.append(f"{int(repeated.sum())} rows that repeat another's user, video and millisecond are left out")
        events = events[~repeated]
    events = events.sort_values(["time_ms", "user_id"], kind="stable", ignore_index=True)
    events["time"] = events["time_ms"].astype(np.int64) // 1000
    events["hour"] = _hour(events["time"])
    events["request_id"] = pd.factorize(pd.MultiIndex.from_frame(events[["user_id", "time_ms"]]))[0]
    played = events["play_time_ms"] / 1000
    events["play_seconds"] = np.minimum(played, feedback)
    if (played > feedback).any():
        notes.append(
            f"{int((played > feedback).sum())} videos were watched for more than {feedback} seconds; their `play_seconds` is {feedback}"
        )
    events["duration_seconds"] = events["duration_ms"] / 1000
    return events.assign(split="train")


def _hour(time: pd.Series) -> pd.Series:
    return ((time + _CHINA) // 3600 % 24).astype(np.float64)


def _dates(events: pd.DataFrame) -> pd.Series:
    """The day in China of each row, yyyymmdd: the log's own column, where it has one."""
    stamps = pd.to_datetime(events["time"] + _CHINA, unit="s")
    days = stamps.dt.year * 10_000 + stamps.dt.month * 100 + stamps.dt.day
    return events["date"].fillna(days).astype(np.int64) if "date" in events.columns else days


def _seconds(moment: Any) -> int:
    """Unix seconds of a date or datetime in China, of a datetime with a zone, or of seconds."""
    if isinstance(moment, int | np.integer) and not isinstance(moment, bool):
        return int(moment)
    if not isinstance(moment, date):
        raise ValueError(f"`split_at` must be a date, a datetime or Unix seconds. Received: split_at={moment!r}")
    stamp = pd.Timestamp(moment)
    if stamp.tzinfo is not None:
        return int(np.ceil(stamp.timestamp()))
    return int(np.ceil(stamp.tz_localize("UTC").timestamp())) - _CHINA
