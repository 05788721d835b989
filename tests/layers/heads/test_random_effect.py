"""RandomEffect and the fit of its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import RandomEffect, fit_random_effect
from tests.layers.common import numpy, run_layer_checks


def log_() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    ids = rng.zipf(1.5, 3000) % 200 * 7
    offsets = rng.normal(-2, 2, 3000)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-offsets - np.sin(ids)))).astype("float64")
    return {"ids": ids, "labels": labels, "offsets": offsets, "weights": rng.uniform(0, 3, 3000)}


def derivative(b: float, y: np.ndarray, o: np.ndarray, w: np.ndarray, l2: float) -> float:
    return float((w * (1 / (1 + np.exp(-(o + b))) - y)).sum() + l2 * b)


def root(y: np.ndarray, o: np.ndarray, w: np.ndarray, l2: float) -> float:
    """Bisection for one id."""
    low, high = -1e4, 1e4
    with np.errstate(over="ignore"):
        for _ in range(120):
            middle = (low + high) / 2
            low, high = (middle, high) if derivative(middle, y, o, w, l2) < 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.quickest
@pytest.mark.parametrize("l2", [1e-3, 1.0, 100.0])
def test_fit_against_bisection_per_id(l2: float) -> None:
    data = log_()
    fit = fit_random_effect(**data, l2=l2)
    np.testing.assert_array_equal(fit.ids, np.unique(data["ids"]))
    want = []
    for one in fit.ids:
        rows = data["ids"] == one
        want.append(root(data["labels"][rows], data["offsets"][rows], data["weights"][rows], l2))
    np.testing.assert_allclose(fit.effects, want, rtol=1e-8, atol=1e-9)
    without = fit_random_effect(data["ids"], data["labels"], np.zeros(3000), l2, data["weights"])
    assert np.abs(without.effects - want).max() > 0.1  # control: the offset has an effect


@pytest.mark.quickest
def test_fit_of_hard_cases() -> None:
    """Separable labels, large offsets of both signs, weights of zero: without bisection, Newton diverges on these."""
    ids = np.array(["a", "a", "b", "c", "d", "e"])
    labels = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    offsets = np.array([0.0, 1.0, 40.0, -300.0, 900.0, 0.0])
    weights = np.array([1.0, 1.0, 1.0, 1e6, 5.0, 0.0])
    for l2 in (1e-6, 1.0):
        fit = fit_random_effect(ids, labels, offsets, l2, weights)
        for i, one in enumerate(fit.ids):
            rows = ids == one
            np.testing.assert_allclose(fit.effects[i], _wide_root(labels[rows], offsets[rows], weights[rows], l2), rtol=1e-7, atol=1e-9)
        assert fit.effects[4] == 0


def _wide_root(y: np.ndarray, o: np.ndarray, w: np.ndarray, l2: float) -> float:
    low, high = -1e13, 1e13
    with np.errstate(over="ignore"):
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if derivative(middle, y, o, w, l2) < 0 else (low, middle)
    return (low + high) / 2


def test_precision_and_shrinkage() -> None:
    data = log_()
    fit, tight = (fit_random_effect(**data, l2=l2) for l2 in (1.0, 1e6))
    rows = data["ids"] == fit.ids[0]
    b, step = fit.effects[0], 1e-5
    slopes = [derivative(b + d, *(data[name][rows] for name in ("labels", "offsets", "weights")), 1.0) for d in (-step, step)]
    assert fit.precision[0] == pytest.approx((slopes[1] - slopes[0]) / (2 * step), rel=1e-6)
    assert np.abs(tight.effects).max() < 0.01


def test_calibrates_a_large_id() -> None:
    data = {name: column for name, column in log_().items() if name != "weights"}
    fit = fit_random_effect(**data, l2=1e-9)
    largest = np.bincount(data["ids"]).argmax()
    rows = data["ids"] == largest
    p = 1 / (1 + np.exp(-data["offsets"][rows] - fit.effects[fit.ids == largest]))
    assert p.sum() == pytest.approx(data["labels"][rows].sum(), rel=1e-6)


def make(**settings: Any) -> RandomEffect:
    return RandomEffect(30, **settings)


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"inputs": rng.normal(size=(4, 6)).astype("float32"), "ids": rng.integers(0, 30, (4, 6)).astype("int32")}


def test_common(tmp_path: Path) -> None:
    run_layer_checks(make, inputs(), tmp_path, mixed_dtype="float32")


def test_reference_and_unseen_ids_add_exactly_zero() -> None:
    layer, x = make(), inputs()
    layer.build((4, 6))
    effects = np.random.default_rng(1).normal(size=30).astype("float32")  # row 0 too: it is not used, whatever its value
    layer.effects.assign(effects)
    ids = x["ids"].copy()
    ids[0] = [0, -1, 30, 31, 2**31 - 1, 0]
    out = numpy(layer(x["inputs"], ids))
    np.testing.assert_array_equal(out[0], x["inputs"][0])
    want = x["inputs"].astype("float64") + np.where((ids > 0) & (ids < 30), effects[ids.clip(0, 29)], 0.0)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    assert np.abs(out - x["inputs"])[1:].max() > 0.1  # control


def test_bfloat16_policy_keeps_the_logit() -> None:
    x = inputs()
    exact, mixed = make(), make(dtype="mixed_bfloat16")
    for layer in (exact, mixed):
        layer.build((4, 6))
        layer.effects.assign(np.linspace(-1, 1, 30).astype("float32"))
    np.testing.assert_array_equal(numpy(mixed(x["inputs"], x["ids"])), numpy(exact(x["inputs"], x["ids"])))


def test_from_fit() -> None:
    data = log_()
    fit = fit_random_effect(**data, l2=1.0)
    layer = RandomEffect.from_fit(fit)
    wanted = np.array([fit.ids[5], 3, -4, 10**9, fit.ids[-1]])  # 3 is not a multiple of 7
    assert fit.rows(wanted).tolist() == [6, 0, 0, 0, len(fit.ids)]
    out = numpy(layer(np.zeros(5, "float32"), fit.rows(wanted)))
    np.testing.assert_allclose(out, [fit.effects[5], 0, 0, 0, fit.effects[-1]], rtol=1e-6)
    assert not layer.trainable_weights


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`rows` must be at least 2 .* Received: rows=1"):
        RandomEffect(1)
    with pytest.raises(ValueError, match="`ids` must be of the shape of the logits"):
        make()(np.zeros((2, 3), "float32"), np.zeros(2, "int32"))
    with pytest.raises(ValueError, match="`l2` must be positive. Received: l2=0"):
        fit_random_effect([1], [1], [0.0], l2=0)
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 1\]"):
        fit_random_effect([1], [2], [0.0], l2=1)
    with pytest.raises(ValueError, match="`offsets` must be finite and of the shape of `ids`"):
        fit_random_effect([1], [1], [np.nan], l2=1)
    with pytest.raises(ValueError, match="`ids` must be one-dimensional with at least one id"):
        fit_random_effect([], [], [], l2=1)
    with pytest.raises(ValueError, match="`weights` must not be negative"):
        fit_random_effect([1], [1], [0.0], l2=1, weights=[-1])
    with pytest.raises(RuntimeError, match="not converged after max_iterations=1"):
        fit_random_effect([1], [1], [0.0], l2=1, max_iterations=1)
