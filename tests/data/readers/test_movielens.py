"""Reader of MovieLens."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.readers import read_movielens
from keras_ranking.data.requests import requests
from keras_ranking.data.sequences import build_sequences


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = 100
    return pd.DataFrame(
        {
            "user_id": rng.integers(1, 8, rows),
            "item_id": rng.integers(1, 30, rows),
            "rating": rng.integers(1, 6, rows),
            "timestamp": 874_965_478 + rng.integers(0, 40, rows) * 1000,
        }
    )


USERS = pd.DataFrame(
    {"user_id": range(1, 8), "gender": list("FMFMFMF"), "age": [1, 18, 25, 35, 45, 50, 56], "occupation": range(7), "zip_code": "02139-12"}
)
ITEMS = pd.DataFrame(
    {
        "item_id": range(1, 30),
        "movie_title": [f"Film: a story {number}, The" for number in range(1, 30)],
        "release_year": range(1970, 1999),
        "genres": ["Animation Children's Comedy", "Drama", "Film-Noir Sci-Fi"] * 9 + ["War", "IMAX"],
    }
)


def _text(frame: pd.DataFrame) -> str:
    return "\n".join("::".join(map(str, row)) for row in frame.to_numpy()) + "\n"


def test_movielens_all_layouts(ratings, tmp_path):
    named = ["userId", "movieId", "rating", "timestamp"]
    layouts = {
        "sample": lambda folder: ratings.to_csv(folder / "ml100k_ratings.csv.gz", index=False),
        "ml-100k": lambda folder: ratings.to_csv(folder / "u.data", index=False, header=False, sep="\t"),
        "ml-1m": lambda folder: (folder / "ratings.dat").write_text(_text(ratings)),
        "ml-20m": lambda folder: ratings.set_axis(named, axis=1).to_csv(folder / "ratings.csv", index=False),
        "ml-1m-csv": lambda folder: ratings.to_csv(folder / "ml1m_ratings.csv.gz", index=False),
        "ml-1m-gz": lambda folder: (folder / "ratings.dat.gz").write_bytes(gzip.compress(_text(ratings).encode())),
        "no header": lambda folder: ratings.to_csv(folder / "ml1m_ratings.csv", index=False, header=False),
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
    with pytest.raises(FileNotFoundError, match="looked for ml100k_ratings.csv.gz, u.data, .*ratings.csv"):
        (tmp_path / "empty").mkdir()
        read_movielens(tmp_path / "empty")


def _save_1m(ratings: pd.DataFrame, folder) -> None:
    for name, frame in (("ratings", ratings), ("users", USERS), ("items", ITEMS)):
        frame.to_csv(folder / f"ml1m_{name}.csv.gz", index=False)


def test_users_genres_and_years_of_1m(ratings, tmp_path):
    (tmp_path / "csv").mkdir()
    _save_1m(ratings, tmp_path / "csv")
    log = read_movielens(tmp_path / "csv")
    release = tmp_path / "ml-1m"
    release.mkdir()
    (release / "ratings.dat").write_text(_text(ratings))
    (release / "users.dat").write_text(_text(USERS))
    titles = ITEMS["movie_title"] + " (" + ITEMS["release_year"].astype(str) + ")"
    films = pd.DataFrame({"item_id": ITEMS["item_id"], "title": titles, "genres": ITEMS["genres"].str.replace(" ", "|")})
    (release / "movies.dat").write_bytes(_text(films).replace("Film", "Filmé").encode("latin-1").replace(b"Film\xe9-", b"Film-"))
    other = read_movielens(tmp_path, release="1m")
    for name in ("gender", "age", "occupation", "release_year", "liked", "split"):
        assert other.events[name].astype(str).tolist() == log.events[name].astype(str).tolist(), name
    assert all((a == b).all() for a, b in zip(other.events["genres"], log.events["genres"], strict=True))
    row = log.events.iloc[5]
    assert row["genres"].sum() == len(ITEMS.set_index("item_id")["genres"][row["item_id"]].split())
    assert row["gender"] == USERS.set_index("user_id")["gender"][row["user_id"]]
    schema = log.schema.fit(log.split("train"))
    inputs = {feature.name: feature.encode(log.events[feature.name]) for feature in schema.features}
    assert (inputs["gender"] > 0).all() and (inputs["age"] > 0).all() and (inputs["occupation"] > 0).all()
    assert check_events(log.events, log.schema)[1].kept == len(ratings)


def test_rows_of_one_second_do_not_see_one_another(ratings, tmp_path):
    _save_1m(ratings.assign(timestamp=ratings["timestamp"] // 10_000 * 10_000), tmp_path)
    log = read_movielens(tmp_path)
    again = log.events.groupby(["user_id", "time"])
    assert again.size().max() > 1  # or this test shows nothing
    for name in ("user_ratings", "user_like_rate"):
        assert (again[name].nunique() == 1).all()
    built = requests(build_sequences(log.events, log.schema.fit(log.events)))
    of_events = built.sequences
    for begin, end, shown in zip(built.history_begin, built.history_end, built.candidate_begin, strict=True):
        seen = of_events.time[begin:end]
        assert (seen < of_events.time[shown]).all()


def test_latest_has_genres_and_the_year_of_the_title(ratings, tmp_path):
    ratings.set_axis(["userId", "movieId", "rating", "timestamp"], axis=1).to_csv(tmp_path / "ratings.csv", index=False)
    films = pd.DataFrame({"movieId": range(1, 29), "title": 'Film, "the" (1994)', "genres": "Children|IMAX"})
    films.loc[0, ["title", "genres"]] = ["Film without a year", "(no genres listed)"]
    films.to_csv(tmp_path / "movies.csv", index=False)
    log = read_movielens(tmp_path)
    known = log.events[~log.events["item_id"].isin([1, 29])]
    assert (known["release_year"] == 1994).all() and all(vector.sum() == 2 for vector in known["genres"])
    rest = log.events[log.events["item_id"].isin([1, 29])]
    assert len(rest) and rest["release_year"].isna().all() and all(vector.sum() == 0 for vector in rest["genres"])
    assert any("not in movies.csv" in note for note in log.notes) and any("without a year" in note for note in log.notes)
    assert check_events(log.events, log.schema)[1].kept == len(ratings)
    films.assign(genres="Drama|Opera").to_csv(tmp_path / "movies.csv", index=False)
    with pytest.raises(ValueError, match="column 'genres' of movies.csv must hold genres of MovieLens, Action, .*Received: 'Opera'"):
        read_movielens(tmp_path)


def test_several_releases(ratings, tmp_path):
    _save_1m(ratings, tmp_path)
    ratings.set_axis(["userId", "movieId", "rating", "timestamp"], axis=1).to_csv(tmp_path / "ratings.csv", index=False)
    with pytest.raises(ValueError, match=r"`release` must be given .*'1m' \(ml1m_ratings.csv.gz\), 'latest' \(ratings.csv\)"):
        read_movielens(tmp_path)
    assert "genres" in read_movielens(tmp_path, release="1m").events
    assert "genres" not in read_movielens(tmp_path, release="latest").events
    with pytest.raises(ValueError, match="`release` must be one of '100k', '1m', 'latest'. Received: release='10m'"):
        read_movielens(tmp_path, release="10m")
    with pytest.raises(ValueError, match="`release` must be one that the folder holds: '1m' .* Received: release='100k'"):
        read_movielens(tmp_path, release="100k")
    ratings.to_csv(tmp_path / "ml100k_ratings.csv.gz", index=False)
    log = read_movielens(tmp_path)
    assert "genres" not in log.events and "`release` chooses, '100k' was read" in log.notes[-1]
