"""PositionTowers: separate heads over one state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import PositionTowers
from tests.layers.common import TOLERANCE, by_path, numpy, randomise, run_layer_checks, silu


def make(**settings: Any) -> PositionTowers:
    return PositionTowers(3, hidden=(7, 5), **settings)


def state() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(2, 6, 8)).astype("float32")


@pytest.mark.few(1)
@pytest.mark.parametrize(("towers", "hidden"), [(3, (7, 5)), (1, ()), (2, (4,))])
def test_common(towers: int, hidden: tuple[int, ...], tmp_path: Path) -> None:
    run_layer_checks(
        lambda **settings: PositionTowers(towers, hidden=hidden, **settings), {"inputs": state()}, tmp_path, mixed_dtype="float32"
    )


def test_reference() -> None:
    layer, x = make(), state()
    layer(x)
    randomise(layer)
    w = by_path(layer)

    def tower(k: int) -> np.ndarray:
        h = silu(x @ w[f"tower_{k}_0/kernel"] + w[f"tower_{k}_0/bias"])
        h = silu(h @ w[f"tower_{k}_1/kernel"] + w[f"tower_{k}_1/bias"])
        return (h @ w[f"tower_{k}_logit/kernel"] + w[f"tower_{k}_logit/bias"])[..., 0]

    out = numpy(layer(x))
    for k in range(3):
        np.testing.assert_allclose(out[..., k], tower(k), **TOLERANCE)
    assert np.abs(out[..., 0] - tower(1)).max() > 0.1  # control: towers differ


def test_shared_tower_with_the_range_as_input(tmp_path: Path) -> None:
    x = state()
    run_layer_checks(
        lambda **settings: PositionTowers(3, hidden=(7,), shared=True, embedding_dim=2, **settings),
        {"inputs": x},
        tmp_path,
        mixed_dtype="float32",
    )
    layer = PositionTowers(3, hidden=(7,), shared=True, embedding_dim=2)
    layer.build(x.shape)
    randomise(layer)
    w = by_path(layer)
    out = numpy(layer(x))
    for k in range(3):
        joined = np.concatenate([x.astype("float64"), np.tile(w["ranges"][k], (2, 6, 1))], axis=-1)
        h = silu(joined @ w["tower_0_0/kernel"] + w["tower_0_0/bias"])
        np.testing.assert_allclose(out[..., k], (h @ w["tower_0_logit/kernel"] + w["tower_0_logit/bias"])[..., 0], **TOLERANCE)
    assert np.abs(out[..., 0] - out[..., 1]).max() > 0.01  # control: the range has an effect
    with pytest.raises(ValueError, match="`embedding_dim` must be a positive integer"):
        PositionTowers(3, shared=True, embedding_dim=0)


def test_towers_have_separate_weights() -> None:
    layer, x = make(), state()
    before = numpy(layer(x))
    for weight in layer.weights:
        if "tower_1_" in weight.path:
            weight.assign(weight + 1.0)
    moved = np.abs(numpy(layer(x)) - before).max((0, 1)) > 0
    np.testing.assert_array_equal(moved, [False, True, False])


def test_dropout_only_in_training() -> None:
    layer, x = PositionTowers(2, hidden=(16,), dropout=0.5), state()
    np.testing.assert_array_equal(numpy(layer(x)), numpy(layer(x)))
    assert np.abs(numpy(layer(x, training=True)) - numpy(layer(x))).max() > 0
    assert layer.get_config()["dropout"] == 0.5


def test_float32_logits_under_mixed_precision() -> None:
    """Inputs in bfloat16 give float32 logits, also in the symbolic output of a functional graph."""
    layer = make(dtype="mixed_bfloat16")
    assert layer(keras.Input((None, 8))).dtype == "float32"
    assert keras.backend.standardize_dtype(layer(state()).dtype) == "float32"


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`num_towers` must be a positive integer. Received: num_towers=0"):
        PositionTowers(0)
    with pytest.raises(ValueError, match="`hidden` must be positive widths. Received: hidden=\\(4, 0\\)"):
        PositionTowers(2, hidden=(4, 0))


def test_logits_are_computed_in_float32() -> None:
    """In half precision scores of candidates would be equal: there are 128 bfloat16 numbers between 1 and 2."""
    x = np.random.default_rng(0).normal(size=(500, 8)).astype("float32")
    keras.utils.set_random_seed(0)
    logits = numpy(PositionTowers(1, hidden=(64,), dtype="mixed_bfloat16")(x))
    assert len(np.unique(logits)) > 480
