"""TowerCalibration: one isotonic map, with the tower as its calibration feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keras_ranking.layers import TowerCalibration
from tests.layers.common import by_path, numpy, randomise, run_layer_checks


def logits(towers: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 5, towers), scale=3).astype("float32")


@pytest.mark.few(1)
@pytest.mark.parametrize("towers", [1, 3])
def test_common(towers: int, tmp_path: Path) -> None:
    z = np.linspace(-4.0, 4.0, 2 * 24 * towers, dtype="float32").reshape(2, 24, towers)  # every bucket gets a gradient
    run_layer_checks(lambda **settings: TowerCalibration(1.0, -4.0, 4.0, **settings), {"inputs": z}, tmp_path, mixed_dtype="float32")


@pytest.mark.parametrize("towers", [1, 3])
def test_reference(towers: int) -> None:
    z = logits(towers)
    layer = TowerCalibration(step=0.5)
    np.testing.assert_allclose(numpy(layer(z)), z, atol=1e-6)
    randomise(layer)
    w = by_path(layer)
    slopes, bias = w["isotonic/slopes"][0], w["isotonic/bias"][0]
    out = numpy(layer(z))
    for k in range(towers):
        own = slopes + (w["isotonic/kernel"][k] if towers > 1 else 0.0)
        y = z[..., k].astype("float64")[..., None]
        filled = np.clip(y + 17 - 0.5 * np.arange(50), 0, 0.5)
        want = (np.maximum(own, 0) * filled).sum(-1) + bias - 17
        inside = (y[..., 0] > -17) & (y[..., 0] < 8)
        np.testing.assert_allclose(out[..., k][inside], want[inside], rtol=1e-4, atol=1e-4)
    if towers > 1:  # control: towers have different maps
        same = numpy(layer(np.repeat(z[..., :1], 3, axis=-1)))
        assert np.abs(same[..., 0] - same[..., 1]).max() > 0.01


def test_each_tower_keeps_its_order() -> None:
    layer = TowerCalibration()
    layer.build((None, None, 2))
    randomise(layer)
    z = np.repeat(np.linspace(-20, 12, 400, dtype="float32")[None, :, None], 2, axis=-1)
    assert (np.diff(numpy(layer(z)), axis=1) >= -1e-5).all()


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="the last axis of the inputs must be known"):
        TowerCalibration().build((None, None, None))
    with pytest.raises(ValueError, match="times `step`"):
        TowerCalibration(step=0.3)
