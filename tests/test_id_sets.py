"""`Ids`, a set of ids a row: what a log may hold, what is encoded, and errors that name row and value."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking import Category, Id, Ids
from keras_ranking.data import build_sequences, check_events, requests

WORDS = ("news", "sport", "7", "art")
MODES: dict[str, dict[str, Any]] = {"hashed": {"buckets": 1000}, "vocabulary": {"vocabulary": WORDS}, "whole": {"buckets": None}}


def reference(lists: list[list[Any]], one: Any, size: int) -> np.ndarray:
    """Each list by the column of single ids, in Python: known ids first to last, then -1."""
    out = np.full((len(lists), size, *one.shape), -1, dtype=np.int32)
    for row, ids in enumerate(lists):
        known = [str(value) for value in ids if value is not None and value == value and str(value) != ""]
        for place, text in enumerate(known):
            out[row, place] = one.encode([text])[0]
    return out


def single(mode: str) -> Any:
    return Category("tags", vocabulary=WORDS) if mode == "vocabulary" else Id("tags", **MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_lists_of_every_form_are_the_same_ids(mode: str) -> None:
    column = Ids("tags", size=4, **MODES[mode])
    lists: list[list[Any]] = [["news", "chess"], [], ["art", "art", "7", "sport"], ["x"]]
    want = reference(lists, single(mode), 4)
    assert want.shape == (4, 4, *single(mode).shape) == (4, *column.shape) and want.dtype == np.int32
    forms = {
        "lists": lists,
        "tuples": [tuple(ids) for ids in lists],
        "arrays": [np.array(ids, dtype=object) for ids in lists],
        "arrays of texts": [np.array(ids, dtype=str) for ids in lists],
        "series": pd.Series(lists),
        "bytes": [[text.encode() for text in ids] for ids in lists],
        "missing values": [["news", None, "chess"], None, ["art", "art", float("nan"), "7", "", "sport"], [pd.NA, "x"]],
        "missing rows": pd.Series([["news", "chess"], float("nan"), ["art", "art", "7", "sport"], ["x"]]),
    }
    for name, values in forms.items():
        np.testing.assert_array_equal(column.encode(values), want, err_msg=name)
        assert not column.faults(values), name
    texts = column.texts(lists)
    assert texts.shape == (4, 4) and texts[0].tolist() == ["news", "chess", "", ""]
    np.testing.assert_array_equal(column.encode(texts), want)
    separated = Ids("tags", size=4, separator="|", **MODES[mode])
    given = pd.Series(["news|chess", "", "art||art|7|sport|", "x"])
    np.testing.assert_array_equal(separated.encode(given), want)
    np.testing.assert_array_equal(separated.encode(lists), want)
    np.testing.assert_array_equal(separated.encode(given.str.encode("utf-8")), want)
    assert column.encode([]).shape == (0, *column.shape)


def test_integers_have_the_rows_of_their_text() -> None:
    column, one = Ids("brands", buckets=1000, size=3), Id("brands", buckets=1000)
    lists: list[list[Any]] = [[5, 2**60 + 1], [], [-7]]
    want = reference(lists, one, 3)
    for values in (
        lists,
        [np.array(ids, dtype=np.int64) for ids in lists],
        [[str(value) for value in ids] for ids in lists],
        pd.Series([[5, None, 2**60 + 1], None, [-7]]),
    ):
        np.testing.assert_array_equal(column.encode(values), want)
    # An integer list with a gap arrives from parquet as floats.
    np.testing.assert_array_equal(column.encode([np.array([5.0, np.nan]), np.array([6, 7])]), reference([[5], [6, 7]], one, 3))
    np.testing.assert_array_equal(column.encode(np.array([[1, 2], [3, 4]])), reference([[1, 2], [3, 4]], one, 3))
    np.testing.assert_array_equal(column.encode([{"b", "a"}, frozenset(["c"])]), reference([["a", "b"], ["c"]], one, 3))
    # A separated column in which each row has one id or none, as pandas reads it from CSV.
    separated = Ids("brands", buckets=1000, size=3, separator=";")
    np.testing.assert_array_equal(separated.encode(pd.Series([5.0, np.nan, -7.0])), reference([[5], [], [-7]], one, 3))
    np.testing.assert_array_equal(separated.encode(pd.Series([5, 6])), reference([[5], [6]], one, 3))


def test_parquet_and_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    lists = [["a", "b"], [], None, ["c", None]]
    numbers = [[1, 2], None, [3], [4, None]]
    frame = pd.DataFrame({"tags": lists, "brands": numbers})
    frame.to_parquet(tmp_path / "log.parquet")
    column, brands = Ids("tags", buckets=1000, size=2), Ids("brands", buckets=1000, size=2)
    want = reference([["a", "b"], [], [], ["c"]], Id("tags", buckets=1000), 2)
    whole = reference([[1, 2], [], [3], [4]], Id("tags", buckets=1000), 2)
    for options in ({}, {"dtype_backend": "pyarrow"}, {"dtype_backend": "numpy_nullable"}):
        read = pd.read_parquet(tmp_path / "log.parquet", **options)
        np.testing.assert_array_equal(column.encode(read["tags"]), want)
        np.testing.assert_array_equal(brands.encode(read["brands"]), whole)
    import pyarrow as pa

    np.testing.assert_array_equal(column.encode(pa.array(lists)), want)
    np.testing.assert_array_equal(column.encode(pa.chunked_array([pa.array(lists[:1]), pa.array(lists[1:])])), want)
    np.testing.assert_array_equal(column.encode(list(pa.array(lists))), want)
    csv = pd.read_csv(io.StringIO("tags,brands\na|b,1|2\n,\n,3\nc,4\n"))
    for name, wanted in (("tags", want), ("brands", whole)):
        np.testing.assert_array_equal(Ids(name, buckets=1000, size=2, separator="|").encode(csv[name]), wanted)


def test_longer_lists() -> None:
    lists = [["a", "b", "c", "d"], ["a"], ["", "b", None, "c"]]
    one = Id("tags", buckets=1000)
    first, last = (Ids("tags", buckets=1000, size=2, longer=longer) for longer in ("first", "last"))
    np.testing.assert_array_equal(first.encode(lists), reference([["a", "b"], ["a"], ["b", "c"]], one, 2))
    np.testing.assert_array_equal(last.encode(lists), reference([["c", "d"], ["a"], ["b", "c"]], one, 2))
    assert first.texts(lists).tolist() == [["a", "b"], ["a", ""], ["b", "c"]]


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ({"size": 2}, [["a"], ["a", "b", "c"], ["a"] * 9],
         "column 'tags' must hold at most size=2 ids in a row, and one row has 9; Ids(..., longer='first') keeps the first 2. "
         "Received: ['a', 'b', 'c'] at row 1 (2 such rows)"),
        ({}, [["a"], "a|b"],
         "column 'tags' must hold lists of ids, and holds text; Ids(..., separator='|') reads ids with '|' between them. "
         "Received: 'a|b' at row 1"),
        ({}, [["a"], 7], "column 'tags' must hold lists of ids. Received: 7 at row 1"),
        ({"separator": "|"}, ["a", {"a": 1}], "column 'tags' must hold lists of ids. Received: {'a': 1} at row 1"),
        ({}, [["a"], ["b", 1.5]], "column 'tags' has ids, which must be integers or strings. Received: ['b', 1.5] at row 1"),
        ({}, [[1], [1.5]], "column 'tags' has ids, which must be integers or strings. Received: [1.5] at row 1"),
        ({}, [["a"], [["b"]]], "column 'tags' has ids, which must be integers or strings. Received: [['b']] at row 1"),
        ({}, [["a"], [b"\xff"]], "column 'tags' has ids, which must be text that can be written as UTF-8. Received: [b'\\xff'] at row 1"),
        ({}, [np.array([1.0], "float32")],
         "column 'tags' has ids in float16 or float32, which do not hold every integer: use int64 or text. Received: [1.0] at row 0"),
        ({}, [[1], np.zeros((1, 1), "int64")], "column 'tags' must hold lists of ids. Received: [[0]] at row 1"),
    ],
)  # fmt: skip
def test_refused_values(settings: dict[str, Any], values: Any, message: str) -> None:
    column = Ids("tags", buckets=1000, **settings)
    for read in (column.encode, column.texts):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read(values)
    assert sum(int(rows.sum()) for rows, _ in column.faults(values)) >= 1
    good = [row for row in range(len(values)) if not any(rows[row] for rows, _ in column.faults(values))]
    column.encode([values[row] for row in good])  # what no fault names can be encoded


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ids("tags", size=0), "`size` must be at least 1. Received: 0"),
        (lambda: Ids("tags", size=5000), "`size` must be at most 4096. Received: 5000"),
        (lambda: Ids("tags", buckets=1), "`buckets` must be at least 2. Received: 1"),
        (lambda: Ids("tags", separator=""), "`separator` must have at least one character, or be None. Received: separator=''"),
        (lambda: Ids("tags", pooling="min"), "`pooling` must be 'mean', 'sum' or 'max'. Received: 'min'"),
        (lambda: Ids("tags", longer="drop"), "`longer` must be 'error', 'first' or 'last'. Received: 'drop'"),
        (lambda: Ids("tags", vocabulary=["x", "x"]), "`vocabulary` must be distinct, non-empty texts. Received: vocabulary=('x', 'x')"),
        (lambda: Ids("tags", seperator="|"), "there is no `seperator`; did you mean `separator`?"),
    ],
)
def test_refused_settings(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.fixture(scope="module")
def log() -> Any:
    """A simulated log with tags: no, some or many a row, in a list column and as text."""
    log = kr.data.simulate(members=12, days=2, seed=0)
    rng = np.random.default_rng(0)
    tags = [[f"t{tag}" for tag in rng.integers(0, 30, rng.integers(0, 4))] for _ in range(len(log.events))]
    features = (*log.schema.features, Ids("tags", buckets=500, size=4), Ids("text", buckets=500, size=4, separator=";", known="context"))
    events = log.events.assign(tags=tags, text=[";".join(ids) for ids in tags])
    return kr.data.Log(events, log.schema.model_copy(update={"features": features}).fit(events), "tagged")


def test_schema_is_the_same_after_json(log: Any, tmp_path: Path) -> None:
    log.schema.save(tmp_path / "schema.json")
    again = kr.Schema.load(tmp_path / "schema.json")
    assert again == log.schema and again.digest == log.schema.digest
    assert [type(feature) for feature in again.features][-2:] == [Ids, Ids]
    fields = {"kind", "name", "known", "buckets", "vocabulary", "divisor", "size", "separator", "pooling", "longer", "table"}
    assert set(again.features[-1].model_dump()) == fields
    (tmp_path / "schema.json").write_text(log.schema.model_dump_json(indent=1).replace('"pooling": "mean"', '"pooling": "middle"', 1))
    with pytest.raises(ValueError, match="line .*: `pooling` must be 'mean', 'sum' or 'max'. Received: 'middle'"):
        kr.Schema.load(tmp_path / "schema.json")


def test_sequences_requests_and_rows_hold_them(log: Any) -> None:
    sequences = build_sequences(log.events, log.schema)
    want = log.schema.features[-2].encode(log.events["tags"])
    np.testing.assert_array_equal(sequences.columns["tags"], want[sequences.rows])
    np.testing.assert_array_equal(sequences.columns["tags"], sequences.columns["text"])
    found = requests(sequences, max_history=5)
    tensors = found.tensors([0, len(found) - 1], ["history_tags", "candidate_text"], history=5)
    assert tensors["history_tags"].shape == (2, 5, 4) and tensors["candidate_text"].shape[2:] == (4,)
    shown = sequences.columns["text"][found.candidate_begin[-1] : found.candidate_end[-1]]
    np.testing.assert_array_equal(tensors["candidate_text"][1, : len(shown)], shown)
    packed = kr.data.PackedDataset(kr.data.pack(sequences, 64), 2, inputs=["tags", "segment"], tasks=["click"])[0][0]
    assert packed["tags"].shape == (2, 64, 4)


def test_bad_rows_are_reported_and_repeated_rows_found(log: Any) -> None:
    events = log.events.head(50).copy()
    events["tags"] = [["a"] * 9 if row == 7 else ids for row, ids in enumerate(events["tags"])]
    with pytest.raises(ValueError, match=r"column 'tags' must hold at most size=4 ids .* Received: \['a'.* at row 7 \(index 7\)"):
        check_events(events, log.schema)
    rows, report = check_events(events, log.schema, on_error="drop")
    assert len(rows) == 49 and [places.tolist() for places in report.places.values()] == [[7]]
    twice = pd.concat([log.events.head(20), log.events.head(3)], ignore_index=True)
    _, report = check_events(twice, log.schema, on_error="drop", sort=True)
    assert list(report.dropped.values()) == [3] and "repeats an earlier row" in next(iter(report.dropped))
    twice.loc[20, "text"] = "other"  # the same row but for a set is another row
    _, report = check_events(twice, log.schema, on_error="drop", sort=True)
    assert [count for reason, count in report.dropped.items() if "repeats an earlier row" in reason] == [2]


def test_a_vocabulary_that_is_spelled_otherwise_is_said(log: Any) -> None:
    schema = log.schema.model_copy(update={"features": (*log.schema.features[:-2], Ids("tags", vocabulary=["T1", "T2"], size=4))})
    with pytest.warns(UserWarning, match=r"column 'tags': .* are nearly, but not, in the vocabulary .*; all of them get row 0\.$"):
        check_events(log.events, schema)


def test_tables_start_from_item_factors() -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    factors = kr.data.item_factors(log.events, "member_id", "item_id", "click", dim=4)
    one, several = Id("item_id", buckets=500), Ids("bought", buckets=500, table="item_id")
    np.testing.assert_array_equal(factors.table(several), factors.table(one))
