"""MovieLens: ratings of films as a log (Harper and Konstan, TiiS 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Feature, Id, Number, Task, Vector
from keras_ranking.data.readers.log import Log
from keras_ranking.data.readers.tables import at_rows, choose_release, earlier_counts, found_releases, read_table
from keras_ranking.schema import Schema

_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
_RENAMED = {"userId": "user_id", "movieId": "item_id", "title": "movie_title"}
EPOCH = 788_918_400  # 1995-01-01 00:00:00 UTC: the ratings are older than the schema's usual epoch
_LAYOUTS = {
    "100k": ("ml100k_ratings.csv.gz", "u.data", "ml-*/u.data"),
    "1m": ("ml1m_ratings.csv*", "ratings.dat*", "ml-*/ratings.dat*"),
    "latest": ("ratings.csv*", "ml-*/ratings.csv*"),
}
_TABLES: dict[str, dict[str, tuple[str, ...]]] = {  # of users and of films, beside the ratings
    "1m": {"users": ("ml1m_users.csv*", "users.dat*"), "items": ("ml1m_items.csv*", "movies.dat*")},
    "latest": {"users": (), "items": ("movies.csv*",)},
}
_AGES = ("1", "18", "25", "35", "45", "50", "56")  # codes of the release: the youngest age of each group
GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror"),
    *("IMAX", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def movielens_schema(buckets: int = 8192, users: bool = False, items: bool = False, feedback: int = 60) -> Schema:
    """The schema of `read_movielens`, with the columns of the tables of users and of films where the folder has them."""
    of_users: list[Feature] = [
        Category(name="gender", vocabulary=("F", "M"), known="context"),
        Category(name="age", vocabulary=_AGES, known="context"),
        Category(name="occupation", vocabulary=tuple(map(str, range(21))), known="context"),
    ]
    of_items: list[Feature] = [
        Vector(name="genres", size=len(GENRES)),
        Number(name="release_year", transform="standardise", missing=1995.0),
    ]
    return Schema(
        member="user_id",
        time="time",
        request="request_id",
        features=(
            Id(name="item_id", buckets=buckets),
            *(of_items if items else ()),
            *(Number(name=name, transform="standardise", known="context") for name in ("user_like_rate", "item_like_rate")),
            *(Number(name=name, transform="log1p_standardise", known="context") for name in ("user_ratings", "item_ratings")),
            *(of_users if users else ()),
        ),
        actions=(Number(name="rating", transform="standardise"),),
        tasks=(Task(name="liked"),),
        epoch=EPOCH,
        feedback_delay=feedback,
    )


def read_movielens(folder: str | Path, delay: int = 1, validation_share: float = 0.2, release: str | None = None) -> Log:
    """Read MovieLens: one row per rating, task `liked` (rating >= 4), the rating itself as an action.

    | release | files |
    |---|---|
    | `100k` | `ml100k_ratings.csv.gz`, or `u.data` |
    | `1m` (and 10M) | `ratings.dat`, with `users.dat` and `movies.dat`; or `ml1m_ratings.csv.gz`, with `ml1m_users` and `ml1m_items` |
    | `latest` (and 20M and later) | `ratings.csv`; with it `movies.csv` |

    All may be gzip, in the folder or in its `ml-*`, with or without a line of column names. Where the folder holds several, `100k` is
    read if it is one of them, and `log.notes` says so; else `release` must choose.

    Ratings do not belong to a list that was shown, so every row is its own request, and metrics over requests are meaningless. Many
    ratings of a member have the same second; no model and no count sees another rating of its second. The features are counts over
    earlier rows: how often the member and the film were rated, and the smoothed share of likes, (likes + 10) / (ratings + 20). With the
    tables of `1m` and `latest` also `genres` (a vector of 0 and 1), `release_year` (for `latest` the year in the title; 1995 where there
    is none), and `gender`, `age` and `occupation`.

    Args:
        folder: where the files are.
        delay: seconds after which a rating is counted, at least 1; also the schema's `feedback_delay`, which is 60 for `100k`.
        validation_share: the last rows by time, this share of all, are "validation"; rows of one second stay together.
        release: '100k', '1m' or 'latest'.

    Returns:
        `Log` with the name "movielens".

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a missing column, a share outside (0, 1), several releases and none chosen, or a genre that MovieLens does not have.

    Example:
        >>> rows = [(1, 10, 5, 800_000_000), (2, 10, 3, 800_000_100), (1, 11, 2, 800_000_200)]
        >>> pd.DataFrame(rows).to_csv("u.data", sep="\\t", header=False, index=False)
        >>> log = kr.data.read_movielens(".")
        >>> log.events[["item_id", "liked", "item_ratings"]].values.tolist()
        [[10.0, 1.0, 0.0], [10.0, 0.0, 1.0], [11.0, 0.0, 0.0]]
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` must be between 0 and 1. Received: validation_share={validation_share}")
    found = found_releases(folder, _LAYOUTS, "MovieLens ratings")
    chosen, others = choose_release(found, release, _LAYOUTS, default="100k")
    events = read_table(found[chosen], _COLUMNS, _RENAMED).rename(columns={"timestamp": "time"})
    events = events.sort_values(["time", "user_id"], kind="stable", ignore_index=True)
    events["request_id"] = np.arange(len(events))
    events["liked"] = (events["rating"] >= 4).astype(np.int8)
    counts = earlier_counts(events, {"user_id": "user", "item_id": "item"}, "ratings", {"liked": "like_rate"}, delay)
    events = pd.concat([events, counts], axis=1)
    edge = events["time"].to_numpy()[min(int(len(events) * (1 - validation_share)), len(events) - 1)]
    events["split"] = np.where(events["time"] >= edge, "validation", "train")
    notes = ["every rating is its own request"]
    tables = {}
    for name, patterns in _TABLES.get(chosen, {}).items():
        paths = [path for pattern in patterns for path in sorted(found[chosen].parent.glob(pattern))]
        if paths:
            tables[name] = paths[0]
        elif patterns:
            notes.append(f"no table of {name} ({' or '.join(patterns)}) beside {found[chosen].name}: the log has no columns of {name}")
    parts = []
    if "users" in tables:
        parts.append(_of_users(tables["users"], events["user_id"], notes))
    if "items" in tables:
        parts.append(_of_items(tables["items"], events["item_id"], notes))
    notes += [others] if others else []
    of_tables = {"users": "users" in tables, "items": "items" in tables}
    feedback = 60 if chosen == "100k" else delay
    schema = movielens_schema(131_072 if chosen == "latest" else 8192, **of_tables, feedback=feedback)
    return Log(events=pd.concat([events, *parts], axis=1), schema=schema, name="movielens", notes=tuple(notes))


def _of_users(path: Path, ids: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Gender, age and occupation of each row's member."""
    names = ["user_id", "gender", "age", "occupation", "zip_code"]
    table = read_table(path, names, {"userId": "user_id"}, dtype=dict.fromkeys(names[1:], str))
    if absent := int((~ids.isin(table["user_id"])).sum()):
        notes.append(f"{absent:,} ratings are of members who are not in {path.name}")
    return at_rows(table, "user_id", ids)[["gender", "age", "occupation"]]


def _of_items(path: Path, ids: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Title, genres and year of each row's film."""
    options: dict[str, Any] = {"encoding": "latin-1"} if ".dat" in path.name else {"dtype": {"movie_title": str, "genres": str}}
    if path.name.startswith("ml1m_items"):
        table = read_table(path, ["item_id", "movie_title", "release_year", "genres"], **options)
    else:
        table = read_table(path, ["item_id", "movie_title", "genres"], _RENAMED, **options)
        table["release_year"] = pd.to_numeric(table["movie_title"].str.extract(r"\((\d{4})\)\s*$")[0])
    table["genres"] = pd.Series(_multi_hot(table["genres"], path), index=table.index, dtype=object)
    rows = at_rows(table, "item_id", ids)
    if absent := int((~ids.isin(table["item_id"])).sum()):
        notes.append(f"{absent:,} ratings are of films that are not in {path.name}: without genres")
        none = np.zeros(len(GENRES), dtype=np.float32)
        rows["genres"] = rows["genres"].map(lambda value: value if isinstance(value, np.ndarray) else none)
    if unknown := int(rows["release_year"].isna().sum()):
        notes.append(f"{unknown:,} ratings are of films without a year")
    return rows[["movie_title", "release_year", "genres"]]


def _multi_hot(genres: pd.Series, path: Path) -> list[np.ndarray]:
    """A vector of 0 and 1 of each text of genres, separated by `|`, or by spaces."""
    places = {genre: place for place, genre in enumerate(GENRES)} | {"Children": GENRES.index("Children's")}
    out = []
    for text in genres.fillna(""):
        vector = np.zeros(len(GENRES), dtype=np.float32)
        for genre in [] if text == "(no genres listed)" else text.replace("|", " ").split():
            if genre not in places:
                raise ValueError(f"column 'genres' of {path.name} must hold genres of MovieLens, {', '.join(GENRES)}. Received: {genre!r}")
            vector[places[genre]] = 1.0
        out.append(vector)
    return out
