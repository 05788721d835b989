"""Bootstrap intervals of the summary, against metrics of rows that were really drawn, and against planted differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_ranking.metrics import log_loss, summary, summary_differences, summary_intervals

pytestmark = pytest.mark.one_backend

NAMES = ("auc", "impression_auc", "ndcg_at_10", "mrr", "log_loss", "normalized_entropy", "observed_over_expected")


def log_of(members: int, seed: int, effect: float = 1.0) -> dict[str, np.ndarray]:
    """Three requests of four rows for each member, members of different click rates, scores rounded so that some are tied."""
    random = np.random.default_rng(seed)
    member = np.repeat(np.arange(members), 12)
    taste = np.repeat(random.normal(size=members), 12)
    item = random.normal(size=member.size)
    labels = (random.random(member.size) < 1 / (1 + np.exp(-(taste + item - 1)))).astype(int)
    good = np.round(1 / (1 + np.exp(-(effect * item - 1))), 2).clip(0.01, 0.99)
    return {"labels": labels, "good": good, "groups": np.repeat(np.arange(members * 3), 4), "members": member}


def drawn_by_hand(log: dict[str, np.ndarray], samples: int, seed: int) -> dict[str, list[float]]:
    """`summary` of the rows of the members drawn: a member drawn twice is there twice, with requests of its own."""
    count = int(log["members"].max()) + 1
    draws, found = np.random.default_rng(seed), {name: [] for name in NAMES}  # type: ignore[var-annotated]
    for drawn in draws.integers(0, count, (samples, count)):
        rows = np.concatenate([np.flatnonzero(log["members"] == member) for member in drawn])
        groups = np.concatenate([log["groups"][log["members"] == member] + 10_000 * copy for copy, member in enumerate(drawn)])
        values = summary(log["labels"][rows], log["good"][rows], groups)
        for name in NAMES:
            found[name].append(values[name])
    return found


def test_intervals_are_those_of_rows_drawn_by_hand() -> None:
    log = log_of(9, seed=1)
    found = summary_intervals(log["labels"], log["good"], log["groups"], log["members"], samples=40, seed=3)
    expected, whole = drawn_by_hand(log, 40, seed=3), summary(log["labels"], log["good"], log["groups"])
    assert set(found) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(found[name], [whole[name], *np.quantile(expected[name], [0.025, 0.975])], rtol=1e-12)


def test_control_rows_drawn_one_by_one_have_a_narrower_interval() -> None:
    """Members differ in their click rate: taking rows for independent makes the interval of observed over expected too narrow."""
    log = log_of(60, seed=2)
    both = [
        summary_intervals(log["labels"], log["good"], groups, clusters, samples=300)["observed_over_expected"]
        for groups, clusters in ((log["groups"], log["members"]), (np.arange(len(log["labels"])), np.arange(len(log["labels"]))))
    ]
    assert both[0].high - both[0].low > 1.5 * (both[1].high - both[1].low)


def test_a_difference_of_models_is_paired() -> None:
    log = log_of(80, seed=4)
    worse = np.round(0.1 * log["good"] + 0.9 * np.random.default_rng(5).permutation(log["good"]), 3)
    args = (log["groups"], log["members"])
    found = summary_differences(log["labels"], worse, log["good"], *args, samples=200)
    assert found["impression_auc"].low > 0 and found["log_loss"].high < 0
    apart = [summary_intervals(log["labels"], scores, *args, samples=200)["log_loss"] for scores in (worse, log["good"])]
    np.testing.assert_allclose(found["log_loss"].value, apart[1].value - apart[0].value, rtol=1e-9)
    assert found["log_loss"].high - found["log_loss"].low < sum(one.high - one.low for one in apart)
    same = summary_differences(log["labels"], worse, worse, *args, samples=20)
    assert all(one == (0.0, 0.0, 0.0) for one in same.values())


def test_scores_rank_and_probabilities_are_measured() -> None:
    log = log_of(20, seed=6)
    flat = np.full(len(log["good"]), 0.3)
    found = summary_intervals(log["labels"], flat, log["groups"], log["members"], scores=log["good"], samples=20)
    assert found["auc"].value == summary(log["labels"], log["good"], log["groups"])["auc"]
    assert found["log_loss"].value == pytest.approx(log_loss(log["labels"], flat), rel=1e-12)


def test_what_is_undefined_is_nan() -> None:
    one = summary_intervals([1, 0], [0.6, 0.3], ["r", "r"], ["m", "m"])
    assert one["auc"].value == 1.0 and np.isnan(one["auc"].low)
    same = summary_intervals([0, 0], [0.6, 0.3], ["r", "s"], ["m", "n"])
    assert np.isnan(same["auc"].value) and np.isnan(same["normalized_entropy"].value) and same["log_loss"].low > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": ["m", "n"]}, "one member for all rows of a request"),
        ({"samples": 0}, "`samples` must be a positive integer"),
        ({"confidence": 1.0}, "strictly between 0 and 1"),
        ({"probabilities": [0.5, 1.5]}, "must lie in"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    given = {"labels": [1, 0], "probabilities": [0.6, 0.3], "groups": ["r", "r"], "clusters": ["m", "m"]}
    with pytest.raises(ValueError, match=message):
        summary_intervals(**{**given, **change})
