"""Pairs in blocks by request, against all pairs of a row in float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.losses import InRequestPairwise, request_pairs, targets
from tests.losses.helpers import value_and_gradient


def reference(y_true: np.ndarray, logit: np.ndarray, weight: np.ndarray, window: int | None = None) -> tuple[float, np.ndarray]:
    """All pairs of a row in float64: the loss and its gradient."""
    label, request = y_true[..., 0].astype(np.float64), y_true[..., 2]
    place = np.arange(label.shape[1])
    near = np.abs(place[:, None] - place) < (len(place) if window is None else window)
    pair = (label[:, :, None] > label[:, None, :]) & (request[:, :, None] == request[:, None, :]) & near
    share = pair * weight.astype(np.float64)[:, :, None] * weight[:, None, :]
    margin = logit.astype(np.float64)[:, :, None] - logit[:, None, :]
    slope = -share / (1 + np.exp(margin)) / share.sum()
    return (share * np.logaddexp(0, -margin)).sum() / share.sum(), slope.sum(axis=2) - slope.sum(axis=1)


def batch(request: Any, grades: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, request = np.random.default_rng(seed), np.asarray(request)
    y_true = targets(rng.integers(0, grades, request.shape), request=request)
    weight = (rng.random(request.shape) * (rng.random(request.shape) < 0.8)).astype(np.float32)
    return y_true, rng.normal(size=request.shape).astype(np.float32), weight


ONE_LONG = np.array([[1] * 60 + [2] * 3 + [3], np.repeat(np.arange(16), 4)])
ORDERS = {
    "one long request": ONE_LONG,
    "requests whose tokens are not together": np.random.default_rng(1).permutation(ONE_LONG, axis=1),
    "large numbers": ONE_LONG + 2**24 - 16,
    "requests of one": np.where(np.arange(64) < 2, 0, np.arange(64))[None],
}


@pytest.mark.parametrize("grades", [2, 4])
@pytest.mark.parametrize("name", ORDERS)
def test_value_and_gradient_equal_all_pairs(name: str, grades: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y_true, logit, weight = batch(ORDERS[name], grades, seed=3)
    y_true[-1, :2, 0], weight[-1, :2] = [1, 0], 1
    monkeypatch.setattr(request_pairs, "_FEWEST", 16)  # several blocks
    monkeypatch.setattr(request_pairs, "_EAGER", 64)
    value, gradient = value_and_gradient(lambda x: InRequestPairwise()(y_true, x, weight), logit)
    wanted, slope = reference(y_true, logit, weight)
    assert value == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)
    # Control: without the pairs that are 50 tokens apart.
    assert name == "requests of one" or value != pytest.approx(reference(y_true, logit, weight, 50)[0], rel=1e-5)


def test_a_window_takes_pairs_away() -> None:
    y_true, logit, weight = batch(ONE_LONG)
    value, gradient = value_and_gradient(lambda x: InRequestPairwise(window=20)(y_true, x, weight), logit)
    wanted, slope = reference(y_true, logit, weight, 20)
    assert value == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)


@pytest.mark.quickest
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="other backends trace a block once")
def test_pairs_read_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding has one request number for many tokens, and costs nothing; nor do tokens of equal labels."""
    made: list[int] = []
    read = request_pairs._block
    monkeypatch.setattr(request_pairs, "_FEWEST", 16)
    monkeypatch.setattr(request_pairs, "_EAGER", 64)
    monkeypatch.setattr(request_pairs, "_block", lambda *a: made.append(16 * a[2]) or read(*a))

    def pairs_read(y_true: np.ndarray, logit: np.ndarray, weight: np.ndarray) -> int:
        made.clear()
        InRequestPairwise()(y_true, logit, weight)
        return sum(made)

    request = np.zeros((4, 512), dtype=int)
    request[:, :16] = 1 + np.arange(16) // 8
    y_true, logit, weight = batch(request)
    padded = weight.copy()
    padded[:, 16:] = 0
    assert pairs_read(y_true, logit, padded) <= 16 * 64  # a run of 16 for each item that has a pair
    assert pairs_read(y_true, logit, weight) > 100_000  # control: as one request of 496 tokens in each row
    y_true[..., 0] = 1
    assert pairs_read(y_true, logit, weight) == 0


def test_an_infinite_logit_gives_a_limit_and_not_nan() -> None:
    y_true = targets(np.array([[1, 0] * 5]), request=np.repeat(np.arange(5), 2)[None])
    logit = np.zeros((1, 10), dtype=np.float32)
    logit[0, 0] = np.inf
    value, gradient = value_and_gradient(lambda x: InRequestPairwise()(y_true, x), logit)
    assert value == pytest.approx(0.8 * np.log(2), rel=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0] + [-0.1, 0.1] * 4], rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="batches of unknown shape are TensorFlow's")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_batch_of_unknown_shape(jit_compile: bool) -> None:
    import tensorflow as tf

    y_true, logit, weight = batch(ONE_LONG)
    shapes = [tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, None)), tf.TensorSpec((None, None))]

    @tf.function(input_signature=shapes, jit_compile=jit_compile)
    def step(true: Any, x: Any, w: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = InRequestPairwise()(true, x, w)
        return value, tape.gradient(value, x)

    value, gradient = step(y_true, logit, weight)
    wanted, slope = reference(y_true, logit, weight)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)
