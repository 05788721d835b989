"""Weights of rows in all metrics: a row of weight 2 counts as two equal rows, in float64; scikit-learn as the peer."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking import metrics

pytestmark = pytest.mark.quickest
N = 400
OF_LISTS = ("ndcg_at_10", "mrr")  # which take no weights


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    chance = np.round(rng.uniform(0.02, 0.98, N), 2)  # with ties
    groups = np.sort(rng.integers(0, 60, N))
    found = {"labels": (rng.random(N) < chance * 0.7).astype(int), "chance": chance, "groups": groups, "members": groups // 3}
    return {**found, "weights": rng.integers(0, 4, N).astype(float), "grades": rng.integers(0, 5, N), "numbers": rng.normal(size=N)}


def repeated(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.repeat(values, rows["weights"].astype(int)) for name, values in rows.items()}


@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_a_weight_counts_as_equal_rows(kind: str, rows: dict[str, np.ndarray]) -> None:
    many, of, summary = repeated(rows), "labels", metrics.summary
    if kind == "graded":
        of, summary = "grades", partial(metrics.grade_summary, levels=4)
    found = summary(rows[of], rows["chance"], rows["groups"], weights=rows["weights"])
    want = summary(many[of], many["chance"], many["groups"])
    plain = summary(rows[of], rows["chance"], rows["groups"])
    for name, value in found.items():
        if name in OF_LISTS:
            assert value == plain[name]
        else:
            assert value == pytest.approx(want[name], rel=1e-9), name
            assert abs(value - plain[name]) > 1e-5, f"control: {name} is another one without weights"
    halves = summary(rows[of], rows["chance"], rows["groups"], weights=rows["weights"] / 8)
    assert halves == pytest.approx(found, rel=1e-9)  # only their ratio counts


def test_a_weight_counts_as_equal_rows_of_numbers(rows: dict[str, np.ndarray]) -> None:
    many = repeated(rows)
    found = metrics.number_summary(rows["numbers"], rows["chance"], rows["weights"])
    assert found == pytest.approx(metrics.number_summary(many["numbers"], many["chance"]), rel=1e-9)
    assert found["rmse"] != pytest.approx(metrics.number_summary(rows["numbers"], rows["chance"])["rmse"], rel=1e-4)


def test_scikit_learn_says_the_same(rows: dict[str, np.ndarray]) -> None:
    peer = pytest.importorskip("sklearn.metrics")
    weights = np.random.default_rng(1).uniform(0.1, 3.0, N)
    found = metrics.summary(rows["labels"], rows["chance"], rows["groups"], weights)
    given: dict[str, Any] = {"sample_weight": weights}
    assert found["auc"] == pytest.approx(peer.roc_auc_score(rows["labels"], rows["chance"], **given), rel=1e-9)
    assert found["log_loss"] == pytest.approx(peer.log_loss(rows["labels"], rows["chance"], **given), rel=1e-9)
    numbers = metrics.number_summary(rows["numbers"], rows["chance"], weights)
    assert numbers["rmse"] ** 2 == pytest.approx(peer.mean_squared_error(rows["numbers"], rows["chance"], **given), rel=1e-9)
    assert numbers["mae"] == pytest.approx(peer.mean_absolute_error(rows["numbers"], rows["chance"], **given), rel=1e-9)
    assert numbers["r2"] == pytest.approx(peer.r2_score(rows["numbers"], rows["chance"], **given), rel=1e-9)
    each = []
    for group in np.unique(rows["groups"]):
        of = rows["groups"] == group
        if len(set(rows["labels"][of])) == 2:
            each.append(peer.roc_auc_score(rows["labels"][of], rows["chance"][of], sample_weight=weights[of]))
    assert found["impression_auc"] == pytest.approx(np.mean(each), rel=1e-9)


def test_intervals_are_those_of_equal_rows(rows: dict[str, np.ndarray]) -> None:
    many, names = repeated(rows), ["auc", "impression_auc", "log_loss", "normalized_entropy", "observed_over_expected"]
    given = rows["labels"], rows["chance"], rows["groups"], rows["members"]
    found = metrics.summary_intervals(*given, names=names, samples=40, weights=rows["weights"])
    of_many = many["labels"], many["chance"], many["groups"], many["members"]
    want = metrics.summary_intervals(*of_many, names=names, samples=40)
    plain = metrics.summary_intervals(*given, names=names, samples=40)
    whole = metrics.summary(*given[:3], weights=rows["weights"])
    assert set(rows["members"]) == set(many["members"])  # the same draws
    for name in names:
        assert found[name] == pytest.approx(want[name], rel=1e-9)
        assert found[name].value == pytest.approx(whole[name], rel=1e-9)
        assert found[name].low != pytest.approx(plain[name].low, rel=1e-5), "control"
    other = 1 - rows["chance"]
    apart = metrics.summary_differences(given[0], other, *given[1:], samples=40, weights=rows["weights"])["log_loss"]
    of_other = metrics.summary(given[0], other, given[2], weights=rows["weights"])
    assert apart.value == pytest.approx(whole["log_loss"] - of_other["log_loss"], rel=1e-9)


def test_a_wrong_probability_of_a_row_without_weight_costs_nothing() -> None:
    given = [1, 0, 1], [0.0, 0.2, 0.9], [1, 1, 1]
    assert np.isfinite(metrics.summary(*given, weights=[0, 1, 1])["log_loss"])
    assert metrics.summary(*given)["log_loss"] == np.inf
    found = metrics.summary_intervals(*given, ["a", "a", "a"], names=["log_loss"], weights=[0, 1, 1])["log_loss"]
    assert found.value == pytest.approx(metrics.summary(*given, weights=[0, 1, 1])["log_loss"], rel=1e-12)
    assert np.isfinite(metrics.grade_summary([2, 0, 1], [0.0, 0.2, 0.9], [1, 1, 1], levels=2, weights=[0, 1, 1])["log_loss"])
    with pytest.raises(ValueError, match="`weights` must not all be 0"):
        metrics.summary(*given, weights=[0, 0, 0])


def test_a_reliability_diagram_with_weights(rows: dict[str, np.ndarray]) -> None:
    pytest.importorskip("matplotlib")

    def points(**settings: Any) -> np.ndarray:
        line = kr.plots.reliability(rows["labels"], rows["chance"], bins=4, **settings).axes[0].lines[0]
        return np.asarray(line.get_xydata())

    weights = rows["weights"]
    order = np.argsort(rows["chance"], kind="stable")
    parts = np.array_split(order[weights[order] > 0], 4)
    want = [[np.average(values[part], weights=weights[part]) for values in (rows["chance"], rows["labels"])] for part in parts]
    np.testing.assert_allclose(points(weights=weights), want, rtol=1e-9)
    assert np.abs(points() - want).max() > 1e-3
