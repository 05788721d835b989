"""ListContext and ListPooling against numpy list by list; no order, no other list, no padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from keras_ranking import data
from keras_ranking.layers import ListContext, ListPooling
from tests.layers.common import by_path, layer_norm, numpy, randomise, run_layer_checks

B, S, F = 2, 9, 3


def inputs() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(B, S, F)).astype("float32").round(1)
    x[0, 1] = x[0, 2]  # ties
    x[1, 3:6, 0] = 0.5
    slot = np.array([[1, 1, 1, 1, 2, 2, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4, 9]], "int32")
    return {"inputs": x, "slot": slot}


def lists(slot: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(b, np.flatnonzero(slot[b] == number)) for b in range(B) for number in set(slot[b]) - {0}]


def test_context_is_that_of_list_relative() -> None:
    x = inputs()
    out = numpy(ListContext()(**x))
    expected = np.zeros((B, S, 4 * F + 1))
    for b, index in lists(x["slot"]):
        frame = pd.DataFrame(x["inputs"][b, index].astype("float64"), columns=list("abc")).assign(list=0)
        relative = data.list_relative(frame, list("abc"), "list")
        columns = [frame[list("abc")], *(relative[[f"{name}_{kind}" for name in "abc"]] for kind in ("minus_mean", "minus_max", "rank"))]
        expected[b, index] = np.column_stack([*columns, np.full(len(index), np.log(len(index)))])
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
    assert ListContext(parts=["rank"])(**x).shape == (B, S, 2 * F)


def test_pooling_reads_mean_and_maximum_of_its_list() -> None:
    from math import erf

    layer, x = ListPooling(hidden=5), inputs()
    layer.build((None, None, F))
    randomise(layer)
    w, out = by_path(layer), numpy(layer(**x))
    normed = layer_norm(x["inputs"].astype("float64"), w["norm/gamma"], w["norm/beta"])
    expected = x["inputs"].astype("float64")
    for b, index in lists(x["slot"]):
        own = normed[b, index]
        read = np.concatenate([own, np.broadcast_to(own.mean(0), own.shape), np.broadcast_to(own.max(0), own.shape)], axis=1)
        inner = read @ w["inner/kernel"] + w["inner/bias"]
        inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
        expected[b, index] += inner @ w["outer/kernel"] + w["outer/bias"]
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [ListContext, ListPooling])
def test_no_order_no_other_list_no_padding(kind: Any) -> None:
    layer, x = kind(), inputs()
    layer.build((None, None, F))
    if layer.weights:
        randomise(layer)
    before = numpy(layer(**x))
    order = np.array([2, 0, 3, 1, 5, 4, 6, 8, 7])
    moved = numpy(layer(x["inputs"][:1, order], slot=x["slot"][:1, order]))
    np.testing.assert_allclose(moved, before[:1, order], rtol=0, atol=1e-5)
    changed = {name: value.copy() for name, value in x.items()}
    changed["inputs"][0, :4] += 1.5
    changed["inputs"][0, 7:] = np.nan
    after = numpy(layer(**changed))
    np.testing.assert_array_equal(after[0, 4:7], before[0, 4:7])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0, :4] - before[0, :4]).max() > 0.1, "control"
    alone = numpy(layer(x["inputs"][:1, 4:6], slot=np.ones((1, 2), "int32")))  # a request of its own
    np.testing.assert_allclose(alone[0], before[0, 4:6], rtol=0, atol=1e-6)


def test_the_gradient_of_a_maximum_is_shared_by_those_that_have_it() -> None:
    x = np.array([[[1.0], [3.0], [3.0], [2.0]]], "float32")
    slot = np.array([[1, 1, 1, 1]], "int32")
    layer = ListContext(parts=["minus_max"])

    def minus_max(values: Any) -> Any:  # sum over the list of x_i - max
        return keras.ops.sum(layer(values, slot=slot)[..., 1])

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        values = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(values)
            out = minus_max(values)
        slope = tape.gradient(out, values).numpy()
    elif backend == "jax":
        import jax

        slope = np.asarray(jax.grad(minus_max)(x))
    else:
        values = keras.ops.convert_to_tensor(x).requires_grad_(True)
        minus_max(values).backward()
        slope = values.grad.numpy()
    np.testing.assert_allclose(slope[0, :, 0], [1.0, -1.0, -1.0, 1.0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ListContext, ListPooling])
def test_common(kind: Any, tmp_path: Path) -> None:
    run_layer_checks(kind, inputs(), tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`parts` must be among"):
        ListContext(parts=["median"])
    with pytest.raises(ValueError, match="`hidden` must be a positive integer"):
        ListPooling(hidden=0)
