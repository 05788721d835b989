"""ChoiceProbability against a softmax in float64, list by list; no order, no other list, no padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import ChoiceProbability
from tests.layers.common import numpy, randomise, run_layer_checks, sigmoid
from tests.losses.helpers import value_and_gradient

B, S = 2, 9
SLOT = np.array([[1, 1, 1, 1, 2, 2, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4, 9]], "int32")


def inputs() -> dict[str, np.ndarray]:
    z = 2 * np.random.default_rng(0).normal(size=(B, S)).astype("float32")
    z[0, 1] = z[0, 2]  # ties
    return {"inputs": z, "slot": SLOT}


def reference(z: np.ndarray, slot: np.ndarray, constant: float, slope: float) -> tuple[np.ndarray, np.ndarray]:
    chosen, none = np.zeros(z.shape), np.ones(z.shape)
    for b in range(len(z)):
        for number in set(slot[b]) - {0}:
            index = np.flatnonzero(slot[b] == number)
            logits = np.append(z[b, index].astype("float64"), constant + slope * np.log(len(index)))
            share = np.exp(logits - logits.max())
            share /= share.sum()
            chosen[b, index], none[b, index] = share[:-1], share[-1]
    return chosen, none


@pytest.mark.parametrize("no_choice", ["size", "constant"])
def test_probabilities_of_each_list_and_of_no_choice(no_choice: str) -> None:
    x = inputs()
    layer = ChoiceProbability(no_choice, initial=0.7)
    layer.build((None, None))
    randomise(layer)
    chosen, none = numpy(layer(**x, return_no_choice=True))
    values = [float(numpy(weight.value)) for weight in layer.weights]
    wanted, of_none = reference(x["inputs"], SLOT, constant=0.7 + values[0], slope=[*values, 0.0][1])
    np.testing.assert_allclose(chosen, wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(none, of_none, rtol=0, atol=1e-6)
    for b in range(B):
        for number in set(SLOT[b]) - {0}:
            index = SLOT[b] == number
            assert chosen[b, index].sum() + none[b, index][0] == pytest.approx(1.0, abs=1e-6)
    odds = ChoiceProbability(no_choice, initial=0.7, logits=True)
    odds.build((None, None))
    odds.set_weights(layer.get_weights())
    np.testing.assert_allclose(sigmoid(numpy(odds(**x)))[SLOT > 0], wanted[SLOT > 0], rtol=1e-5)
    # Control: without the outcome of no choice, probabilities sum to 1.
    assert wanted[0, :4].sum() < 0.95


def test_no_order_no_other_list_no_padding() -> None:
    x = inputs()
    layer = ChoiceProbability(logits=True)
    layer.build((None, None))
    randomise(layer)
    before = numpy(layer(**x))
    order = np.array([2, 0, 3, 1, 5, 4, 6, 8, 7])
    moved = numpy(layer(x["inputs"][:1, order], slot=SLOT[:1, order]))
    np.testing.assert_allclose(moved, before[:1, order], rtol=0, atol=1e-6)
    changed = {name: value.copy() for name, value in x.items()}
    changed["inputs"][0, 0] += 1.5
    changed["inputs"][0, 7:] = np.nan
    after = numpy(layer(**changed))
    np.testing.assert_array_equal(after[0, 4:], before[0, 4:])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0, 1:4] - before[0, 1:4]).min() > 0.05, "control: the others of its list change"
    alone = numpy(layer(x["inputs"][:1, 4:6], slot=np.ones((1, 2), "int32")))  # a request of its own
    np.testing.assert_allclose(alone, before[:1, 4:6], rtol=0, atol=1e-6)


def test_large_logits_and_gradients() -> None:
    z = np.array([[90.0, -90.0, 3.0], [-200.0, -200.0, -200.0], [40.0, 40.0, 39.0]], "float32")
    slot = np.ones((3, 3), "int32")
    layer = ChoiceProbability(logits=True)
    odds = numpy(layer(z, slot=slot))
    wanted = np.array([[69.1, -180.0, -87.0], [-200.0, -200.0, -200.0], [-np.log(1 + np.exp(-1)), -np.log(1 + np.exp(-1)), -1 - np.log(2)]])
    np.testing.assert_allclose(odds, wanted, rtol=1e-3, atol=1e-6)
    small = np.array([[0.3, -0.4, 1.2]], "float32")

    def value(x: Any) -> Any:
        return keras.ops.sum(keras.ops.sigmoid(layer(x, slot=slot[:1])) * keras.ops.convert_to_tensor([[1.0, 2.0, -1.0]]))

    _, gradient = value_and_gradient(value, small)
    for i in range(3):
        ends = [reference(small + step * np.eye(3)[i], slot[:1], 0.0, 0.0)[0] @ [1.0, 2.0, -1.0] for step in (1e-5, -1e-5)]
        assert gradient[0, i] == pytest.approx(float(ends[0][0] - ends[1][0]) / 2e-5, abs=1e-5)
    _, gradient = value_and_gradient(lambda x: keras.ops.sum(keras.ops.softplus(-layer(x, slot=slot))), z)
    assert np.isfinite(gradient).all()


def test_layer_contract(tmp_path: Path) -> None:
    run_layer_checks(lambda **settings: ChoiceProbability(**settings), inputs(), tmp_path, mixed_dtype="float32")


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`no_choice` must be one of .* Received: no_choice='never'"):
        ChoiceProbability("never")
    with pytest.raises(ValueError, match="`initial` must be a finite number. Received: initial=inf"):
        ChoiceProbability(initial=float("inf"))
