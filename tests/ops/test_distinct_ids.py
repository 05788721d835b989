"""Ids hashed once each, against the hash of every row's value by itself."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import farmhash
import numpy as np
import pandas as pd
import pytest

from keras_ranking import Category, Id
from keras_ranking.ops import hashing
from keras_ranking.ops.hashing import distinct_ids, fingerprint64, hash_buckets

WHOLE = [7, 0, 100, 7, 127, 0]
SIGNED = [7, -7, 0, -128, 7, -7]
TEXTS = ["a", "", "é", "e\u0301", "日本", "007", "7", "a\0b", "a\0c", "a", "é"]
MIXED = [7, "7", b"7", True, np.int64(-7), "-7", np.bool_(False), 2**70, None, np.nan, pd.NA, pd.NaT, "a", b"a", np.str_("a"), 7]
COLUMNS: dict[str, Any] = {
    **{kind: np.array(SIGNED, dtype=kind) for kind in ("int8", "int16", "int64", ">i2", ">i8", "float64", ">f8")},
    **{kind: np.array(WHOLE, dtype=kind) for kind in ("uint8", "uint64", ">u4", "bool", "U3", ">U3", "S3")},
    **{kind: pd.Series([*SIGNED, None], dtype=kind) for kind in ("Int8", "Int64", "Float64", "float64", "object", "category")},
    **{f"{kind} without gaps": pd.Series(SIGNED, dtype=kind) for kind in ("Int64", "Sparse[int]", "category")},
    "bools": [True, False, True],
    "boolean": pd.Series([True, None, False], dtype="boolean"),
    "bools with gaps": pd.Series([True, None, False, True], dtype=object),
    **{kind: pd.Series([*TEXTS, None], dtype=kind) for kind in ("str", "string[python]")},
    "texts": pd.Series([*TEXTS, None, np.nan], dtype=object),
    "categories of texts": pd.Categorical([*TEXTS, None, "b"], categories=[*dict.fromkeys(TEXTS[::-1]), "unused", "b"]),
    "categories of integers": pd.Categorical([3, None, -1, 3], categories=[3, 9, -1]),
    "mixed": pd.Series(MIXED, dtype=object, index=[5] * len(MIXED)),
    "large": [2**64 - 1, 2**63, 2**53 + 1],
    "none": [],
    "missing": [None, np.nan],
}
ARROW = {
    "string[pyarrow]": [*TEXTS, None],
    "large_string[pyarrow]": [*TEXTS, None],
    "int64[pyarrow]": [*SIGNED, None],
    "uint8[pyarrow]": WHOLE,
    "bool[pyarrow]": [True, None, False],
    "double[pyarrow]": [*SIGNED, None],
    "binary[pyarrow]": [b"a", b"\xc3\xa9", None, b"a"],
}


def row_text(value: Any) -> str:
    """The text of one value, as the documentation of `canonical_text` has it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return str(value)
    return "" if pd.isna(value) else str(int(value))


def check(values: Any) -> None:
    texts = [row_text(value) for value in (values if isinstance(values, list) else pd.Series(values).astype(object))]
    hashes = np.array([farmhash.fingerprint64(text) for text in texts], dtype=np.uint64)
    np.testing.assert_array_equal(fingerprint64(values), hashes)
    rows = np.where(np.array(texts, dtype=object) == "", 0, 1 + (hashes % np.uint64(996)).astype(np.int64))
    found = hash_buckets(values, 997)
    np.testing.assert_array_equal(found, rows)
    assert found.dtype == np.int32
    halves = Id("x", buckets=None).encode(values)
    known = np.array(texts, dtype=object) != ""
    np.testing.assert_array_equal(halves[known], hashes.view("<u4").reshape(-1, 2).view(np.int32)[known])
    assert not halves[~known].any() and halves.dtype == np.int32 and halves.shape == (len(texts), 2)
    words = [text for text in dict.fromkeys(texts) if text][::2] or ["none"]
    places = [words.index(text) + 1 if text in words else 0 for text in texts]
    np.testing.assert_array_equal(Category("x", vocabulary=words).encode(values), places)


@pytest.mark.quickest
@pytest.mark.parametrize("values", COLUMNS.values(), ids=COLUMNS)
def test_every_type_has_the_bits_of_its_rows(values: Any) -> None:
    check(values)


@pytest.mark.quickest
@pytest.mark.parametrize("kind", ARROW)
def test_every_type_of_arrow_has_the_bits_of_its_rows(kind: str) -> None:
    pytest.importorskip("pyarrow")
    check(pd.Series(ARROW[kind], dtype=kind))


@pytest.mark.quickest
def test_each_distinct_id_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(farmhash, "fingerprint64", lambda text: seen.append(text) or 1)
    for values in (["b", "a", None] * 50, pd.Series([5, 3, 5] * 50), pd.Series(["a", "b"] * 50, dtype=object)):
        seen.clear()
        hash_buckets(values, 10)
        assert len(seen) == 2


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("equal", "fault"),
    [
        ([7, 7.0], 1),
        ([True, Decimal(1)], 1),
        (["\ud800", "'\\ud800'"], 0),  # pandas counts the two as one text
        ([0, np.timedelta64(0, "s")], 1),
        ([dt.datetime(2020, 1, 1), "2020-01-01"], 0),
    ],
)
def test_an_id_and_an_equal_value_that_is_none_stay_apart(equal: list[Any], fault: int) -> None:
    for values in (equal, equal[::-1]):
        series = pd.Series(values, dtype=object)
        bad = np.logical_or.reduce([rows for rows, _, _ in distinct_ids(series).fault_rows()])
        assert bad.tolist() == [value is equal[fault] for value in values]
    text = hashing.canonical_text(pd.Series([equal[1 - fault]], dtype=object))
    assert text.tolist() == [row_text(equal[1 - fault])]
