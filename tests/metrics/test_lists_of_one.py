"""Requests in which no order can be wrong, lists of one above all, are in no metric of the order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from keras_ranking import metrics

pytestmark = pytest.mark.one_backend
RANKING = {
    "grouped_auc": metrics.grouped_auc,
    "ndcg": metrics.ndcg,
    "ndcg_at_10": lambda labels, scores, groups: metrics.ndcg(labels, scores, groups, k=10),
    "mrr": metrics.mrr,
}


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("groups", [[1, 2, 3, 4], ["a", "a", "b", "b"]], ids=["one", "equal"])
def test_nothing_to_rank_is_no_value(name: str, groups: Any) -> None:
    labels = [1, 0, 1, 0] if groups[0] == 1 else [1, 1, 0, 0]
    found = RANKING[name](labels, [0.1, 0.2, 0.3, 0.4], groups)
    assert math.isnan(found.value) and found.groups == 0


@pytest.mark.parametrize("name", RANKING)
def test_such_requests_change_no_value(name: str) -> None:
    rng = np.random.default_rng(0)
    labels, scores, groups = (rng.random(60) < 0.4).astype(int), rng.random(60).round(1), np.repeat(np.arange(12), 5)
    wanted = RANKING[name](labels, scores, groups)
    assert 5 < wanted.groups <= 12 and wanted.value < 0.95
    alone = np.arange(100, 140)
    more = RANKING[name](np.r_[labels, np.ones(40)], np.r_[scores, rng.random(40)], np.r_[groups, alone])
    assert more == wanted
    order = rng.permutation(100)
    mixed = RANKING[name](np.r_[labels, np.ones(40)][order], np.r_[scores, rng.random(40)][order], np.r_[groups, alone][order])
    assert mixed.groups == wanted.groups and mixed.value == pytest.approx(wanted.value, rel=1e-12)


def test_by_hand() -> None:
    # Request 1: a negative above the positive. Request 2: one clicked item. Request 3: two clicked items.
    labels, scores, groups = [0, 1, 1, 1, 1], [0.9, 0.8, 0.1, 0.3, 0.2], [1, 1, 2, 3, 3]
    assert metrics.mrr(labels, scores, groups) == (0.5, 1)
    assert metrics.ndcg(labels, scores, groups) == (pytest.approx(1 / math.log2(3)), 1)
    # Grades: equal ones have no order, different ones have, without a 0 as well.
    assert metrics.ndcg([2, 2], [0.1, 0.2], ["x", "x"]).groups == 0
    worst = (1 / 1 + 3 / math.log2(3)) / (3 / 1 + 1 / math.log2(3))
    assert metrics.ndcg([1, 2], [0.2, 0.1], ["x", "x"]) == (pytest.approx(worst), 1)


def test_the_summary_of_a_log_of_one_row_a_request() -> None:
    found = metrics.summary([1, 0, 1, 0], [0.9, 0.2, 0.7, 0.4], [1, 2, 3, 4])
    assert all(math.isnan(found[name]) for name in ("impression_auc", "ndcg_at_10", "mrr"))
    assert found["auc"] == 1.0 and math.isfinite(found["log_loss"])
