"""ObservedValueLoss: squared error and Huber's loss of the observed tower, against float64."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.losses import ObservedValueLoss
from tests.losses.helpers import value_and_gradient, value_of

RNG = np.random.default_rng(0)
POSITION = RNG.integers(1, 8, (3, 5))
LABEL = RNG.normal(size=(3, 5)) * 3
OUTPUT = RNG.normal(size=(3, 5, 2)) * 3
WEIGHT = RNG.uniform(0, 2, (3, 5)) * (RNG.random((3, 5)) < 0.7)


def packed(label: np.ndarray) -> np.ndarray:
    return np.stack([label, POSITION, np.ones_like(POSITION)], axis=-1).astype(np.float32)


def reference(delta: float | None) -> tuple[float, np.ndarray]:
    """Loss and gradient by the outputs, in float64."""
    tower = (POSITION > 4).astype(int)
    apart = np.take_along_axis(OUTPUT, tower[..., None], axis=2)[..., 0] - LABEL
    if delta is None:
        value, slope = apart**2, 2 * apart
    else:
        small = np.abs(apart) <= delta
        value = np.where(small, apart**2 / 2, delta * (np.abs(apart) - delta / 2))
        slope = np.where(small, apart, delta * np.sign(apart))
    gradient = np.zeros(OUTPUT.shape)
    np.put_along_axis(gradient, tower[..., None], (WEIGHT * slope / WEIGHT.sum())[..., None], axis=2)
    return float((WEIGHT * value).sum() / WEIGHT.sum()), gradient


@pytest.mark.parametrize("delta", [None, 0.5, 4.0])
def test_value_and_gradient(delta: float | None) -> None:
    loss = ObservedValueLoss((4,), delta)
    expected, slope = reference(delta)
    label = np.where(WEIGHT > 0, LABEL, np.nan)  # an unknown label counts for nothing
    weight = WEIGHT.astype(np.float32)
    value, found = value_and_gradient(lambda x: loss(packed(label), x, weight), OUTPUT.astype(np.float32))
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-6)
    others = np.ascontiguousarray(OUTPUT[..., ::-1]).astype(np.float32)
    assert value_of(loss, packed(LABEL), others, weight) != pytest.approx(expected, rel=1e-2)  # control: the towers matter


def test_no_weight_no_loss_and_wrong_numbers() -> None:
    loss = ObservedValueLoss(delta=1.0)
    assert float(loss(packed(LABEL), OUTPUT[..., :1], np.zeros((3, 5)))) == 0.0
    with pytest.raises(ValueError, match="`y_true` must hold finite numbers"):
        loss(packed(np.where(LABEL > 1, np.inf, LABEL)), OUTPUT[..., :1])
    with pytest.raises(ValueError, match="`delta` must be a positive number, or None. Received: delta=0"):
        ObservedValueLoss(delta=0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ObservedValueLoss((1, 4), 2.0)))
    assert (again.boundaries, again.delta) == ((1, 4), 2.0)
    assert kr.losses.ObservedTowerLoss().smallest_label == 0.0
    with pytest.raises(ValueError, match="labels from 0 to 1"):  # control: others take no negative label
        kr.losses.ObservedTowerLoss()(packed(LABEL), OUTPUT[..., :1])
