"""KuaiRand: short videos, many actions and the time watched (Gao et al., CIKM 2022, doi:10.1145/3511808.3557624)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.columns import Id, Number, Task
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.readers.log import Log, find_file, require_columns
from keras_ranking.schema import Schema

_COLUMNS = ("user_id", "video_id", "date", "time_ms", "play_time_ms", "duration_ms", "is_click", "long_view")
_OPTIONAL_ACTIONS = ("is_like", "is_hate", "is_follow", "is_comment", "is_forward", "is_profile_enter")
_CHINA = 8 * 3600  # `date` and `hourmin` are China time
VALIDATION_FROM = 20_220_418


def _files(folder: str | Path) -> list[Path]:
    """The gzip CSV extract, or every `log_standard*.csv` of the release (its `log_random*.csv` is another experiment)."""
    root = Path(folder).expanduser()
    first = find_file(root, ["kuairand_feedback.csv.gz", "log_standard*.csv*", "data/log_standard*.csv*"], "KuaiRand log")
    return sorted(first.parent.glob("log_standard*.csv*")) if first.name.startswith("log_standard") else [first]


def kuairand_schema(actions: tuple[str, ...], feedback: int = 120) -> Schema:
    """The schema of `read_kuairand`; `actions` are those of the optional 0/1 columns that the log has."""
    rates = ("user_click_rate", "user_long_view_rate", "video_click_rate", "video_long_view_rate")
    return Schema(
        member="user_id",
        time="time",
        request="request_id",
        features=(
            Id(name="video_id", buckets=32768),
            Number(name="duration_seconds", transform="log1p_standardise", missing=0.0),
            *(Number(name=name, transform="standardise", known="context") for name in rates),
            *(Number(name=name, transform="log1p_standardise", known="context") for name in ("user_views", "video_views")),
            Number(name="hour", transform="standardise", known="context"),
        ),
        actions=(
            Number(name="is_click"),
            Number(name="long_view"),
            Number(name="play_seconds", transform="log1p_standardise"),
            *(Number(name=name) for name in actions),
        ),
        tasks=(Task(name="is_click"), Task(name="long_view")),
        feedback_delay=feedback,
    )


def read_kuairand(folder: str | Path, delay: int = 1, feedback: int = 120, validation_from: int = VALIDATION_FROM) -> Log:
    """Read KuaiRand: one row per video shown, tasks `is_click` and `long_view`, all actions and the time watched.

    Reads `kuairand_feedback.csv.gz`, or every `log_standard*.csv` of the release (in the folder itself or its `data/`).

    `is_click` and `long_view` follow from the time watched, so `play_seconds` is an action: an input of later events only. It
    is the time watched within `feedback` seconds of the start, which later requests can know.
    The log has no request id; videos of one user at one millisecond (`time_ms`) are taken as one request. Videos
    of unknown duration have a duration of 0 in the release and here. Rows that repeat user, video and millisecond of another
    row are left out, and `Log.notes` says how many. The features are counts over earlier rows: views and smoothed rates of the user
    and of the video, (actions + 10) / (views + 20).

    Args:
        folder: where the files are.
        delay: seconds after which feedback is counted, at least 1.
        feedback: seconds after the start at which the row's actions are taken; the schema's `feedback_delay`. Our choice: 120.
        validation_from: date (yyyymmdd, China time) from which on rows are "validation"; earlier ones are "train".

    Returns:
        `Log` with the name "kuairand".

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a missing column.

    Example:
        >>> columns = ["user_id", "video_id", "date", "time_ms", "play_time_ms", "duration_ms", "is_click", "long_view"]
        >>> rows = [(7, 1, 20220417, 1650200000000, 9000, 20000, 1, 0), (7, 2, 20220418, 1650290000000, 500, 8000, 0, 0)]
        >>> pd.DataFrame(rows, columns=columns).to_csv("log_standard_1.csv", index=False)
        >>> log = kr.data.read_kuairand(".")
        >>> log.events[["split", "play_seconds", "user_views"]].values.tolist()
        [['train', 9.0, 0.0], ['validation', 0.5, 1.0]]
    """
    frames = []
    paths = _files(folder)
    for path in paths:
        frame = pd.read_csv(path)
        require_columns(frame, _COLUMNS, path)
        frames.append(frame)
    events = pd.concat(frames, ignore_index=True)
    notes = ["the log has no request id: videos of one user and millisecond are one request"]
    repeated = events.duplicated(["user_id", "video_id", "time_ms"]).to_numpy()
    if repeated.any():
        notes.append(f"{int(repeated.sum())} rows that repeat another's user, video and millisecond are left out")
        events = events[~repeated]
    events = events.sort_values(["time_ms", "user_id"], kind="stable", ignore_index=True)
    actions = tuple(name for name in _OPTIONAL_ACTIONS if name in events.columns)
    events["time"] = events["time_ms"].astype(np.int64) // 1000
    events["hour"] = ((events["time"] + _CHINA) // 3600 % 24).astype(np.float64)
    events["request_id"] = pd.factorize(pd.MultiIndex.from_frame(events[["user_id", "time_ms"]]))[0]
    played = events["play_time_ms"] / 1000
    events["play_seconds"] = np.minimum(played, feedback)
    if (played > feedback).any():
        notes.append(
            f"{int((played > feedback).sum())} videos were watched for more than {feedback} seconds; their `play_seconds` is {feedback}"
        )
    events["duration_seconds"] = events["duration_ms"] / 1000
    counts = point_in_time_counts(events, ["user_id", "video_id"], [None], ["is_click", "long_view"], delay=delay, prior=(10.0, 20.0))
    for key, name in (("user_id", "user"), ("video_id", "video")):
        events[f"{name}_views"] = counts[f"{key}_views_all"].astype(np.float64)
        events[f"{name}_click_rate"] = counts[f"{key}_is_click_rate_all"]
        events[f"{name}_long_view_rate"] = counts[f"{key}_long_view_rate_all"]
    events["split"] = np.where(events["date"] >= validation_from, "validation", "train")
    if (events["split"] == "validation").all():
        notes.append(
            f"no row is 'train': dates begin on {events['date'].min()}, and validation on {validation_from}. Earlier rows are in the file "
            f"log_standard_4_08_to_4_21*.csv of the release; the folder has {', '.join(path.name for path in paths)}"
        )
    return Log(events=events, schema=kuairand_schema(actions, feedback), name="kuairand", notes=tuple(notes))
