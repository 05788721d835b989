"""A first schema of a log: kinds, when they are known, leaks, times; written with comments and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.schema_inference import infer_columns


def shop(rows: int = 4000) -> pd.DataFrame:
    """A shop's log: text ids, tags, prices with gaps, a vector, a leak, a datetime, a constant."""
    rng = np.random.default_rng(0)
    product = rng.integers(0, 300, rows)
    bought = (rng.random(rows) < 0.2).astype(int)
    return pd.DataFrame(
        {
            "customer": [f"c{number}" for number in rng.integers(0, 200, rows)],
            "ts": pd.Timestamp("2026-01-01", tz="Europe/Copenhagen") + pd.to_timedelta(rng.integers(0, 10**6, rows), "s"),
            "product_id": [f"p{number}" for number in product],
            "brand": [f"b{number % 40}" for number in product],
            "price": np.where(product % 9 == 0, np.nan, np.exp(product % 50 / 6)),
            "tags": [["new", "sale"][: number % 3] for number in product],
            "categories": [f"c{number % 7}|c{number % 11}" for number in product],
            "image": [np.full(4, number / 7, np.float32) for number in product],
            "app": rng.random(rows) < 0.5,
            "country_code": rng.integers(1, 90, rows),
            "store": rng.choice([-3, 4, 900], rows),
            "clicks_before": rng.integers(0, 30, rows),
            "released": pd.Timestamp("2025-01-01"),
            "currency": "EUR",
            "nothing": np.nan,
            "amount paid": 1.0 + product % 13,
            "basket_value": bought * rng.exponential(30, rows),
            "order_time": np.where(bought == 1, 1.0, np.nan),
            "bought": bought,
        }
    )


def inferred(events: Any, **stated: Any) -> dict[str, Any]:
    found = infer_columns(events, "customer", "ts", ["bought"], **stated)
    return {guess.name: guess for guess in found.guesses}


def test_kinds_and_reasons() -> None:
    found = inferred(shop())
    kinds = {name: guess.role for name, guess in found.items()}
    assert kinds["product_id"] == kinds["country_code"] == "id"
    assert (kinds["brand"], kinds["app"], kinds["store"]) == ("category", "category", "category")
    assert (kinds["tags"], kinds["categories"], kinds["image"]) == ("ids", "ids", "vector")
    assert kinds["price"] == kinds["clicks_before"] == "number"
    price = found["price"].column
    assert price.transform == "log1p_standardise" and price.missing == pytest.approx(np.nanmedian(shop()["price"]))
    assert "% are missing and become the median" in found["price"].reason
    assert found["categories"].column.separator == "|" and found["image"].column.size == 4
    left = {name for name, kind in kinds.items() if kind == "left out"}
    assert left == {"released", "currency", "nothing", "basket_value", "order_time"}
    assert "its value tells 'bought'" in found["basket_value"].reason
    assert "whether it is missing tells 'bought'" in found["order_time"].reason
    assert (found["amount paid"].column.name, found["amount paid"].column.column) == ("amount_paid", "amount paid")
    known = {name: guess.column.known for name, guess in found.items() if guess.column is not None}
    assert known["brand"] == known["price"] == known["tags"] == known["image"] == "item"
    assert known["app"] == known["clicks_before"] == "context"


def test_control_labels_that_a_column_does_not_tell() -> None:
    events = shop()
    events["bought"] = np.random.default_rng(1).permutation(events["bought"])
    found = inferred(events)
    assert found["basket_value"].role == "number" and found["order_time"].role == "left out"  # one value where it is known
    assert "tells" not in found["order_time"].reason


def test_times() -> None:
    events = shop()
    seconds = events["ts"].astype("int64") // (10**9 if events["ts"].dt.unit == "ns" else 10**6)
    for scale, word in ((1000, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")):
        found = infer_columns(events.assign(ts=seconds * scale), "customer", "ts", ["bought"])
        assert any(f"holds {word}: `events['ts'] //= {scale}`" in warning for warning in found.warnings)
    assert not any("holds" in warning for warning in infer_columns(events.assign(ts=seconds), "customer", "ts", ["bought"]).warnings)
    late = events.assign(ts=events["ts"] + pd.Timedelta("250ms"))
    assert any("fractions of a second" in warning for warning in infer_columns(late, "customer", "ts", ["bought"]).warnings)
    text = infer_columns(events.assign(ts=events["ts"].astype(str)), "customer", "ts", ["bought"])
    assert any("pd.to_datetime" in warning for warning in text.warnings)


def test_the_schema_encodes_the_log() -> None:
    events = shop()
    found = infer_columns(events, "customer", "ts", ["bought"])
    assert any("events.groupby(['customer', 'ts'], sort=False).ngroup()" in warning for warning in found.warnings)
    events["request_id"] = events.groupby(["customer", "ts"], sort=False).ngroup()
    schema = kr.Schema.infer(events, "customer", "ts", ["bought"], actions=["basket_value"], verbose=False)
    assert schema.request == "request_id" and schema.actions[0].name == "basket_value"
    sequences = kr.data.build_sequences(events, schema.fit(events))
    assert sequences.num_events == len(events)


def test_names_that_tell_roles(capsys: Any) -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    schema = kr.Schema.infer(log.events, "member_id", "time", ["click"], actions=["dwell_seconds"])
    assert (schema.request, schema.session, schema.position) == ("request_id", "session_id", "position")
    assert "ids, by its name" in capsys.readouterr().out
    zero = log.events.assign(position=log.events["position"] - 1)  # ranks from 0 on are no positions
    assert kr.Schema.infer(zero, "member_id", "time", ["click"], verbose=False).position is None


def test_the_command_writes_what_train_reads(tmp_path: Path, capsys: Any) -> None:
    events = shop().drop(columns=["image", "tags"])
    events.to_parquet(tmp_path / "shop.parquet")
    call = ["schema", str(tmp_path / "shop.parquet"), "--member", "customer", "--time", "ts", "--tasks", "bought"]
    assert main([*call, "--out", str(tmp_path / "schema.json")]) == 0
    printed = capsys.readouterr().out
    assert "basket_value" in printed and "suspected to tell the label" in printed
    text = (tmp_path / "schema.json").read_text()
    assert "// numbers from 0 on with a long tail" in text
    schema = kr.Schema.load(tmp_path / "schema.json")
    assert schema == kr.Schema.infer(events, "customer", "ts", ["bought"], verbose=False)
    assert main([*call, "--out", str(tmp_path / "schema.json")]) == 2
    assert "--replace" in capsys.readouterr().err
    wrong = text.replace('"kind": "number"', '"kind": "numbr"', 1)
    (tmp_path / "wrong.json").write_text(wrong)
    line = next(number for number, words in enumerate(wrong.splitlines(), 1) if "numbr" in words)
    with pytest.raises(ValueError, match=f"line {line}"):
        kr.Schema.load(tmp_path / "wrong.json")


def test_errors() -> None:
    events = shop()
    with pytest.raises(ValueError, match=r"Missing: \['buyer'\]"):
        infer_columns(events, "buyer", "ts", ["bought"])
    with pytest.raises(ValueError, match="must be a list of label columns"):
        infer_columns(events, "customer", "ts", "bought")
    with pytest.raises(ValueError, match="must have rows"):
        infer_columns(events.iloc[:0], "customer", "ts", ["bought"])
    with pytest.raises(ValueError, match="no column is left for a feature"):
        infer_columns(events[["customer", "ts", "currency", "bought"]], "customer", "ts", ["bought"])


def test_columns_of_the_member() -> None:
    """What is the same in all rows of each request is sent once, with the reason; what varies in one request is not."""
    rng, lists = np.random.default_rng(0), 60
    member = np.repeat(rng.integers(0, 9, lists), 5)
    events = pd.DataFrame({"user_id": member, "shown_at": np.repeat(1_700_000_000 + 60 * np.arange(lists), 5)})
    events = events.assign(
        request_id=np.repeat(np.arange(lists), 5), item_id=rng.integers(0, 30, 5 * lists), click=rng.integers(0, 2, 5 * lists)
    )
    profiles = rng.normal(size=(9, 3)).tolist()
    events = events.assign(country=[["DK", "SE", "NO"][one % 3] for one in member], profile=[profiles[one] for one in member])
    events["age"] = [None if one == 2 else 20.0 + one for one in member]
    events["visits"] = np.repeat(rng.integers(0, 50, lists), 5).astype(float)
    events["affinity"] = events["visits"]
    events.loc[7, "affinity"] = -1.0
    found = {guess.name: guess for guess in infer_columns(events, "user_id", "shown_at", ["click"]).guesses}
    known = {name: guess.column.known for name, guess in found.items() if guess.column is not None}
    assert known == {"item_id": "item", **dict.fromkeys(["country", "profile", "age", "visits"], "member"), "affinity": "context"}
    assert found["country"].reason == "3 words; the same in all rows of each of 60 requests"
    single = infer_columns(events.drop_duplicates("request_id"), "user_id", "shown_at", ["click"])
    assert "member" not in [guess.column.known for guess in single.guesses if guess.column is not None], (
        "control: lists of one row say nothing"
    )
