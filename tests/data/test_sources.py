"""open_log: one name for every source of a log, and plain errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.columns import Id
from keras_ranking.data.simulation.simulate import simulate
from keras_ranking.data.sources import open_log
from keras_ranking.schema import Schema

RATINGS = pd.DataFrame(
    {"user_id": [1, 1, 2, 2, 3], "item_id": [5, 6, 5, 7, 8], "rating": [5, 2, 4, 3, 1], "timestamp": [874965478 + i for i in range(5)]}
)


def test_simulated_takes_seed_and_options():
    log = open_log("simulated", seed=4, members=20, days=2)
    pd.testing.assert_frame_equal(log.events, simulate(members=20, days=2, seed=4).events)
    assert not log.events.equals(open_log("simulated", seed=5, members=20, days=2).events)


def test_a_schema_replaces_that_of_the_source(tmp_path):
    own = open_log("simulated", members=10, days=1).schema
    few = own.model_copy(update={"features": own.features[:2]})
    few.save(tmp_path / "schema.json")
    for schema in (few, tmp_path / "schema.json", str(tmp_path / "schema.json")):
        assert open_log("simulated", schema=schema, members=10, days=1).schema == few
    with pytest.raises(ValueError, match=r"column 'video' of the schema is not in the log. It has: \['age_hours'"):
        open_log("simulated", schema=own.model_copy(update={"features": (Id("video"),)}), members=10, days=1)


def test_a_folder_source(tmp_path):
    RATINGS.to_csv(tmp_path / "ml100k_ratings.csv.gz", index=False)
    log = open_log(f"movielens:{tmp_path}")
    assert log.name == "movielens" and len(log.events) == 5
    RATINGS.to_csv(tmp_path / "ratings.csv", index=False)
    assert open_log(f"movielens:{tmp_path}", release="latest").schema.features[0].buckets == 131_072
    for source in ("simulated", f"retail:{tmp_path}"):
        with pytest.raises(ValueError, match="`release` is an option of the sources kuairand and movielens. Received: release='1m'"):
            open_log(source, release="1m")
    for kind in ("ebnerd", "kuairand", "retail"):
        with pytest.raises(FileNotFoundError, match="looked for"):
            open_log(f"{kind}:{tmp_path}")


def test_parquet_without_a_split_is_split_by_time_and_says_so(tmp_path):
    pytest.importorskip("pyarrow")
    log = simulate(members=30, days=3)
    log.events.drop(columns="split").to_parquet(tmp_path / "mine.parquet")
    got = open_log(f"parquet:{tmp_path / 'mine.parquet'}", schema=log.schema)
    assert got.name == "mine" and "80%" in got.notes[0]
    train, validation = got.split("train"), got.split("validation")
    assert train["time"].max() < validation["time"].min() and not set(train["request_id"]) & set(validation["request_id"])
    assert train["request_id"].nunique() / got.events["request_id"].nunique() == pytest.approx(0.8, abs=0.01)


def test_parquet_with_a_split_keeps_it(tmp_path):
    pytest.importorskip("pyarrow")
    log = simulate(members=20, days=2)
    log.events.to_parquet(tmp_path / "mine.parquet")
    got = open_log(f"parquet:{tmp_path / 'mine.parquet'}", schema=log.schema)
    np.testing.assert_array_equal(got.events["split"], log.events["split"])
    assert not got.notes


def test_parquet_faults(tmp_path):
    pytest.importorskip("pyarrow")
    log = simulate(members=5, days=1)
    log.events.drop(columns="topic").to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"column 'topic' of the schema is not in the log. It has: \["):
        open_log(f"parquet:{tmp_path / 'mine.parquet'}", schema=log.schema)
    with pytest.raises(ValueError, match="`schema` must be given with source 'parquet:FILE'"):
        open_log(f"parquet:{tmp_path / 'mine.parquet'}")
    with pytest.raises(FileNotFoundError, match="must name a file"):
        open_log(f"parquet:{tmp_path / 'none.parquet'}", schema=log.schema)


@pytest.mark.parametrize("source", ["", "kafka:topic", "ebnerd", "ebnerd:", "parquet:", "simulated:1", "movielens", 7])
def test_unknown_sources_name_the_known_ones(source):
    known = "simulated, ebnerd:FOLDER, kuairand:FOLDER, movielens:FOLDER, retail:FOLDER, parquet:FILE"
    with pytest.raises(ValueError, match=f"`source` must be one of {known}"):
        open_log(source)


def test_options_of_the_simulator_with_another_source(tmp_path):
    with pytest.raises(ValueError, match="`members` is an option of source 'simulated' alone"):
        open_log(f"movielens:{tmp_path}", members=5)


def test_a_simulated_schema_can_be_written_and_read(tmp_path):
    schema = open_log("simulated", members=5, days=1).schema
    schema.save(tmp_path / "schema.json")
    assert Schema.load(tmp_path / "schema.json") == schema
