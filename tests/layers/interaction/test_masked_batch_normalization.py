"""MaskedBatchNormalization: padding is not in the moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keras_ranking.layers import MaskedBatchNormalization
from tests.layers.common import numpy, run_layer_checks

REAL = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], "int32")


def values(features: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, (3, 4, features)).astype("float32")


def test_common(tmp_path: Path) -> None:
    run_layer_checks(MaskedBatchNormalization, {"inputs": values(), "real": REAL}, tmp_path)


@pytest.mark.parametrize("features", [1, 5])
def test_reference(features: int) -> None:
    layer, x = MaskedBatchNormalization(momentum=0.9), values(features)
    x[REAL == 0] = 1e6
    out = numpy(layer(x, real=REAL, training=True))
    kept = x[REAL > 0].astype("float64")
    mean, variance = kept.mean(axis=0), kept.var(axis=0)
    np.testing.assert_allclose(out[REAL > 0], (kept - mean) / np.sqrt(variance + layer.epsilon), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(numpy(layer.moving_mean.value), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(numpy(layer.moving_variance.value), 0.9 + 0.1 * variance, rtol=1e-5)
    # control: without `real` the padding is in the moments
    assert abs(numpy(MaskedBatchNormalization()(x, training=True))[REAL > 0]).max() < 2.0 < abs(out[REAL > 0]).max() + 1.5
    other = MaskedBatchNormalization(momentum=0.9)
    other(x, training=True)
    assert numpy(other.moving_mean.value).min() > 100 * numpy(layer.moving_mean.value).max()


def test_scores_do_not_depend_on_the_batch_and_no_mask_is_passed_on() -> None:
    layer, x = MaskedBatchNormalization(), values()
    layer(x, real=REAL, training=True)
    out = numpy(layer(x, real=REAL))
    np.testing.assert_array_equal(out[:1, :1], numpy(layer(x[:1, :1])))
    assert getattr(layer(x, real=REAL), "_keras_mask", None) is None


def test_a_batch_of_only_padding_is_finite() -> None:
    layer = MaskedBatchNormalization()
    assert np.isfinite(numpy(layer(values(), real=np.zeros((3, 4), "int32"), training=True))).all()
