"""The weighted sum of scores, and what the first items were worth, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from keras_ranking import metrics

pytestmark = pytest.mark.one_backend


def looped(worth, scores, groups, k):
    """Mean worth of the first k, over all orders of tied items."""
    found = []
    for group in np.unique(groups):
        u, s = worth[groups == group], scores[groups == group]
        total, left = 0.0, min(k, len(u))
        for value in np.sort(np.unique(s))[::-1]:
            tied = u[s == value]
            taken = min(left, len(tied))
            total, left = total + taken * tied.mean(), left - taken
        found.append(total / min(k, len(u)))
    return np.mean(found), len(found)


@pytest.mark.parametrize("k", [1, 2, 5, 50])
def test_realised_utility(k):
    rng = np.random.default_rng(k)
    groups, scores, worth = rng.integers(0, 40, 300), rng.integers(0, 6, 300) / 5, rng.standard_normal(300)
    value, count = looped(worth, scores, groups, k)
    found = metrics.realised_utility(worth, scores, groups, k)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    assert found.groups == count
    order = rng.permutation(300)
    np.testing.assert_allclose(metrics.realised_utility(worth[order], scores[order], groups[order], k).value, value, rtol=1e-12)
    if k < 5:  # control: another order of the items has another value
        assert abs(metrics.realised_utility(worth, -scores, groups, k).value - value) > 1e-3


def test_utility_score():
    rng = np.random.default_rng(0)
    scores = {task: rng.random(9) for task in ("click", "like", "other")}
    found = metrics.utility_score(scores, {"like": 4.0, "click": -0.5})
    np.testing.assert_allclose(found, 4.0 * scores["like"] - 0.5 * scores["click"], rtol=1e-15)


@pytest.mark.parametrize(
    ("utility", "message"), [({}, "at least one weight"), ({"x": 1.0}, "Received: 'x'"), ({"click": np.inf}, "finite numbers as weights")]
)
def test_mistakes(utility, message):
    with pytest.raises(ValueError, match=message):
        metrics.utility_score({"click": [0.1]}, utility)


def test_no_row_and_a_bad_k():
    with pytest.raises(ValueError, match="at least one row"):
        metrics.realised_utility([], [], [], 3)
    with pytest.raises(ValueError, match=r"`k` must be a positive integer\. Received: k=0"):
        metrics.realised_utility([1.0], [1.0], [1], 0)
