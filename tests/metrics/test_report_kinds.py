"""grade_summary and number_summary against float64 loops and scikit-learn's definitions."""

from __future__ import annotations

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.metrics import grade_summary, number_summary

RNG = np.random.default_rng(0)


def test_grades() -> None:
    grades, shares, groups = RNG.integers(0, 5, 200), RNG.uniform(0.01, 0.99, 200), RNG.integers(0, 30, 200)
    found = grade_summary(grades, shares, groups, levels=4)
    share = grades / 4
    loss = -np.mean(share * np.log(shares) + (1 - share) * np.log(1 - shares))
    rate = share.mean()
    assert found["log_loss"] == pytest.approx(loss, rel=1e-12)
    assert found["normalized_entropy"] == pytest.approx(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)), rel=1e-12)
    assert found["ndcg_at_10"] == kr.metrics.ndcg(grades, shares, groups, k=10).value
    assert found["auc"] == kr.metrics.auc(grades > 0, shares) and found["mrr"] == kr.metrics.mrr(grades > 0, shares, groups).value
    assert found["observed_over_expected"] == pytest.approx(rate / shares.mean())
    edges = np.array_split(np.argsort(shares), 10)
    assert found["calibration_error"] == pytest.approx(np.mean([abs(share[part].mean() - shares[part].mean()) for part in edges]))
    # With one level it is the summary of a binary task.
    one, binary = grade_summary(grades > 2, shares, groups, levels=1), kr.metrics.summary(grades > 2, shares, groups)
    assert list(one) == list(binary) and all(one[name] == pytest.approx(binary[name], rel=1e-12) for name in one)
    constant = grade_summary(grades, np.full(200, rate), groups, levels=4)
    assert constant["normalized_entropy"] == pytest.approx(1.0) and constant["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="`labels`"):
        grade_summary(grades, shares, groups, levels=3)


def test_numbers() -> None:
    labels, values = RNG.normal(size=100) * 5 + 2, RNG.normal(size=100) + 3
    found = number_summary(labels, values)
    assert found["rmse"] == pytest.approx(np.sqrt(((labels - values) ** 2).mean()))
    assert found["mae"] == pytest.approx(np.abs(labels - values).mean())
    assert found["r2"] == pytest.approx(1 - ((labels - values) ** 2).sum() / ((labels - labels.mean()) ** 2).sum())
    assert found["correlation"] == pytest.approx(np.corrcoef(labels, values)[0, 1])
    assert found["observed_over_expected"] == pytest.approx(labels.mean() / values.mean())
    assert np.isnan(number_summary([1.0, 1.0], [1.0, 2.0])["r2"])
    with pytest.raises(ValueError, match="`values`"):
        number_summary([1.0], [np.nan])
