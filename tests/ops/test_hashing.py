"""The published id hash against TensorFlow's own ops, and against values fixed here."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

from keras_ranking.ops.hashing import canonical_text, fingerprint64, hash_buckets

# FarmHash Fingerprint64 of the texts, fixed so that a change of library cannot pass unnoticed on any backend.
KNOWN = {"": 11160318154034397263, "1": 9304157803607034849, "hello": 13009744463427800296}


def test_known_values():
    got = fingerprint64(list(KNOWN))
    assert got.dtype == np.uint64
    assert dict(zip(KNOWN, got.tolist(), strict=True)) == KNOWN


@pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "tensorflow", reason="compares with TensorFlow's ops")
def test_equals_tensorflow_bit_for_bit():
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    texts = [str(x) for x in rng.integers(-(2**62), 2**62, 500)] + ["", "ä", "a" * 1000, "member:1"]
    theirs = tf.fingerprint(tf.constant(texts), method="farmhash64").numpy()
    np.testing.assert_array_equal(fingerprint64(texts), theirs.view("<u8").reshape(-1))
    buckets = tf.strings.to_hash_bucket_fast(tf.constant(texts[:500]), 999).numpy() + 1
    np.testing.assert_array_equal(hash_buckets(texts[:500], 1000), buckets)
    assert (hash_buckets(texts[:500], 1001) != buckets).any()  # control: another number of buckets is noticed


def test_integers_floats_and_texts_of_one_id_share_a_hash():
    assert len(set(fingerprint64([7]).tolist() + fingerprint64([7.0]).tolist() + fingerprint64(["7"]).tolist())) == 1
    assert fingerprint64(["07"])[0] != fingerprint64(["7"])[0]


def test_missing_ids_get_row_zero():
    np.testing.assert_array_equal(hash_buckets([None, "x", np.nan], 10) == 0, [True, False, True])
    rows = hash_buckets(np.arange(1000), 10)
    assert rows.min() == 1 and rows.max() == 9 and rows.dtype == np.int32


def test_what_is_no_id_is_refused():
    with pytest.raises(ValueError, match="is an id and must hold integers or strings"):
        canonical_text([1.5])
    with pytest.raises(ValueError, match="`buckets` must be at least 2"):
        hash_buckets(["x"], 1)
    with pytest.raises(TypeError, match="value of type list"):
        canonical_text(pd.Series([[1], "a"]))
