"""The id hash against the ops of TensorFlow, and against fixed values."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

import farmhash
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from keras_ranking import Id
from keras_ranking.ops.hashing import canonical_text, fingerprint64, hash_buckets

pytestmark = pytest.mark.one_backend  # numpy, compared with TensorFlow

# FarmHash Fingerprint64 of the texts, fixed so that a change of the library fails on every backend.
KNOWN = {"": 11160318154034397263, "1": 9304157803607034849, "hello": 13009744463427800296}


def test_known_values():
    got = fingerprint64(list(KNOWN))
    assert got.dtype == np.uint64
    assert dict(zip(KNOWN, got.tolist(), strict=True)) == KNOWN


@pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "tensorflow", reason="compares with TensorFlow's ops")
def test_equals_tensorflow_bit_for_bit():
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    texts = [str(x) for x in rng.integers(-(2**62), 2**62, 500)] + ["", "ä", "日本語", "a" * 1000, "member:1", *map(str, range(-50, 2000))]
    theirs = tf.fingerprint(tf.constant(texts), method="farmhash64").numpy()
    np.testing.assert_array_equal(fingerprint64(texts), theirs.view("<u8").reshape(-1))
    buckets = tf.strings.to_hash_bucket_fast(tf.constant(texts[:500]), 999).numpy() + 1
    np.testing.assert_array_equal(hash_buckets(texts[:500], 1000), buckets)
    assert (hash_buckets(texts[:500], 1001) != buckets).any()  # control: another number of buckets gives other rows


def test_integers_floats_and_texts_of_one_id_share_a_hash():
    assert len(set(fingerprint64([7]).tolist() + fingerprint64([7.0]).tolist() + fingerprint64(["7"]).tolist())) == 1
    assert fingerprint64(["07"])[0] != fingerprint64(["7"])[0]


def test_missing_ids_get_row_zero():
    np.testing.assert_array_equal(hash_buckets([None, "x", np.nan], 10) == 0, [True, False, True])
    rows = hash_buckets(np.arange(1000), 10)
    assert rows.min() == 1 and rows.max() == 9 and rows.dtype == np.int32


def test_values_that_are_not_ids_are_errors():
    with pytest.raises(ValueError, match="is an id and must hold integers or strings"):
        canonical_text([1.5])
    with pytest.raises(ValueError, match="`buckets` must be at least 2"):
        hash_buckets(["x"], 1)
    with pytest.raises(TypeError, match="value of type list"):
        canonical_text(pd.Series([[1], "a"]))


def test_fingerprint_equals_published_values() -> None:
    """BigQuery's documentation of FARM_FINGERPRINT prints these three, as signed integers; the last is FarmHash of no bytes."""
    signed = fingerprint64(["1footrue", "2applefalse", "3true", ""]).view(np.int64)
    assert signed.tolist()[:3] == [-1541654101129638711, 2794438866806483259, -4880158226897771312]
    assert fingerprint64([""])[0] == 0x9AE16A3B2F90404F


@given(st.lists(st.text(max_size=40), max_size=20))
def test_fingerprint_of_any_text(texts: list[str]) -> None:
    hashed = fingerprint64(texts)
    assert hashed.dtype == np.uint64
    assert hashed.tolist() == [farmhash.fingerprint64(text) for text in texts]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_an_integer_and_its_text_are_one_id(numbers: list[int]) -> None:
    as_text = fingerprint64([str(number) for number in numbers])
    np.testing.assert_array_equal(fingerprint64(numbers), as_text)
    np.testing.assert_array_equal(fingerprint64(np.array(numbers, dtype=np.int64)), as_text)
    np.testing.assert_array_equal(fingerprint64(pd.Series(numbers, dtype=object)), as_text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 20, -3], ["1", "20", "-3"]),
        ([1.0, np.nan, -0.0], ["1", "", "0"]),
        (["a", None, float("nan"), "nan"], ["a", "", "", "nan"]),
        ([b"caf\xc3\xa9", "café"], ["café", "café"]),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (np.array([["a", "b"], ["c", "d"]]), ["a", "b", "c", "d"]),
        ("one", ["one"]),
        (5, ["5"]),
        ([2**64 - 1], ["18446744073709551615"]),
        ([True, False], ["1", "0"]),
        (pd.Series([True, None], dtype=object), ["1", ""]),
        (pd.Series([1, None], dtype="Int64"), ["1", ""]),
        (pd.Series(["x", None], dtype="category"), ["x", ""]),
        (pd.Series(["x", pd.NA], dtype="string"), ["x", ""]),
        (["007", " a"], ["007", " a"]),
        ([], []),
    ],
)
def test_canonical_text(values: Any, expected: list[str]) -> None:
    assert canonical_text(values).tolist() == expected


def test_rows_of_a_series_count_from_its_start() -> None:
    series = pd.Series([1.0, 2.5], index=[70, 71])
    with pytest.raises(ValueError, match="`item` is an id and must hold integers or strings. Received: .*2.5.* at row 1"):
        hash_buckets(series, 10, "item")
    np.testing.assert_array_equal(Id("item").encode(pd.Series(["a", "b"], index=[9, 9])), Id("item").encode(["a", "b"]))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([1.5], ValueError),
        ([np.inf], ValueError),
        ([float(2**53)], ValueError),  # 2**53 and 2**53 + 1 are the same float: the id is ambiguous
        ([dt.datetime(2020, 1, 1)], TypeError),
        ([["a"]], TypeError),
        (pd.Series([1.0, "a"], dtype=object), TypeError),
    ],
)
def test_not_an_id(values: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="must hold integers or strings"):
        canonical_text(values, "item")


def test_hash_buckets_keep_row_0_for_missing() -> None:
    rows = hash_buckets([None, "", np.nan, *map(str, range(5000))], 100)
    assert rows.dtype == np.int32
    assert rows[:3].tolist() == [0, 0, 0]
    assert set(rows[3:].tolist()) == set(range(1, 100))
    counts = np.bincount(rows[3:], minlength=100)[1:]
    # 5000 ids over 99 rows: chi-square has mean 98 and standard deviation 14
    assert ((counts - 5000 / 99) ** 2 / (5000 / 99)).sum() < 98 + 5 * 14
    assert hash_buckets(["a", "b"], 2).tolist() == [1, 1]
    with pytest.raises(ValueError, match="`buckets` must be at least 2"):
        hash_buckets(["a"], 1)
