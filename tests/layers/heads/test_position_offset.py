"""PositionOffset: a logit at every position."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ranking.layers import PositionOffset
from keras_ranking.losses import ObservedTowerLoss, targets
from tests.layers.common import TOLERANCE, numpy, randomise, run_layer_checks


def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 6)).astype("float32")


@pytest.mark.few(1)
@pytest.mark.parametrize("beyond", ["clip", "zero"])
def test_common(beyond: str, tmp_path: Path) -> None:
    run_layer_checks(
        lambda **settings: PositionOffset(4, beyond, scale=3.0, **settings), {"inputs": logits()}, tmp_path, mixed_dtype="float32"
    )


@pytest.mark.parametrize(("beyond", "scale"), [("clip", 1.0), ("zero", 1.0), ("clip", 10.0)])
def test_reference(beyond: str, scale: float) -> None:
    z = logits()
    layer = PositionOffset(3, beyond, scale)
    np.testing.assert_array_equal(numpy(layer(z)), np.repeat(z[..., None], 4, axis=-1))
    randomise(layer)
    o = scale * numpy(layer.offsets).astype("float64")
    for position in range(1, 9):
        offset = o[position - 1] if position <= 3 else (o[2] if beyond == "clip" else 0.0)
        np.testing.assert_allclose(numpy(layer(z))[..., min(position, 4) - 1], z + offset, **TOLERANCE)
    assert np.abs(o).min() > 0.01  # control: no offset is zero


def test_the_loss_adds_the_offset_of_the_position_shown() -> None:
    """Boundaries 1 .. P select o[position]; no other offset gets a gradient."""
    z, label = logits(), np.random.default_rng(1).integers(0, 2, (2, 6))
    position = np.array([[1, 2, 3, 4, 9, 1], [2, 2, 1, 1, 2, 1]])
    layer = PositionOffset(3, "zero")
    layer.build(z.shape)
    randomise(layer)
    o = np.append(numpy(layer.offsets).astype("float64"), 0.0)
    s = z + o[np.minimum(position, 4) - 1]
    want = np.mean(np.logaddexp(0, s) - label * s)
    loss = ObservedTowerLoss(boundaries=(1, 2, 3))
    np.testing.assert_allclose(float(loss(targets(label, position), layer(z))), want, rtol=1e-5)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    model.fit(z[1:], targets(label, position)[1:], verbose=0)
    moved = np.abs(numpy(layer.offsets) - o[:3]) > 0
    np.testing.assert_array_equal(moved, [True, True, False])


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`positions` must be a positive integer. Received: positions=0"):
        PositionOffset(0)
    with pytest.raises(ValueError, match="`beyond` must be one of"):
        PositionOffset(3, "wrap")
    with pytest.raises(ValueError, match="`scale` must be a positive number"):
        PositionOffset(3, scale=0.0)
