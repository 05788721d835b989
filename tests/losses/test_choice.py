"""InRequestChoice against loops in float64: values, gradients, unknown labels, requests with several positives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from keras import ops

from keras_ranking.layers import ChoiceProbability
from keras_ranking.losses import InRequestChoice, ObservedTowerLoss, targets
from tests.losses.helpers import random_batch, value_and_gradient, value_of


def reference(plain: np.ndarray, odds: np.ndarray, weight: np.ndarray) -> float:
    """Labels that sum to more than 1 are divided by their sum."""
    top = 0.0
    for b in range(len(plain)):
        for number in np.unique(plain[b, :, 2]):
            member = [t for t in range(plain.shape[1]) if plain[b, t, 2] == number and weight[b, t] > 0]
            if not member:
                continue
            positives = sum(plain[b, t, 0] for t in member)
            share = {t: 1.0 / (1.0 + math.exp(-float(odds[b, t, 0]))) for t in member}
            top -= sum(float(weight[b, t]) * plain[b, t, 0] / max(positives, 1.0) * math.log(share[t]) for t in member)
            if positives < 1:
                mean = sum(float(weight[b, t]) for t in member) / len(member)
                top -= mean * (1 - positives) * math.log(1 - sum(share.values()))
    return top / float(weight.sum())


def choices(seed: int, several: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Packed targets, log-odds, weights, plain targets, and the requests as slots."""
    rng = np.random.default_rng(seed)
    _, logits, weight, plain = random_batch(rng, towers=1)
    slot = np.cumsum(np.diff(plain[..., 2], axis=1, prepend=-1) != 0, axis=1).astype("int32")
    if not several:
        for b in range(len(plain)):
            for number in np.unique(slot[b]):
                index = np.flatnonzero(slot[b] == number)
                plain[b, index, 0] = 0
                if rng.random() < 0.6:
                    plain[b, rng.choice(index), 0] = 1
    odds = np.array(ops.convert_to_numpy(ChoiceProbability(logits=True)(logits[..., 0], slot=slot)))[..., None]
    return targets(plain[..., 0], plain[..., 1], plain[..., 2]), odds, weight, plain, slot


@pytest.mark.parametrize("seed", range(2))
def test_the_loss_equals_the_formula(seed: int) -> None:
    y_true, odds, weight, plain, _ = choices(seed)
    wanted = reference(plain, odds, weight)
    assert value_of(InRequestChoice(), y_true, odds, weight) == pytest.approx(wanted, rel=1e-5)
    binary = value_of(ObservedTowerLoss(), y_true, odds, weight)  # control: another loss
    assert abs(binary - wanted) > 1e-3
    y_true, odds, weight, plain, _ = choices(seed, several=True)
    assert value_of(InRequestChoice("split"), y_true, odds, weight) == pytest.approx(reference(plain, odds, weight), rel=1e-5)


def test_the_gradient_in_logits_is_that_of_a_softmax() -> None:
    y_true, _, _, plain, slot = choices(3)
    layer = ChoiceProbability("constant", initial=0.4, logits=True)
    layer.build((None, None))
    z = np.random.default_rng(3).normal(size=slot.shape).astype("float32")

    def loss(x: Any) -> Any:
        return InRequestChoice()(y_true, ops.expand_dims(layer(x, slot=slot), -1))

    _, gradient = value_and_gradient(loss, z)
    chosen = np.asarray(ops.convert_to_numpy(ops.sigmoid(layer(z, slot=slot))))
    np.testing.assert_allclose(gradient * slot.size, chosen - plain[..., 0], rtol=0, atol=2e-5)


@pytest.mark.release("jax")
def test_one_item_is_a_cross_entropy_and_no_weight_is_zero() -> None:
    y_true = targets([[1, 0]], request=[[1, 2]])
    odds = np.array([[[0.3], [-1.0]]], "float32")
    assert value_of(InRequestChoice(), y_true, odds) == pytest.approx(value_of(ObservedTowerLoss(), y_true, odds), rel=1e-6)
    assert value_of(InRequestChoice(), y_true, odds, np.zeros((1, 2), "float32")) == 0


@pytest.mark.release("jax")
def test_an_unknown_label_leaves_its_item_in_the_softmax() -> None:
    odds = np.array(ops.convert_to_numpy(ChoiceProbability(logits=True)(np.zeros((1, 3), "float32"), slot=np.ones((1, 3), "int32"))))
    y_true = targets([[0, 0, np.nan]], request=[[1, 1, 1]])
    loss = value_of(InRequestChoice(), y_true, odds[..., None], np.array([[1, 1, 0]], "float32"))
    assert loss == pytest.approx(-math.log(0.5) / 2, rel=1e-5)  # the other item, or none


@pytest.mark.quickest
def test_errors() -> None:
    y_true = targets([[0, 0, 1, 0], [1, 1, 0, 0]], request=[[1, 1, 2, 2], [1, 1, 2, 2]])
    odds = np.zeros((2, 4, 1), "float32") - 1
    words = (
        "1 of 4 requests with more, the first with 2, from item 0 of row 1 on; several='split', of a model choice_several='split', shares"
    )
    with pytest.raises(ValueError, match=words):
        InRequestChoice()(y_true, odds)
    with pytest.raises(ValueError, match=words):
        InRequestChoice()(ops.convert_to_tensor(y_true), ops.convert_to_tensor(odds))
    assert np.isfinite(value_of(InRequestChoice(), y_true, odds, np.array([[1, 1, 1, 1], [1, 0, 1, 1]], "float32")))
    with pytest.raises(ValueError, match="`several` must be one of .* Received: several='first'"):
        InRequestChoice("first")
    with pytest.raises(ValueError, match="must hold the items of a request in a row"):
        InRequestChoice()(np.zeros(4, "float32"), np.zeros((4, 1), "float32"))
    assert InRequestChoice.from_config(InRequestChoice("split", name="x").get_config()).several == "split"
