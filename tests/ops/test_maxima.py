"""Maxima: values and shared gradients against numpy, and the gradient in a program that computes the values twice."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.ops.lists import Lists
from keras_ranking.ops.maxima import largest
from tests.layers.common import numpy
from tests.losses.helpers import value_and_gradient

REAL = np.arange(6)[None, :] < np.array([6, 3, 0, 4])[:, None]


def with_ties(rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(4, 6, 5)).astype("float32")
    x[0, 1] = x[0, 4] = x[0].max(0)
    return x


def reference(x: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maxima over the real events of float64 x (B, W, D), 0 where there is none, and the gradient of their sum weighted by `above`."""
    peak, gradient = np.zeros(above.shape), np.zeros(x.shape)
    for row, real in enumerate(REAL):
        if real.any():
            peak[row] = x[row][real].max(0)
            have = (x[row] == peak[row]) & real[:, None]
            gradient[row] = have * above[row] / have.sum(0)
    return peak, gradient


def test_values_and_gradients(rng: np.random.Generator) -> None:
    x, above = with_ties(rng), rng.normal(size=(4, 5)).astype("float32")
    peak, gradient = reference(x.astype(np.float64), above)
    np.testing.assert_array_equal(numpy(largest(ops.convert_to_tensor(x), REAL[:, :, None], axis=1)), peak.astype("float32"))
    _, found = value_and_gradient(lambda v: ops.sum(largest(v, REAL[:, :, None], axis=1) * ops.convert_to_tensor(above)), x)
    np.testing.assert_allclose(found, gradient, rtol=1e-6)
    assert np.isclose(gradient[0, 1], above[0] / 3).any(), "control: a gradient is shared by three"


def computed(maximum: Any, x: Any, kernel: Any, above: Any) -> Any:
    """A maximum of numbers that a program may compute once more to compare them with it."""
    h = ops.tanh(ops.matmul(x, kernel)) + x
    h = h - ops.mean(h, axis=-1, keepdims=True)
    h = h * ops.rsqrt(ops.mean(h * h, axis=-1, keepdims=True) + 1e-5)
    return ops.sum(maximum(h) * above)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="levels of XLA")
@pytest.mark.parametrize("of", ["events", "lists"])
def test_the_gradient_of_a_program_that_is_not_optimised(of: str, rng: np.random.Generator) -> None:
    import jax

    x, kernel = rng.normal(size=(4, 6, 12)).astype("float32"), rng.normal(size=(12, 12)).astype("float32")
    slot = np.where(REAL, 1 + (np.arange(6) > 1)[None, :], 0).astype("int32")

    def of_events(h: Any) -> Any:
        return largest(h, REAL[:, :, None], axis=1)

    def of_lists(h: Any) -> Any:
        return Lists.of(slot).max(h)

    def plainly(h: Any) -> Any:
        return ops.amax(ops.where(REAL[:, :, None], h, -3e38), axis=1)

    def away(maximum: Any, above: np.ndarray) -> float:
        step = jax.value_and_grad(lambda k: computed(maximum, x, k, above))
        program = jax.jit(step).lower(kernel).compile({"xla_backend_optimization_level": "0"})
        (value, found), (same, want) = program(kernel), step(kernel)
        return max(float(np.abs(found - want).max() / np.abs(want).max()), abs(float(value / same) - 1))

    maximum, shape = {"events": (of_events, (4, 12)), "lists": (of_lists, (4, 6, 12))}[of]
    assert away(maximum, rng.normal(size=shape).astype("float32")) < 1e-5
    assert not away(plainly, rng.normal(size=(4, 12)).astype("float32")) < 1e-2, "control: the gradient of `amax` is lost there"
