"""BayesianLinear: posterior, draws, and the gain of exploration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import BayesianLinear
from tests.layers.common import (
    check_build,
    check_config,
    check_mixed,
    check_saving,
    check_symbolic,
    functional,
    numpy,
    randomise,
    sigmoid,
)
from tests.ops.test_seeded_normal import normals

D = 4


def make(**settings: Any) -> BayesianLinear:
    return BayesianLinear(**{"stream": 3, **settings})


def ready(**settings: Any) -> BayesianLinear:
    layer = make(**settings)
    layer.build((None, D))
    rng = np.random.default_rng(1)
    layer.kernel.assign(rng.normal(size=(D, 1)).astype("float32"))
    if layer.bias is not None:
        layer.bias.assign(rng.normal(size=1).astype("float32"))
    return layer


def data(rows: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(rows, D)) @ rng.normal(size=(D, D))).astype("float32")
    y = z.astype("float64") @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.3 + rng.normal(size=rows)
    return z, y, rng.uniform(0, 2, rows)


def with_one(z: np.ndarray) -> np.ndarray:
    return np.concatenate([z.astype("float64"), np.ones((*z.shape[:-1], 1))], axis=-1)


def mu(layer: BayesianLinear) -> np.ndarray:
    return np.concatenate([numpy(layer.kernel.value)[:, 0], numpy(layer.bias.value)]).astype("float64")


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["logistic", "gaussian"])
@pytest.mark.parametrize("with_seed", [False, True], ids=["mean", "seed"])
def test_common(kind: str, with_seed: bool, tmp_path: Path) -> None:
    inputs = {"inputs": np.random.default_rng(0).normal(size=(3, 5, D)).astype("float32")}
    if with_seed:
        inputs["seed"] = np.array([5, -9, 2**31 - 1], "int32")

    def of_kind(**settings: Any) -> BayesianLinear:
        return make(kind=kind, **settings)

    for check in (check_build, check_config, check_symbolic):
        check(of_kind, inputs, {})
    check_saving(of_kind, inputs, {}, tmp_path)
    check_mixed(of_kind, inputs, {}, "float32")
    # One step changes kernel and bias, but not the posterior.
    layer = of_kind()
    model = functional(layer, inputs, {}, batch=False, tokens=True)
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    before = {weight.path: numpy(weight.value).copy() for weight in layer.weights}
    model.fit({f"input_{i}": x for i, x in enumerate(inputs.values())}, np.ones((3, 5), "float32"), batch_size=3, verbose=0)
    moved = {weight.name for weight in layer.weights if (numpy(weight.value) != before[weight.path]).any()}
    assert moved == {"kernel", "bias"}


@pytest.mark.few(2)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(3, D), (3, 5, D), (3, 2, 5, D)])
def test_scores(shape: tuple[int, ...], use_bias: bool) -> None:
    layer = ready(use_bias=use_bias)
    z, _, _ = data()
    layer.update(z)
    x = np.random.default_rng(5).normal(size=shape).astype("float32")
    full = with_one(x) if use_bias else x.astype("float64")
    centre = mu(layer) if use_bias else numpy(layer.kernel.value)[:, 0].astype("float64")
    np.testing.assert_allclose(numpy(layer(x)), full @ centre, rtol=1e-5, atol=1e-6)
    seed = np.array([4, 4, -7], "int32")
    lower = np.linalg.cholesky(layer.precision)
    nu = np.array([0.5, 2.0, 0.0])
    for exploration, scale in ((1.0, np.ones(3)), (0.5, np.full(3, 0.5)), (nu.astype("float32"), nu)):
        moved = np.linalg.solve(lower.T, normals(seed, len(centre), 3).T).T * scale[:, None]
        want = np.stack([full[b] @ (centre + moved[b]) for b in range(3)])
        got = numpy(layer.sample(x, seed, exploration=exploration))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(numpy(layer.sample(x, seed, exploration=0.0)), numpy(layer(x)))  # nu = 0 is greedy
    np.testing.assert_array_equal(numpy(layer(x, seed=seed)), numpy(layer.sample(x, seed)))
    assert np.abs(numpy(layer(x, seed=seed)) - numpy(layer(x))).max() > 1e-2  # control


def test_all_candidates_of_a_request_share_one_draw() -> None:
    """Same seed, same weights: for any other rows in the batch, and for one candidate at a time."""
    layer = ready()
    x = np.random.default_rng(5).normal(size=(3, 6, D)).astype("float32")
    seed = np.array([11, 12, 11], "int32")
    whole = numpy(layer.sample(x, seed))
    for b in range(3):
        np.testing.assert_allclose(numpy(layer.sample(x[b : b + 1, 2:3], seed[b : b + 1])), whole[b : b + 1, 2:3], rtol=1e-5, atol=1e-6)
    twin = numpy(layer.sample(np.tile(x[:1], (3, 1, 1)), seed))
    np.testing.assert_allclose(twin[0], twin[2], rtol=1e-6)
    assert np.abs(twin[0] - twin[1]).max() > 0.1
    # layers with different names have different draws; with the same name, the same draws
    a, b, again = (ready(stream=None, name=name) for name in ("posterior_click", "posterior_like", "posterior_click"))
    assert np.abs(numpy(a.sample(x, seed)) - numpy(b.sample(x, seed))).max() > 0.1
    np.testing.assert_array_equal(numpy(a.sample(x, seed)), numpy(again.sample(x, seed)))


@pytest.mark.parametrize("kind", ["logistic", "gaussian"])
def test_updates_in_chunks_equal_one_update(kind: str, tmp_path: Path) -> None:
    """Chunks, saved and loaded in between, give the posterior of all rows, to 1e-10 of float64."""
    z, y, w = data()
    layer = ready(kind=kind, prior_precision=2.0, noise=0.7)
    x = keras.Input((D,))
    model = keras.Model(x, layer(x))
    full = with_one(z)
    p = sigmoid(full @ mu(layer))
    for i, chunk in enumerate(np.array_split(np.arange(len(z)), 7)):
        model.layers[-1].update(z[chunk], y[chunk], sample_weight=w[chunk])
        if i == 3:
            model.save(tmp_path / "m.keras")
            model = keras.saving.load_model(tmp_path / "m.keras")
    layer = model.layers[-1]
    curvature = w * p * (1 - p) if kind == "logistic" else w / 0.7**2
    want = np.eye(D + 1) * 2.0 + (full * curvature[:, None]).T @ full
    np.testing.assert_allclose(layer.precision, want, rtol=0, atol=1e-10 * np.abs(want).max())
    factor = numpy(layer.factor.value).astype("float64")
    np.testing.assert_allclose(factor.T @ factor @ want, np.eye(D + 1), atol=2e-5)
    if kind == "gaussian":
        eta = full.T @ (curvature * y)
        np.testing.assert_allclose(layer.evidence, eta, rtol=0, atol=1e-10 * np.abs(eta).max())
        np.testing.assert_allclose(layer.mean, np.linalg.solve(want, eta), rtol=1e-6, atol=1e-7)  # the kernel is float32
    # control: different without the weights
    other = ready(kind=kind, prior_precision=2.0, noise=0.7)
    other.update(z, y)
    assert np.abs(other.precision - want).max() > 1e-2 * np.abs(want).max()


def test_logistic_update_does_not_change_scores() -> None:
    layer = ready()
    z, _, _ = data()
    before = numpy(layer(z))
    seed = np.arange(len(z), dtype="int32")
    spread = np.abs(numpy(layer(z, seed=seed)) - before).mean()
    for _ in range(3):
        layer.update(z)
    np.testing.assert_array_equal(numpy(layer(z)), before)
    assert np.abs(numpy(layer(z, seed=seed)) - before).mean() < 0.3 * spread  # less exploration after an update
    assert {weight.name for weight in layer.trainable_weights} == {"kernel", "bias"}


def test_padding_and_shapes() -> None:
    layer, other = ready(), ready()
    z, _, _ = data(12)
    other.update(z[:8])
    padded = z.reshape(2, 6, D).copy()
    padded[1, 2:] = np.nan
    weight = np.ones((2, 6))
    weight[1, 2:] = 0
    layer.update(padded, sample_weight=weight)
    np.testing.assert_allclose(layer.precision, other.precision, rtol=1e-12)
    layer.update(z[:0])
    np.testing.assert_allclose(layer.precision, other.precision, rtol=1e-12)


@pytest.mark.parametrize("kind", ["logistic", "gaussian"])
def test_discount(kind: str) -> None:
    """The evidence is discounted, the prior is not."""
    layer, whole = ready(kind=kind, discount=0.25, prior_precision=3.0), ready(kind=kind, prior_precision=3.0)
    z, y, _ = data()
    layer.update(z, y)
    whole.update(z, y)
    np.testing.assert_allclose(layer.precision, whole.precision, rtol=1e-10)
    first = layer.precision
    layer.update(z[:0], y[:0])
    prior = np.eye(D + 1) * 3.0
    np.testing.assert_allclose(layer.precision, prior + 0.25 * (first - prior), rtol=1e-9, atol=1e-8)
    layer.update(z[:0], y[:0], discount=1.0)
    np.testing.assert_allclose(layer.precision, prior + 0.25 * (first - prior), rtol=1e-9, atol=1e-8)
    if kind == "gaussian":
        np.testing.assert_allclose(layer.evidence, 0.25 * whole.evidence, rtol=1e-9)
        np.testing.assert_allclose(layer.mean, np.linalg.solve(layer.precision, layer.evidence), rtol=1e-5, atol=1e-6)


def test_covariance_of_samples() -> None:
    """Scores of the unit vectors are the weights themselves; bounds are 5 standard errors."""
    n = 20_000
    layer = ready(use_bias=False)
    z, _, _ = data(300)
    layer.update(z)
    want = np.linalg.inv(layer.precision)
    seed = np.arange(n, dtype="int32") + 777
    weights = numpy(layer.sample(np.tile(np.eye(D, dtype="float32"), (n, 1, 1)), seed)).astype("float64")
    centre = numpy(layer.kernel.value)[:, 0]
    scale = np.sqrt(np.diag(want))
    assert np.abs((weights.mean(0) - centre) / scale).max() < 5 / n**0.5
    error = (np.cov(weights.T) - want) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * 2**0.5 / n**0.5
    transposed = np.linalg.inv(np.linalg.cholesky(layer.precision))  # control: L^-1 instead of L^-T
    assert np.abs((transposed @ transposed.T - want) / np.outer(scale, scale)).max() > 0.1


def regret(kind: str, exploration: float, seed: int, rounds: int = 70, requests: int = 8, arms: int = 10) -> float:
    """Regret of a bandit with one arm per dimension: mean loss compared with the best arm. An update after every round."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=arms) if kind == "gaussian" else rng.normal(0.0, 1.5, arms)
    layer = BayesianLinear(kind, use_bias=False, kernel_initializer="zeros", stream=1)
    z = np.tile(np.eye(arms, dtype="float32"), (requests, 1, 1))
    layer.build(z.shape)
    lost, shown, wins = 0.0, np.zeros(arms), np.zeros(arms)
    value = truth if kind == "gaussian" else sigmoid(truth)
    for step in range(rounds):
        request = np.arange(requests, dtype="int32") + requests * (step + rounds * seed)
        scores = numpy(layer.sample(z, request, exploration=exploration))
        if exploration == 0:
            np.testing.assert_array_equal(scores, numpy(layer(z)))
        chosen = scores.argmax(1)
        lost += float((value.max() - value[chosen]).sum())
        rows = np.eye(arms, dtype="float32")[chosen]
        if kind == "gaussian":
            layer.update(rows, truth[chosen] + rng.normal(size=requests))
            continue
        clicks = rng.random(requests) < value[chosen]
        np.add.at(shown, chosen, 1.0)
        np.add.at(wins, chosen, clicks)
        kernel = layer.mean
        for _ in range(20):  # training: the most probable kernel under the same prior
            p = sigmoid(kernel)
            kernel -= (shown * p - wins + kernel) / (shown * p * (1 - p) + 1.0)
        layer.kernel.assign(kernel[:, None].astype("float32"))
        layer.update(rows)
    return lost / (rounds * requests)


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.quickest
def test_thompson_sampling_has_less_regret_than_greedy(kind: str) -> None:
    """Greedy keeps the first successful arm; Thompson sampling finds the best one."""
    seeds = range(6)
    greedy = [regret(kind, 0.0, seed) for seed in seeds]
    thompson = [regret(kind, 1.0, seed) for seed in seeds]
    assert np.mean(thompson) < 0.6 * np.mean(greedy), (greedy, thompson)


def test_in_a_saved_graph(tmp_path: Path) -> None:
    """Seeds in a functional model, compiled, saved and loaded: the draws of the eager layer, and the fitted posterior."""
    z = keras.Input((None, D), name="z")
    seed = keras.Input((), dtype="int32", name="seed")
    layer = make(name="head")
    model = keras.Model([z, seed], layer(z, seed=seed))
    randomise(layer)
    layer.update(data()[0], discount=1e-6)
    x = np.random.default_rng(2).normal(size=(4, 3, D)).astype("float32")
    seeds = np.array([1, 2, 3, -4], "int32")
    want = numpy(layer.sample(x, seeds))
    np.testing.assert_allclose(model.predict([x, seeds], verbose=0), want, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict([x, seeds], verbose=0), want, rtol=1e-5, atol=1e-6)
    assert np.abs(loaded.predict([x, seeds + 1], verbose=0) - want).max() > 1e-2  # control


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`kind` must be 'logistic' or 'gaussian'. Received: kind='probit'"):
        BayesianLinear("probit")
    for bad in ({"prior_precision": 0.0}, {"noise": -1.0}):
        with pytest.raises(ValueError, match="`prior_precision` and `noise` must be positive. Received: prior_precision="):
            BayesianLinear(**bad)
    for discount in (0.0, 1.5):
        with pytest.raises(ValueError, match="`discount` must be above 0 and at most 1. Received: discount="):
            BayesianLinear(discount=discount)
    with pytest.raises(ValueError, match="`exploration` must not be negative. Received: exploration=-1"):
        BayesianLinear(exploration=-1)
    with pytest.raises(ValueError, match="`stream` must be from 0 .* Received: stream=-1"):
        BayesianLinear(stream=-1)
    layer, (z, y, w) = ready(), data()
    for seed in (np.zeros((3, 1), "int32"), np.zeros(3, "float32")):
        with pytest.raises(ValueError, match=r"`seed` must be int32 \(B,\). Received: dtype="):
            layer(z[:3], seed=seed)
    with pytest.raises(ValueError, match=r"`inputs` must be \(..., 4\). Received: shape=\(600, 3\)"):
        layer.update(z[:, :3])
    with pytest.raises(ValueError, match="`inputs` must be finite"):
        layer.update(np.full((2, D), np.nan))
    with pytest.raises(ValueError, match="`sample_weight` must not be negative"):
        layer.update(z, sample_weight=-w)
    with pytest.raises(ValueError, match="`sample_weight` must be finite and of shape"):
        layer.update(z, sample_weight=w[:5])
    gaussian = ready(kind="gaussian")
    with pytest.raises(ValueError, match="`targets` must be given with kind='gaussian'"):
        gaussian.update(z)
    with pytest.raises(ValueError, match="`targets` must be finite and of shape"):
        gaussian.update(z, y[:5])
    with pytest.raises(ValueError, match="`evidence` exists only with kind='gaussian'"):
        _ = layer.evidence
