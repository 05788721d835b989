"""The array functions against loops over pairs, scikit-learn and keras-rs."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking import metrics

pytestmark = pytest.mark.one_backend


def scored(seed: int, rows: int = 400, groups: int = 60, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities (with ties) and groups, unordered."""
    rng = np.random.default_rng(seed)
    chance = rng.random(rows)
    if ties:
        chance = np.round(chance, 1).clip(0.05, 0.95)
    return (rng.random(rows) < chance).astype(np.int64), chance, rng.integers(0, groups, rows)


def pair_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    weights = np.ones(len(labels)) if weights is None else weights
    top = bottom = 0.0
    for i, j in itertools.product(range(len(labels)), repeat=2):
        if labels[i] == 1 and labels[j] == 0:
            w = weights[i] * weights[j]
            bottom += w
            top += w * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return top / bottom if bottom else math.nan


def orders(scores: np.ndarray) -> list[list[int]]:
    """All orders of the items by descending score, with tied items in any order."""
    ranked = sorted(itertools.permutations(range(len(scores))))
    return [list(p) for p in ranked if all(scores[a] >= scores[b] for a, b in itertools.pairwise(p))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["int", "text", "float", "hash"])
def test_group_aucs_equal_the_pairs(seed: int, weighted: bool, kind: str) -> None:
    labels, scores, groups = scored(seed)
    rng = np.random.default_rng(seed)
    weights = rng.random(len(labels)) * (rng.random(len(labels)) < 0.8) if weighted else None
    names: Any = {
        "int": groups - 7,
        "text": np.array([f"r{g}" for g in groups]),
        "float": groups / 8,
        "hash": groups.astype(np.int64) * 2**56,
    }[kind]
    wanted = {g: pair_auc(labels[m], scores[m], None if weights is None else weights[m]) for g in set(groups) for m in [groups == g]}
    wanted = {g: value for g, value in wanted.items() if not math.isnan(value)}
    found = metrics.per_request_auc(labels, scores, names, weights)
    assert len(found.auc) == len(wanted) > 10
    for value, row in zip(found.auc, found.row):
        assert value == pytest.approx(wanted[groups[row]], rel=1e-12)
    mean = metrics.grouped_auc(labels, scores, names, weights)
    assert mean.groups == len(wanted)
    assert mean.value == pytest.approx(np.mean(list(wanted.values())), rel=1e-12)
    # Control: ties have an effect here.
    untied = metrics.grouped_auc(labels, scores + 1e-6 * labels, names, weights)
    assert untied.value > mean.value + 0.01


def test_results_do_not_depend_on_the_order_of_the_rows() -> None:
    labels, scores, groups = scored(1)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    first, second = metrics.summary(labels, scores, groups), metrics.summary(labels[shuffled], scores[shuffled], groups[shuffled])
    assert first == pytest.approx(second, rel=1e-12)
    found = metrics.per_request_auc(labels[shuffled], scores[shuffled], groups[shuffled])
    np.testing.assert_array_equal(groups[shuffled][found.row], groups[metrics.per_request_auc(labels, scores, groups).row])


def test_two_models_on_the_same_rows_have_the_same_units() -> None:
    labels, scores, groups = scored(2)
    a, b = (metrics.per_request_auc(labels, s, groups) for s in (scores, -scores))
    np.testing.assert_array_equal(a.row, b.row)
    np.testing.assert_allclose(a.auc, 1 - b.auc, atol=1e-15)


def test_global_metrics_equal_scikit_learn() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    labels, chance, _ = scored(3, rows=3000)
    weights = np.random.default_rng(0).random(3000)
    for w in (None, weights):
        assert metrics.auc(labels, chance, w) == pytest.approx(sklearn_metrics.roc_auc_score(labels, chance, sample_weight=w), rel=1e-12)
        assert metrics.log_loss(labels, chance, w) == pytest.approx(sklearn_metrics.log_loss(labels, chance, sample_weight=w), rel=1e-12)
    rate = labels.mean()
    base = sklearn_metrics.log_loss(labels, np.full(3000, rate))
    assert metrics.normalized_entropy(labels, chance) == pytest.approx(sklearn_metrics.log_loss(labels, chance) / base, rel=1e-12)
    assert metrics.normalized_entropy(labels, np.full(3000, rate)) == pytest.approx(1, rel=1e-12)
    rate = np.average(labels, weights=weights)
    assert metrics.normalized_entropy(labels, np.full(3000, rate), weights) == pytest.approx(1, rel=1e-12)
    assert metrics.observed_over_expected(labels, chance, weights) == pytest.approx((labels @ weights) / (chance @ weights), rel=1e-12)


def test_weights_repeat_rows() -> None:
    labels, chance, groups = scored(4)
    times = np.random.default_rng(0).integers(0, 4, len(labels))
    repeated = [np.repeat(x, times) for x in (labels, chance, groups)]
    for function in (metrics.auc, metrics.log_loss, metrics.normalized_entropy, metrics.calibration_error, metrics.observed_over_expected):
        assert function(labels, chance, times) == pytest.approx(function(*repeated[:2]), rel=1e-9), function.__name__
    assert metrics.grouped_auc(labels, chance, groups, times) == pytest.approx(metrics.grouped_auc(*repeated), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 3, None])
def test_ndcg_and_mrr_are_expectations_over_all_orders(seed: int, k: int | None) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(12), rng.integers(1, 7, 12))
    scores = rng.integers(0, 3, len(groups)) / 2
    grades = rng.integers(0, 3, len(groups)) * (rng.random(len(groups)) < 0.5)
    gains, firsts = [], []
    for g in range(12):
        y, s = grades[groups == g], scores[groups == g]
        if len(set(y)) < 2:  # no order can be wrong
            continue
        discount = 1 / np.log2(np.arange(2, len(y) + 2))
        discount[len(y) if k is None else k :] = 0
        best = np.sort(2.0**y - 1)[::-1] @ discount
        shown = orders(s)
        gains.append(np.mean([(2.0 ** y[order] - 1) @ discount for order in shown]) / best)
        if (y == 0).any():
            firsts.append(np.mean([1 / (1 + np.flatnonzero(y[order] > 0)[0]) for order in shown]))
    found = metrics.ndcg(grades, scores, groups, k)
    assert found.groups == len(gains)
    assert found.value == pytest.approx(np.mean(gains), rel=1e-12)
    assert metrics.mrr((grades > 0).astype(int), scores, groups) == pytest.approx((np.mean(firsts), len(firsts)), rel=1e-12)


@pytest.mark.parametrize("k", [3, 10])
def test_ndcg_and_mrr_equal_keras_rs(k: int) -> None:
    import keras_rs

    rng = np.random.default_rng(k)
    length = rng.integers(2, 16, 50)
    shown = np.arange(16) < length[:, None]
    labels = (rng.random((50, 16)) < 0.3) & shown
    labels[:, :2] = [True, False]  # both labels in each list: others are ignored here, and count as 0 or 1 there
    scores = rng.permuted(np.arange(50 * 16)).reshape(50, 16).astype(np.float32) / 100
    groups = np.repeat(np.arange(50)[:, None], 16, axis=1)
    flat = labels[shown].astype(int), scores[shown], groups[shown]
    truth = {"labels": labels.astype(np.float32), "mask": shown}
    assert metrics.ndcg(*flat, k=k).value == pytest.approx(float(keras_rs.metrics.NDCG(k=k)(truth, scores)), rel=1e-5)
    assert metrics.mrr(*flat).value == pytest.approx(float(keras_rs.metrics.MeanReciprocalRank()(truth, scores)), rel=1e-5)
    # The difference: a list without a positive is ignored here, and counts as 0 there.
    labels[:10] = False
    flat = labels[shown].astype(int), scores[shown], groups[shown]
    truth = {"labels": labels.astype(np.float32), "mask": shown}
    found = metrics.ndcg(*flat, k=k)
    assert found.groups == 40
    assert found.value * 40 / 50 == pytest.approx(float(keras_rs.metrics.NDCG(k=k)(truth, scores)), rel=1e-5)


def test_calibration_error_is_that_of_equal_bins() -> None:
    labels, chance, _ = scored(5, rows=1000, ties=False)
    order = np.argsort(chance)
    wanted = sum(abs((labels[part] - chance[part]).sum()) for part in np.array_split(order, 10)) / 1000
    assert metrics.calibration_error(labels, chance) == pytest.approx(wanted, rel=1e-12)
    assert metrics.calibration_error(labels, chance, bins=1) == pytest.approx(abs((labels - chance).mean()), rel=1e-12)
    # Control: bins of equal width, or higher probabilities, give another value.
    assert metrics.calibration_error(labels, np.sqrt(chance)) > wanted + 0.1
    # Equal probabilities share one bin, for any order of the rows.
    assert metrics.calibration_error([0, 1, 0, 1], [0.5] * 4) == 0
    assert metrics.calibration_error([0, 0, 1, 1], [0.5] * 4) == 0


def test_what_is_not_defined_is_nan() -> None:
    ones, zeros, chance, groups = np.ones(4), np.zeros(4), np.full(4, 0.5), [1, 1, 2, 2]
    for labels in (ones, zeros):
        assert math.isnan(metrics.auc(labels, chance))
        assert math.isnan(metrics.normalized_entropy(labels, chance))
        assert math.isnan(metrics.grouped_auc(labels, chance, groups).value)
        assert metrics.grouped_auc(labels, chance, groups).groups == 0
    for function in (metrics.ndcg, metrics.mrr):
        assert math.isnan(function(zeros, chance, groups).value)
        assert function(zeros, chance, groups).groups == 0
    assert math.isnan(metrics.observed_over_expected(zeros, zeros))
    assert metrics.observed_over_expected(ones, zeros) == math.inf
    assert metrics.log_loss([1, 1], [0.5, 0.0]) == math.inf
    assert metrics.log_loss([1, 0], [1.0, 0.0]) == 0
    assert metrics.log_loss([1, 1], [0.5, 0.0], weights=[1, 0]) == pytest.approx(math.log(2))
    result = metrics.summary(zeros, chance, groups)
    assert {key for key, value in result.items() if math.isnan(value)} == {
        "auc", "impression_auc", "ndcg_at_10", "mrr", "normalized_entropy",
    }  # fmt: skip


def test_summary_has_exactly_its_keys() -> None:
    labels, chance, groups = scored(6)
    result = metrics.summary(labels, chance, groups)
    assert list(result) == [
        "auc", "impression_auc", "ndcg_at_10", "mrr", "log_loss", "normalized_entropy", "calibration_error", "observed_over_expected",
    ]  # fmt: skip
    assert all(type(value) is float for value in result.values())
    assert result["impression_auc"] == metrics.grouped_auc(labels, chance, groups).value
    assert result["ndcg_at_10"] == metrics.ndcg(labels, chance, groups, 10).value


@pytest.mark.parametrize("seed", range(4))
def test_summary_sorts_the_scores_once_and_has_the_bits_of_each_metric(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, chance, groups = scored(seed)
    chance = np.round(chance, 1 + seed)  # many ties, and few
    each = {
        "auc": metrics.auc(labels, chance),
        "impression_auc": metrics.grouped_auc(labels, chance, groups).value,
        "ndcg_at_10": metrics.ndcg(labels, chance, groups, k=10).value,
        "mrr": metrics.mrr(labels, chance, groups).value,
        "log_loss": metrics.log_loss(labels, chance),
        "normalized_entropy": metrics.normalized_entropy(labels, chance),
        "calibration_error": metrics.calibration_error(labels, chance),
        "observed_over_expected": metrics.observed_over_expected(labels, chance),
    }
    sorts: list[int] = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda *a, **k: sorts.append(0) or argsort(*a, **k))
    assert metrics.summary(labels, chance, groups) == each
    assert len(sorts) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auc([0, 1], [0.1, math.nan]), "`scores` must not be NaN. Received: nan at row 1"),
        (lambda: metrics.grouped_auc([0, 1], [0.1, math.nan], [1, 1], [1, 0]), "`scores` must not be NaN"),
        (lambda: metrics.ndcg([0, 1], [math.nan, 0.1], [1, 1]), "`scores` must not be NaN. Received: nan at row 0"),
        (lambda: metrics.mrr([0, 1], [math.nan, 0.1], [1, 1]), "`scores` must not be NaN"),
        (lambda: metrics.summary([0, 1], [0.1, math.nan], [1, 1]), "NaN|lie in"),
        (lambda: metrics.log_loss([0, 1], [0.1, 1.1]), r"`probabilities` must lie in \[0, 1\]. Received: 1.1 at row 1"),
        (lambda: metrics.log_loss([0, 1], [0.1, math.nan]), r"Received: nan at row 1"),
        (lambda: metrics.auc([0, 2], [0.1, 0.2]), "`labels` must be 0 or 1. Received: 2.0 at row 1"),
        (lambda: metrics.auc([0, math.nan], [0.1, 0.2]), "`labels` must not be NaN. Received: nan at row 1"),
        (lambda: metrics.auc([], []), "`labels` must have at least one row"),
        (lambda: metrics.auc([0, 1, 1], [0.1, 0.2]), "`scores` must have as many rows as the others. Received: 2 and 3"),
        (lambda: metrics.auc([[0, 1]], [[0.1, 0.2]]), "`labels` must be one-dimensional"),
        (lambda: metrics.auc(["a", "b"], [0.1, 0.2]), "`labels` must hold numbers"),
        (lambda: metrics.auc([0, 1], [0.1, 0.2], [1, -1]), "`weights` must lie in .*Received: -1.0 at row 1"),
        (lambda: metrics.auc([0, 1], [0.1, 0.2], [0, 0]), "`weights` must not all be 0"),
        (lambda: metrics.grouped_auc([0, 1], [0.1, 0.2], [1]), "`groups` must be one-dimensional with 2 rows"),
        (lambda: metrics.grouped_auc([0, 1], [0.1, 0.2], [1, math.nan]), "`groups` must not be missing. Received: nan at row 1"),
        (lambda: metrics.ndcg([0, -1], [0.1, 0.2], [1, 1]), "`labels` must lie in .*Received: -1.0 at row 1"),
        (lambda: metrics.ndcg([0, 1], [0.1, 0.2], [1, 1], k=0), "`k` must be a positive integer"),
        (lambda: metrics.calibration_error([0, 1], [0.1, 0.2], bins=0), "`bins` must be a positive integer"),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_bootstrap_coverage_with_clusters() -> None:
    rng = np.random.default_rng(0)
    covered, wide, narrow = 0, [], []
    for seed in range(100):
        member = np.repeat(np.arange(60), 5)
        common = np.repeat(rng.normal(size=60), 5) * 0.1  # common to the requests of a member
        noise = rng.random(300)
        result = metrics.paired_bootstrap(noise, noise + 0.02 + common, member, samples=200, seed=seed)
        covered += result.low <= 0.02 <= result.high
        wide.append(result.deviation)
        narrow.append(metrics.paired_bootstrap(noise, noise + 0.02 + common, samples=200, seed=seed).deviation)
    assert 86 <= covered <= 99  # 95 %, binomial sd 2.2; percentile intervals of small samples are slightly too narrow
    assert np.mean(wide) == pytest.approx(0.1 / math.sqrt(60), rel=0.1)
    # Control: intervals from single requests are too narrow.
    assert np.mean(narrow) < 0.6 * np.mean(wide)


def test_the_bootstrap_is_repeatable_and_exact_where_it_can_be() -> None:
    a, b = np.random.default_rng(0).random((2, 50))
    first = metrics.paired_bootstrap(a, b, np.arange(50) // 3, seed=1)
    assert first == metrics.paired_bootstrap(a, b, np.arange(50) // 3, seed=1)
    assert first != metrics.paired_bootstrap(a, b, np.arange(50) // 3, seed=2)
    assert first.difference == pytest.approx((b - a).mean(), rel=1e-12)
    assert (first.units, first.clusters) == (50, 17)
    same = metrics.paired_bootstrap(a, a)
    assert (same.difference, same.low, same.high, same.deviation) == (0, 0, 0, 0)
    for arguments, message in [
        ((a, b[:9]), "`per_unit_b` must have as many rows"),
        ((a, np.full(50, np.nan)), "`per_unit_b` must lie in"),
        ((a, b, np.zeros(50)), "at least two clusters"),
        ((a, b, np.zeros(5)), "`clusters` must be one-dimensional with 50 rows"),
        ((a, b, None, 0), "`samples` must be a positive integer"),
        ((a, b, None, 10, 1.0), "`confidence` must lie strictly between"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.paired_bootstrap(*arguments)


@pytest.mark.slow
def test_a_million_rows_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    rows = 1_000_000
    groups, scores, labels = rng.integers(0, rows // 12, rows), rng.normal(size=rows), rng.random(rows) < 0.09
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        metrics.grouped_auc(labels, scores, groups)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 2


def test_a_constant_score_equals_a_random_order_on_real_lists(data_folder: Path) -> None:
    import pandas as pd

    log = pd.read_csv(data_folder / "ebnerd_behaviors.csv.gz", usecols=["split", "article_ids_inview", "article_ids_clicked"], dtype=str)
    log = log[log["split"] == "validation"]
    shown, clicked = log["article_ids_inview"].str.split(), log["article_ids_clicked"].str.split()
    groups = np.repeat(np.arange(len(log)), shown.str.len())
    labels = np.concatenate([np.isin(s, c) for s, c in zip(shown, clicked)]).astype(int)
    constant = np.full(len(labels), labels.mean())
    # The published value of one random order over these 13,277 lists, rounded to three digits.
    assert len(labels) == 159_537
    assert metrics.mrr(labels, constant, groups).value == pytest.approx(0.311, abs=0.004)
    assert metrics.ndcg(labels, constant, groups, 5).value == pytest.approx(0.341, abs=0.004)
    assert metrics.ndcg(labels, constant, groups, 10).value == pytest.approx(0.428, abs=0.004)
    assert metrics.grouped_auc(labels, constant, groups).value == 0.5
    assert metrics.log_loss(labels, constant) == pytest.approx(0.2876, abs=0.0005)
