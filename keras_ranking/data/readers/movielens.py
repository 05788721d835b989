"""MovieLens: ratings of films as a log (Harper and Konstan, TiiS 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.columns import Id, Number, Task
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.readers.log import Log, find_file, require_columns
from keras_ranking.schema import Schema

_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
EPOCH = 788_918_400  # 1995-01-01 00:00:00 UTC: the ratings are older than the schema's usual epoch
_LAYOUTS = ("ml100k_ratings.csv.gz", "ratings.csv*", "ratings.dat", "u.data", "ml-*/ratings.csv*", "ml-*/ratings.dat", "ml-*/u.data")


def _read(path: Path) -> pd.DataFrame:
    if path.name == "u.data":
        frame = pd.read_csv(path, sep="\t", names=_COLUMNS)
    elif path.name == "ratings.dat":
        frame = pd.read_csv(path, sep="::", names=_COLUMNS, engine="python")
    else:
        frame = pd.read_csv(path).rename(columns={"userId": "user_id", "movieId": "item_id"})
    require_columns(frame, _COLUMNS, path)
    return frame[_COLUMNS]


def movielens_schema() -> Schema:
    """The schema of `read_movielens`."""
    return Schema(
        member="user_id",
        time="time",
        request="request_id",
        features=(
            Id(name="item_id", buckets=8192),
            *(Number(name=name, transform="standardise", known="context") for name in ("user_like_rate", "item_like_rate")),
            *(Number(name=name, transform="log1p_standardise", known="context") for name in ("user_ratings", "item_ratings")),
        ),
        actions=(Number(name="rating", transform="standardise"),),
        tasks=(Task(name="liked"),),
        epoch=EPOCH,
    )


def read_movielens(folder: str | Path, delay: int = 1, validation_share: float = 0.2) -> Log:
    """Read MovieLens: one row per rating, task `liked` (rating >= 4), the rating itself as an action.

    Reads `ml100k_ratings.csv.gz`, or the releases' `u.data` (100K), `ratings.dat` (1M, 10M), `ratings.csv` (20M and later).

    Ratings do not belong to a list that was shown, so every row is its own request, and metrics over requests are meaningless. Many
    ratings of a member have the same second. The features are counts over earlier rows: how often the member and the
    film were rated, and the smoothed share of likes, (likes + 10) / (ratings + 20).

    Args:
        folder: where the files are.
        delay: seconds after which a rating is counted, at least 1.
        validation_share: the last rows by time, this share of all, are "validation"; rows of one second stay together.

    Returns:
        `Log` with the name "movielens".

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a missing column, or a share outside (0, 1).

    Example:
        >>> rows = [(1, 10, 5, 800_000_000), (2, 10, 3, 800_000_100), (1, 11, 2, 800_000_200)]
        >>> pd.DataFrame(rows).to_csv("u.data", sep="\\t", header=False, index=False)
        >>> log = kr.data.read_movielens(".")
        >>> log.events[["item_id", "liked", "item_ratings"]].values.tolist()
        [[10.0, 1.0, 0.0], [10.0, 0.0, 1.0], [11.0, 0.0, 0.0]]
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` must be between 0 and 1. Received: validation_share={validation_share}")
    events = _read(find_file(folder, _LAYOUTS, "MovieLens ratings")).rename(columns={"timestamp": "time"})
    events = events.sort_values(["time", "user_id"], kind="stable", ignore_index=True)
    events["request_id"] = np.arange(len(events))
    events["liked"] = (events["rating"] >= 4).astype(np.int8)
    counts = point_in_time_counts(events, ["user_id", "item_id"], [None], ["liked"], delay=delay, prior=(10.0, 20.0))
    for key, name in (("user_id", "user"), ("item_id", "item")):
        events[f"{name}_ratings"] = counts[f"{key}_views_all"].astype(np.float64)
        events[f"{name}_like_rate"] = counts[f"{key}_liked_rate_all"]
    edge = events["time"].to_numpy()[min(int(len(events) * (1 - validation_share)), len(events) - 1)]
    events["split"] = np.where(events["time"] >= edge, "validation", "train")
    notes = ("every rating is its own request",)
    return Log(events=events, schema=movielens_schema(), name="movielens", notes=notes)
