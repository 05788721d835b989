"""Item factors against a dense SVD, and as the start of an embedding table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking import data


def make_log(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    log = pd.DataFrame({"member": rng.integers(0, 50, 900), "item": [f"i{n}" for n in rng.integers(0, 30, 900)]})
    log["click"] = (rng.random(900) < 0.5).astype(float)
    log["residual"] = log["click"] - 0.4
    return log


@pytest.mark.parametrize("kind", ["taken", "residual"])
def test_equals_a_dense_svd(kind: str) -> None:
    log = make_log()
    made = data.item_factors(log, "member", "item", "click" if kind == "taken" else "residual", dim=5, kind=kind)
    items = made.numbers.as_json()
    if kind == "taken":
        taken = log[log["click"] > 0].assign(one=1.0).pivot_table("one", "member", "item", "max")
        matrix = taken.reindex(columns=items).fillna(0).to_numpy()
        matrix = matrix / np.sqrt(matrix.sum(1) + 5)[:, None] / np.sqrt(matrix.sum(0) + 5)[None, :]
        skip = 1
    else:
        matrix = log.pivot_table("residual", "member", "item", "sum").reindex(columns=items).fillna(0).to_numpy()
        matrix = matrix / np.sqrt((matrix**2).sum(0) + 5)[None, :]
        skip = 0
    _, roots, right = np.linalg.svd(matrix, full_matrices=False)
    expected = right[skip : skip + 5].T * (1 if kind == "taken" else np.sqrt(roots[:5]))
    expected /= np.sqrt(np.mean(expected**2))
    signs = np.sign((expected * made.vectors).sum(0))
    np.testing.assert_allclose(made.vectors, expected * signs, rtol=0, atol=1e-8)
    again = data.item_factors(log, "member", "item", "click" if kind == "taken" else "residual", dim=5, kind=kind)
    assert again.digest == made.digest


def test_half_of_each_kind() -> None:
    log = make_log()
    made = data.item_factors(log, "member", "item", "residual", dim=8, kind="both")
    residual = data.item_factors(log, "member", "item", "residual", dim=4, kind="residual")
    np.testing.assert_allclose(made.vectors[:, 4:], residual.vectors, rtol=0, atol=1e-8)


def test_a_table_starts_from_the_vectors() -> None:
    made = data.item_factors(make_log(), "member", "item", "click", dim=4)
    feature = kr.Id("item", buckets=1000)
    table = made.table(feature, deviation=0.2, dim=6)
    assert table.shape == (1000, 6) and not table[0].any()
    rows = feature.encode(pd.Series(made.numbers.as_json()))
    alone = np.flatnonzero(np.bincount(rows, minlength=1000)[rows] == 1)
    np.testing.assert_allclose(table[rows[alone], :4], 0.2 * made.vectors[alone] / np.sqrt(np.mean(made.vectors**2)), rtol=1e-6)
    assert 0.01 < table[1:].std() < 0.1
    shared = data.ItemFactors("item", ["a", "b"], np.array([[1.0], [3.0]]), np.ones(1), 5.0).table(kr.Id("item", buckets=2), 1.0)
    np.testing.assert_allclose(shared, [[0.0], [2.0 / np.sqrt(5.0)]], rtol=1e-6)  # both in the one row that there is
    with pytest.raises(ValueError, match="at least 4 columns"):
        made.table(feature, dim=3)
    with pytest.raises(ValueError, match="at least 4 columns"):
        made.table(kr.Id("item", buckets=None))


def test_save_and_load(tmp_path: Path) -> None:
    made = data.item_factors(make_log(), "member", "item", "click", dim=4)
    made.save(tmp_path / "factors.npz")
    again = data.ItemFactors.load(tmp_path / "factors.npz")
    assert again.digest == made.digest and again.item == "item"
    vectors, known = again.of_rows(pd.DataFrame({"item": ["i3", "new", None]}))
    assert known.tolist() == [True, False, False] and not vectors[1:].any()
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="no item factors"):
        data.ItemFactors.load(tmp_path / "other.npz")


def test_errors() -> None:
    log = make_log()
    with pytest.raises(ValueError, match="`dim` needs more than"):
        data.item_factors(log, "member", "item", "click", dim=40)
    with pytest.raises(ValueError, match="`kind` must be"):
        data.item_factors(log, "member", "item", "click", kind="svd")
    with pytest.raises(ValueError, match="even with kind='both'"):
        data.item_factors(log, "member", "item", "residual", dim=5, kind="both")
    with pytest.raises(ValueError, match="did you mean 'click'"):
        data.item_factors(log, "member", "item", "clicks")
    with pytest.raises(ValueError, match="must hold finite numbers"):
        data.item_factors(log.assign(click="x"), "member", "item", "click")
