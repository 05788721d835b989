"""Ids and groups of every kind are kept apart: nothing passes through float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from keras_ranking import metrics
from keras_ranking.layers import RandomEffect, fit_random_effect
from keras_ranking.ops.keys import distinct_keys

pytestmark = pytest.mark.one_backend
BIG = 2**53
APART: dict[str, Any] = {
    "mixed list": [BIG, BIG + 1, 0.5, 0.5],
    "signed and unsigned": [np.uint64(2**63), np.uint64(2**63 + 1), np.int64(-1), np.int64(-1)],
    "python integers": [2**63 + 1, 2**63, -1, -1],
    "beyond 64 bits": [2**70, 2**70 + 1, 3, 3],
    "uint64": np.array([2**63, 2**63 + 1, 5, 5], np.uint64),
    "int64": np.array([BIG, BIG + 1, -(2**62), -(2**62)]),
    "objects": np.array([BIG, BIG + 1, "a", "a"], dtype=object),
    "number and text": [1, "1", 2.5, 2.5],
    "text": ["a", "a\x00", "b", "b"],
    "pandas": pd.Series([BIG, BIG + 1, 7, 7], dtype="Int64"),
    "arrow": pa.array([BIG, BIG + 1, 7, 7]),
    "chunks": pa.chunked_array([[BIG, BIG + 1], [7, 7]]),
    "categorical": pd.Categorical(["x", "y", "z", "z"]),
    "times": np.array(["2026-01-01T00:00:00.000000001", "2026-01-01", "2027", "2027"], "datetime64[ns]"),
    "zones": pd.Series(
        pd.to_datetime(["2026-01-01 00:00:00.000001", "2026-01-01", "2027-01-01", "2027-01-01"], format="ISO8601").tz_localize("UTC")
    ),
    "floats": np.array([0.5, 0.25, 2.0**52, 2.0**52]),
}
MISSING: dict[str, Any] = {
    "none": [1, None, 2, 2],
    "nan": [1.0, float("nan"), 2.0, 2.0],
    "array": np.array([1.0, np.nan, 2.0, 2.0]),
    "nat": np.array(["2026", "NaT", "2027", "2027"], "datetime64[s]"),
    "objects": np.array(["a", np.nan, "b", "b"], dtype=object),
    "pandas": pd.Series([1, None, 2, 2], dtype="Int64"),
    "text": pd.Series(["a", None, "b", "b"]),
    "timestamps": [pd.Timestamp(0), pd.NaT, pd.Timestamp(1), pd.Timestamp(1)],
    "arrow": pa.array([BIG, None, BIG + 1, BIG + 1]),
}
MERGED: dict[str, Any] = {
    "float64": np.array([2.0**53, 1.0, 2.0, 2.0]),
    "float32": np.array([2.0**24, 1.0, 2.0, 2.0], np.float32),
    "float16": np.array([2048.0, 1.0, 2.0, 2.0], np.float16),
    "list": [float(BIG), BIG + 1, 2, 2],
    "infinite": [np.inf, 1.0, 2.0, 2.0],
}
LABELS, SCORES = [1, 0, 1, 0], [0.1, 0.2, 0.3, 0.4]
USES = {
    "grouped_auc": lambda keys: metrics.grouped_auc(LABELS, SCORES, keys),
    "per_request_auc": lambda keys: metrics.per_request_auc(LABELS, SCORES, keys),
    "ndcg": lambda keys: metrics.ndcg(LABELS, SCORES, keys),
    "mrr": lambda keys: metrics.mrr(LABELS, SCORES, keys),
    "summary": lambda keys: metrics.summary(LABELS, SCORES, keys),
    "bootstrap": lambda keys: metrics.paired_bootstrap([0.0] * 4, SCORES, clusters=keys, samples=5),
    "replay": lambda keys: metrics.replay_contribution_rate(LABELS, SCORES, keys, [1, 1, 1, 2], [1] * 4),
    "coverage": lambda keys: metrics.coverage([1, 2, 3, 3], SCORES, keys),
    "gaps": lambda keys: metrics.gap_violations([1, 2, 3, 3], SCORES, keys, gap=2),
    "similarity": lambda keys: metrics.intra_list_similarity(np.eye(4), SCORES, keys),
    "rerank": lambda keys: metrics.greedy_rerank(SCORES, keys, {"type": [1, 2, 3, 3]}, {"type": 1}),
    "random effect": lambda keys: fit_random_effect(keys, LABELS, SCORES, l2=1.0),
}


@pytest.mark.parametrize("kind", APART)
def test_different_keys_stay_different(kind: str) -> None:
    keys = APART[kind]
    index = distinct_keys("groups", keys).places
    assert len(set(index.tolist())) == 3 and index[2] == index[3]
    # Three groups, one of two rows with both labels, the only one that counts, in which the positive is below the negative.
    assert metrics.grouped_auc(LABELS, SCORES, keys) == (0.0, 1)
    assert metrics.ndcg(LABELS, SCORES, keys).groups == metrics.mrr(LABELS, SCORES, keys).groups == 1  # as one key, the first rows make two
    assert metrics.paired_bootstrap([0.0] * 4, SCORES, clusters=keys, samples=5).clusters == 3
    assert metrics.coverage([1, 2, 3, 3], SCORES, keys) == ((1 + 1 + 0.5) / 3, 3)
    assert metrics.coverage(keys, SCORES, [0] * 4) == (0.75, 1)
    fit = fit_random_effect(keys, [1, 0, 1, 0], [0.0] * 4, l2=1.0)
    assert len(fit.ids) == 3
    rows = fit.rows(keys)
    assert len(set(rows.tolist())) == 3 and (rows > 0).all()
    # The effect of an id is that of its own rows: a click alone, no click alone, one of each.
    effects = [float(fit.effects[row - 1]) for row in rows]
    assert effects[0] > 0.3 and effects[1] < -0.3 and abs(effects[2]) < 1e-9


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_key_is_an_error_with_its_row(kind: str, use: str) -> None:
    with pytest.raises(ValueError, match=r"`(groups|clusters|ids)` must not be missing. Received: .* at row 1"):
        USES[use](MISSING[kind])


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_value_of_coverage_is_different_from_all(kind: str) -> None:
    assert metrics.coverage(MISSING[kind], SCORES, [0] * 4) == (0.75, 1)


@pytest.mark.parametrize("kind", MERGED)
def test_floats_that_may_have_merged_are_an_error(kind: str) -> None:
    for use in (USES["grouped_auc"], USES["bootstrap"], USES["random effect"]):
        with pytest.raises(ValueError, match=r"must not be float\d+ from \d+ on, where different integers are the same number"):
            use(MERGED[kind])


def test_rows_of_ids_of_another_integer_type() -> None:
    fit = fit_random_effect(np.array([BIG + 1, 5], np.int64), [1, 0], [0.0, 0.0], l2=1.0)
    for given, wanted in (
        (np.array([BIG, BIG + 1, 5], np.uint64), [0, 2, 1]),
        (np.array([2**64 - 1, 5], np.uint64), [0, 1]),  # -1 as int64
        ([BIG, BIG + 1, 2**70], [0, 2, 0]),
        (np.array([5.0, 5.5]), [1, 0]),
        (np.array([[5, 6], [7, 5]], np.int8), [[1, 0], [0, 1]]),
        (np.zeros((0,), np.int64), []),
    ):
        np.testing.assert_array_equal(fit.rows(given), wanted)
        assert fit.rows(given).dtype == np.int32
    unsigned = fit_random_effect(np.array([2**63 + 1, 7], np.uint64), [1, 0], [0.0, 0.0], l2=1.0)
    np.testing.assert_array_equal(unsigned.rows(np.array([7, -1, -(2**63) + 1])), [1, 0, 0])
    with pytest.raises(ValueError, match=r"`ids` must be of the kind of the fitted ids, such as \[5\]. Received: .*'5'"):
        fit.rows(["5"])
    with pytest.raises(ValueError, match="`ids` must not be missing"):
        fit.rows([5, None])
    assert RandomEffect.from_fit(fit).rows == 3


def test_what_cannot_be_a_key() -> None:
    with pytest.raises(ValueError, match=r"`groups` must hold numbers, text or times. Received: \[1\] at row 0"):
        metrics.grouped_auc([1, 0], [0.1, 0.2], [[1], "a"])
    with pytest.raises(ValueError, match="one-dimensional with 2 rows"):
        metrics.grouped_auc([1, 0], [0.1, 0.2], [1, 2, 3])


def test_codes_follow_the_order_of_the_groups() -> None:
    assert metrics.per_request_auc([1, 0, 1, 0], [1, 0, 0, 1], ["b", "b", "a", "a"]).row.tolist() == [2, 0]
    assert metrics.per_request_auc([1, 0, 1, 0], [1, 0, 0, 1], [9, 9, -3, -3]).row.tolist() == [2, 0]
