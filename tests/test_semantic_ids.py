"""`SemanticId`: what is encoded, unknown items, JSON and digest, tensors, and errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, check_events, requests

CODES = {"a": (3, 0), "b": (3, 7), "12": (0, 0)}


def column(**settings: Any) -> kr.SemanticId:
    options = {"levels": 2, "codebook_size": 8, "column": "item_id", **settings}
    return kr.SemanticId("item_codes", **options).with_codes(list(CODES), list(CODES.values()))


def test_codes_of_items_and_a_row_of_unknown_ones() -> None:
    made = column()
    want = [[4, 8], [4, 1], [1, 1], [0, 0], [0, 0]]
    for values in (["b", "a", "12", "new", None], pd.Series(["b", "a", 12, "new", float("nan")]), np.array(["b", "a", "12", "new", ""])):
        found = made.encode(values)
        assert found.tolist() == want and found.dtype == np.int32
        assert not made.faults(values)
    assert (made.shape, made.rows, made.dtype) == ((2,), 9, "int32")
    assert column().with_codes(["c"], [[3, 0]]).shared == 0.5 and made.shared == 0
    assert made.without_codes().items is None
    first = kr.SemanticId("item_codes", levels=2, codebook_size=8).with_codes([1, 2], np.array([[1, 2], [3, 4]]))
    assert first.with_codes(["3"], [[7, 7]]).encode([3, 1, 2]).tolist() == [[8, 8], [2, 3], [4, 5]]


def test_unknown_items_may_be_refused() -> None:
    made = column(unknown="error")
    more = "; SemanticId('item_codes', unknown='row') gives it a row of its own."
    cases = [
        (["a", "new", "x"], f"column 'item_codes' must be an item with codes{more} Received: 'new' at row 1 (2 such rows)"),
        (["a", None], f"column 'item_codes' must not be missing{more} Received: nan at row 1"),
    ]
    for values, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            made.encode(values)
    assert [rows.tolist() for rows, _ in made.faults(["a", None, "new"])] == [[False, True, False], [False, False, True]]
    assert made.encode(["b"]).tolist() == [[4, 8]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kr.SemanticId("c", levels=0), "`levels` must be at least 1. Received: 0"),
        (lambda: kr.SemanticId("c", items=["a"]), "`items` and `codes` must have one entry for each item. Received: 1 items, None codes"),
        (lambda: kr.SemanticId("c", levels=1, items=["a", "a"], codes=[[0], [0]]), "`items` must be distinct, non-empty texts"),
        (lambda: column(prefixes=True, buckets=2**30), "(`codebook_size` + 1) * (`buckets` + 1) must be below 2^31"),
        (lambda: column().with_codes(["c"], [[8, 0]]), "`codes` must be 2 integers from 0 to 7 for each item. Received: [8, 0]"),
        (lambda: column().with_codes(["c"], [[1]]), "`codes` must be integers (items, levels=2). Received: shape (1, 1) of int64, 1 items"),
        (lambda: column().with_codes(["c"], [[1.0, 1.0]]), "`codes` must be integers (items, levels=2)"),
        (lambda: column().with_codes(["c", "c"], [[1, 1], [1, 1]]), "`items` must be distinct, non-empty texts. Received: 2"),
        (lambda: column().with_codes(["a"], [[1, 1]]), "for an item that has codes. Received: [1, 1] for item 'a', which has [3, 0]"),
        (lambda: kr.SemanticId("c").encode(["a"]), "column 'c' has no codes yet: `kr.training.fit_semantic_id(column, items, vectors)`"),
        (lambda: kr.SemanticId("c", unknown="drop"), "`unknown` must be 'row' or 'error'. Received: 'drop'"),
    ],
)  # fmt: skip
def test_refused_settings(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.fixture(scope="module")
def log() -> Any:
    log = kr.data.simulate(members=12, days=2, seed=0)
    items = log.events["item_id"].unique()[:-3]
    codes = np.random.default_rng(0).integers(0, 8, (len(items), 2))
    made = kr.SemanticId("item_codes", levels=2, codebook_size=8, column="item_id").with_codes(items, codes)
    schema = log.schema.model_copy(update={"features": (*log.schema.features, made)})
    return kr.data.Log(log.events, schema.fit(log.events), "coded")


def test_schema_is_the_same_after_json(log: Any, tmp_path: Path) -> None:
    log.schema.save(tmp_path / "schema.json")
    again = kr.Schema.load(tmp_path / "schema.json")
    assert again == log.schema and again.digest == log.schema.digest and again.features[-1].fitted
    other = again.features[-1].with_codes(["another"], [[0, 0]])
    assert again.model_copy(update={"features": (*again.features[:-1], other)}).digest != log.schema.digest
    bare = kr.SemanticId("item_codes")
    assert set(bare.model_dump()) == {"kind", "name", "known", "levels", "codebook_size", "prefixes", "buckets", "unknown", "table"}
    (tmp_path / "schema.json").write_text(log.schema.model_dump_json(indent=1).replace('"codebook_size": 8', '"codebook_size": 1', 1))
    with pytest.raises(ValueError, match="line .*: `codebook_size` must be at least 2. Received: 1"):
        kr.Schema.load(tmp_path / "schema.json")


def test_sequences_and_requests_hold_codes(log: Any) -> None:
    sequences = build_sequences(log.events, log.schema)
    want = log.schema.features[-1].encode(log.events["item_id"])
    np.testing.assert_array_equal(sequences.columns["item_codes"], want[sequences.rows])
    assert (want == 0).any() and (want > 0).any()
    tensors = requests(sequences, max_history=5).tensors([0], ["history_item_codes", "candidate_item_codes"], history=5)
    assert tensors["history_item_codes"].shape == (1, 5, 2) and tensors["candidate_item_codes"].shape[2:] == (2,)
    packed = kr.data.PackedDataset(kr.data.pack(sequences, 64), 2, inputs=["item_codes", "segment"], tasks=["click"])[0][0]
    assert packed["item_codes"].shape == (2, 64, 2)


def test_shards_hold_codes(log: Any, tmp_path: Path) -> None:
    made = kr.data.prepare(log, tmp_path / "shards", shards=2)
    assert made.schema.features[-1] == log.schema.features[-1]


def test_rows_without_codes_are_reported(log: Any) -> None:
    refusing = log.schema.features[-1].model_copy(update={"unknown": "error"})
    schema = log.schema.model_copy(update={"features": (*log.schema.features[:-1], refusing)})
    unknown = int((log.schema.features[-1].encode(log.events["item_id"])[:, 0] == 0).sum())
    rows, report = check_events(log.events, schema, on_error="drop")
    assert len(rows) == len(log.events) - unknown < len(log.events)
    few = log.schema.features[-1].without_codes().with_codes(["other"], [[0, 0]])
    sparse = log.schema.model_copy(update={"features": (*log.schema.features[:-1], few)})
    _, report = check_events(log.events, sparse)
    assert any("column 'item_codes'" in note and "are not in the vocabulary" in note for note in report.notes)
