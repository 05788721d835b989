"""IsotonicCalibration against Eq. 1 of LiRank, bucket by bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.layers import IsotonicCalibration
from tests.layers.common import numpy, run_layer_checks

LOWER, UPPER, STEP, C = -6.0, 4.0, 0.5, 3


def equation(y: float, weights: np.ndarray, e: np.ndarray, bias: float, lower: float, upper: float, step: float) -> float:
    """Eq. 1 for one logit in (lower, upper], word by word; slope 1 outside."""
    outside = min(y - lower, 0.0) + max(y - upper, 0.0)
    shifted = min(max(y, lower), upper) - lower
    above = [j for j in range(len(weights)) if shifted - step * j > 0]
    total = bias
    if above:
        k = above[-1]
        for i in range(k + 1):
            v = step if i < k else shifted - step * k
            total += max(e[i] + weights[i], 0.0) * v
    return total + outside


def weights_of(layer: IsotonicCalibration) -> dict[str, np.ndarray]:
    held = {"slopes": layer.slopes, "bias": layer.bias, **({} if layer.kernel is None else {"kernel": layer.kernel})}
    return {name: numpy(weight.value).astype("float64") for name, weight in held.items()}


def brute(
    layer: IsotonicCalibration, logits: np.ndarray, features: np.ndarray | None = None, weights: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """float64, one logit at a time; `weights` in place of the layer's own."""
    units, n = layer.units or 1, layer.buckets
    weights = weights_of(layer) if weights is None else weights
    slopes, bias = weights["slopes"], weights["bias"]
    y = logits.astype("float64").reshape(-1, units)
    e = np.zeros((len(y), units, n))
    if features is not None:
        e = (features.astype("float64").reshape(len(y), -1) @ weights["kernel"]).reshape(-1, units, n)
    out = [
        [equation(y[r, u], slopes[u], e[r, u], layer.lower + bias[u], layer.lower, layer.upper, layer.step) for u in range(units)]
        for r in range(len(y))
    ]
    return np.array(out).reshape(logits.shape)


def ready(units: int | None = None, features_dim: int = 0, buckets: tuple[float, float, float] = (LOWER, UPPER, STEP)) -> Any:
    """With slopes of which about a sixth are closed."""
    layer = IsotonicCalibration(*buckets, features_dim=features_dim, units=units)
    layer.build((None, None) if units is None else (None, None, units))
    rng = np.random.default_rng(4)
    layer.slopes.assign(rng.normal(1.0, 1.0, layer.slopes.shape).astype("float32"))
    layer.bias.assign(rng.normal(size=layer.bias.shape).astype("float32"))
    if features_dim:
        layer.kernel.assign(rng.normal(0.0, 0.7, layer.kernel.shape).astype("float32"))
    return layer


def rows(units: int | None = None, low: float = LOWER - 3, high: float = UPPER + 3, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    logits = rng.uniform(low, high, (4, count) if units is None else (4, count, units)).astype("float32")
    return logits, rng.normal(size=(4, count, C)).astype("float32")


@pytest.mark.few(1)
@pytest.mark.parametrize("units", [None, 2])
@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
def test_common(with_features: bool, units: int | None, tmp_path: Path) -> None:
    logits, features = rows(units, count=6)
    inputs = {"inputs": logits, **({"features": features} if with_features else {})}

    def make(**settings: Any) -> IsotonicCalibration:
        return IsotonicCalibration(LOWER, UPPER, STEP, features_dim=C if with_features else 0, units=units, **settings)

    run_layer_checks(make, inputs, tmp_path, mixed_dtype="float32")


@pytest.mark.parametrize("units", [None, 3])
@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
def test_equation(with_features: bool, units: int | None) -> None:
    layer = ready(units, C if with_features else 0)
    logits, features = rows(units)
    edges = np.array([LOWER, UPPER, LOWER + STEP, 0.0, -0.0, UPPER - STEP], "float32")  # the joints too
    logits[0, :6] = edges if units is None else edges[:, None]
    given = features if with_features else None
    out = numpy(layer(logits, features=given))
    np.testing.assert_allclose(out, brute(layer, logits, given), rtol=1e-6, atol=3e-6)
    layer.slopes.assign(np.ones(layer.slopes.shape, "float32"))  # control
    assert np.abs(numpy(layer(logits, features=given)) - out).max() > 0.1


@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
def test_equation_at_the_default_buckets(with_features: bool) -> None:
    """500 buckets, random slopes: float32 sums of many terms."""
    layer = ready(None, C if with_features else 0, (-17.0, 8.0, 0.05))
    assert layer.buckets == 500
    logits, features = rows(None, -20.0, 10.0)
    given = features if with_features else None
    error = np.abs(numpy(layer(logits, features=given)) - brute(layer, logits, given)).max()
    assert error < 2e-5, error


def test_two_ways_agree() -> None:
    """The running sum, and the activations under a kernel of zeros."""
    plain, full = ready(2), ready(2, C)
    full.kernel.assign(np.zeros(full.kernel.shape, "float32"))
    logits, features = rows(2)
    np.testing.assert_allclose(numpy(full(logits, features=features)), numpy(plain(logits)), rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
def test_identity_at_the_start(with_features: bool) -> None:
    layer = IsotonicCalibration()
    logits, features = rows(None, -60.0, 60.0)
    logits[0, :3] = 0.0, -1e6, 1e30
    out = numpy(layer(logits, features=features) if with_features else layer(logits))
    np.testing.assert_array_equal(out, logits)
    assert layer.features_dim == (C if with_features else 0)


@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
def test_never_falls(with_features: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ready(None, C if with_features else 0)
    line = np.linspace(LOWER - 4, UPPER + 4, 4001).astype("float32")
    grid = np.tile(line, (5, 1))
    features = np.repeat(np.random.default_rng(6).normal(size=(5, 1, C)), line.size, axis=1).astype("float32") if with_features else None
    rise = np.diff(numpy(layer(grid, features=features)), axis=1)
    assert rise.min() > -5e-6  # rounding
    assert rise.max() > 1e-3
    monkeypatch.setattr(ops, "relu", lambda x: x)  # control: with negative slopes it decreases
    assert np.diff(numpy(layer(grid, features=features)), axis=1).min() < -1e-3


def test_units_are_independent() -> None:
    layer = ready(3, C)
    logits, features = rows(3)
    out = numpy(layer(logits, features=features))
    for unit in range(3):
        alone = IsotonicCalibration(LOWER, UPPER, STEP, features_dim=C)
        alone.build((None, None))
        alone.slopes.assign(layer.slopes[unit : unit + 1])
        alone.bias.assign(layer.bias[unit : unit + 1])
        alone.kernel.assign(ops.reshape(layer.kernel, (C, 3, -1))[:, unit])
        np.testing.assert_allclose(numpy(alone(logits[..., unit], features=features)), out[..., unit], rtol=1e-6, atol=3e-6)
    moved = logits.copy()
    moved[..., 1] += 1.0
    after = numpy(layer(moved, features=features))
    np.testing.assert_array_equal(after[..., [0, 2]], out[..., [0, 2]])
    assert np.abs(after[..., 1] - out[..., 1]).max() > 0.1  # control


def gradients(layer: Any, logits: np.ndarray, features: np.ndarray | None, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """d sum(out * cotangent) / d logits and / d each weight, from one step of SGD with rate 1."""
    source = keras.Input(batch_shape=(1,), dtype="int32", name="row")
    shift = keras.layers.Embedding(1, logits.size, embeddings_initializer="zeros", name="shift")
    y = ops.reshape(shift(source), logits.shape) + logits
    model = keras.Model(source, ops.sum(layer(y, **({} if features is None else {"features": features})) * cotangent, keepdims=True))
    model.compile(keras.optimizers.SGD(1.0), loss=lambda true, predicted: ops.sum(predicted))
    before = [numpy(weight.value).copy() for weight in model.trainable_weights]
    model.fit(np.zeros(1, "int32"), np.zeros(1, "float32"), batch_size=1, verbose=0)
    steps = [old - numpy(weight.value) for weight, old in zip(model.trainable_weights, before, strict=True)]
    return {weight.path.split("/")[-1]: step for weight, step in zip(model.trainable_weights, steps, strict=True)}


@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
def test_gradients(with_features: bool) -> None:
    """Against central differences of the brute-force equation, outside the range too."""
    layer = ready(None, C if with_features else 0)
    logits, features = (part[:1, :9] for part in rows())
    logits[0, :2] = LOWER - 2.5, UPPER + 30.0
    given = features if with_features else None
    cotangent = np.random.default_rng(8).normal(size=logits.shape).astype("float32")
    weights = weights_of(layer)
    got = gradients(layer, logits, given, cotangent)
    h = 1e-7

    def loss(name: str, at: tuple[int, ...], change: float) -> float:
        moved = {key: values.copy() for key, values in weights.items()}
        moved[name][at] += change
        return float((brute(layer, logits, given, moved) * cotangent).sum())

    for name, values in weights.items():
        want = np.array([(loss(name, at, h) - loss(name, at, -h)) / (2 * h) for at in np.ndindex(values.shape)])
        np.testing.assert_allclose(got[name].reshape(-1), want, rtol=1e-5, atol=1e-5)
        assert np.abs(want).max() > 0.1
    ends = [brute(layer, logits + sign * np.float64(h), given, weights) for sign in (1, -1)]
    np.testing.assert_allclose(got["embeddings"].reshape(logits.shape), (ends[0] - ends[1]) / (2 * h) * cotangent, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["embeddings"].reshape(-1)[:2], cotangent[0, :2], rtol=1e-5)  # slope 1 outside


def test_bfloat16_policy_does_not_round() -> None:
    logits, features = rows()
    for with_features in (False, True):
        exact = ready(None, C if with_features else 0)
        mixed = IsotonicCalibration(LOWER, UPPER, STEP, features_dim=exact.features_dim, dtype="mixed_bfloat16")
        mixed.build((None, None))
        mixed.set_weights(exact.get_weights())
        given = features if with_features else None
        out = mixed(logits, features=given)
        assert keras.backend.standardize_dtype(out.dtype) == "float32"
        np.testing.assert_array_equal(numpy(out), numpy(exact(logits, features=given)))
        half = mixed(ops.cast(logits, "bfloat16"), features=given)  # a bfloat16 logit is calibrated in float32
        np.testing.assert_array_equal(numpy(half), numpy(exact(numpy(ops.cast(logits, "bfloat16")), features=given)))


def test_extreme_logits_are_finite() -> None:
    layer = ready()
    logits = np.array([-3e38, -1e9, 1e9, 3e38], "float32")
    assert np.isfinite(numpy(layer(logits))).all()
    assert np.isnan(numpy(layer(np.array([np.nan], "float32")))).all()  # NaN is not hidden


@pytest.mark.quickest
def test_errors() -> None:
    for lower, upper, step in ((0.0, 0.0, 0.1), (1.0, 0.0, 0.1), (0.0, 1.0, 0.0), (0.0, 1.0, -0.1), (0.0, 1.0, 0.3), (0.0, 1.0, 1e-6)):
        with pytest.raises(ValueError, match=f"`upper` - `lower` must be 1 to 100,000 times `step`. Received: lower={lower}"):
            IsotonicCalibration(lower, upper, step)
    with pytest.raises(ValueError, match="`units` must be a positive integer or None. Received: units=0"):
        IsotonicCalibration(units=0)
    with pytest.raises(ValueError, match="`features_dim` must not be negative. Received: features_dim=-1"):
        IsotonicCalibration(features_dim=-1)
    logits, features = rows()
    with pytest.raises(ValueError, match=r"`inputs` must be \(B, ..., 3\), a logit for each unit. Received: shape="):
        IsotonicCalibration(units=3)(logits)
    with pytest.raises(ValueError, match="this layer was built without features"):
        ready()(logits, features=features)
    with pytest.raises(ValueError, match="this layer was built for 3 features. Received: features=None"):
        ready(None, C)(logits)
    with pytest.raises(ValueError, match="`features` must be of rank 3 and 3 wide"):
        ready(None, C)(logits, features=features[..., :2])


def test_rounding_for_slopes_from_0_to_3() -> None:
    """The two bounds of the docstring: against Eq. 1 in float64, and how far the map may fall."""
    line = np.linspace(LOWER - 1, UPPER + 1, 4001).astype("float32")
    for seed in range(10):
        layer = IsotonicCalibration()
        layer.build((None,))
        slopes = np.random.default_rng(seed).uniform(0, 3, layer.slopes.shape).astype("float32")
        layer.slopes.assign(slopes)
        got = numpy(layer(line)).astype("float64")
        left = layer.lower + layer.step * np.arange(layer.buckets)
        inside = np.clip(line.astype("float64")[:, None] - left, 0.0, layer.step)
        want = line.astype("float64") + ((slopes.astype("float64") - 1.0) * inside).sum(axis=-1)
        assert np.abs(got - want).max() <= 2e-5
        assert np.diff(got).min() >= -5e-6
