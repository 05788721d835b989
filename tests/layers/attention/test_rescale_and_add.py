"""RescaleAndAdd: the kinds of residual, alone and around a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import DecoderBlock, RescaleAndAdd
from keras_ranking.ops import Spans
from tests.layers.common import TOLERANCE, by_path, numpy, randomise, run_layer_checks, sigmoid

KINDS = ("plain", "scalar", "layer_scale", "rezero", "dense_gate")


def tensors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 5, 8)).astype("float32"), rng.normal(size=(2, 5, 8)).astype("float32")


def reference(kind: str, w: dict[str, np.ndarray], x: np.ndarray, f: np.ndarray) -> np.ndarray:
    x, f = x.astype("float64"), f.astype("float64")
    if kind == "plain":
        return x + f
    if kind == "dense_gate":
        return x + f * sigmoid(x @ w["gate/kernel"] + w["gate/bias"])
    return x + w["alpha"] * f


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", KINDS)
def test_common(kind: str, tmp_path: Path) -> None:
    x, f = tensors()
    run_layer_checks(lambda **settings: RescaleAndAdd(kind, **settings), {"inputs": x, "branch": f}, tmp_path)


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS)
def test_reference(kind: str) -> None:
    x, f = tensors()
    layer = RescaleAndAdd(kind)
    layer.build(x.shape, f.shape)
    if layer.weights:
        randomise(layer)
    out = numpy(layer(x, f))
    np.testing.assert_allclose(out, reference(kind, by_path(layer), x, f), **TOLERANCE)
    if kind != "plain":  # control
        assert np.abs(out - (x + f)).max() > 0.1
    shapes = {"plain": [], "scalar": [()], "rezero": [()], "layer_scale": [(8,)], "dense_gate": [(8, 8), (8,)]}[kind]
    assert [tuple(weight.shape) for weight in layer.weights] == shapes


def test_initial_values() -> None:
    x, f = tensors()
    np.testing.assert_allclose(numpy(RescaleAndAdd("scalar")(x, f)), x + 0.1 * f, **TOLERANCE)
    np.testing.assert_allclose(numpy(RescaleAndAdd("layer_scale", 0.3)(x, f)), x + 0.3 * f, **TOLERANCE)
    np.testing.assert_array_equal(numpy(RescaleAndAdd("rezero")(x, f)), x)
    np.testing.assert_array_equal(numpy(RescaleAndAdd("plain")(x, f)), x + f)


def block(**settings: Any) -> DecoderBlock:
    return DecoderBlock(num_heads=2, head_dim=4, rotary=None, ffn_multiple=2.0, **settings)


def test_a_block_with_alpha_zero_is_the_identity() -> None:
    x, _ = tensors()
    spans = Spans.causal(np.ones((2, 5), "int32"))
    np.testing.assert_array_equal(numpy(block(residual="rezero")(x, spans=spans)), x)
    assert np.abs(numpy(block(residual="scalar")(x, spans=spans)) - x).max() > 1e-3  # control


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_differ_only_in_their_residuals(kind: str) -> None:
    """The branches of the block, combined here by the reference of the kind."""
    x, _ = tensors()
    spans = Spans.causal(np.ones((2, 5), "int32"))
    layer = block(residual=kind, residual_initial=None)
    layer.build(x.shape)
    randomise(layer)
    w = by_path(layer)

    def own(name: str) -> dict[str, np.ndarray]:
        return {path.removeprefix(f"{name}/"): value for path, value in w.items() if path.startswith(f"{name}/")}

    attended = numpy(layer.attention(layer.attention_norm(x), spans=spans))
    middle = reference(kind, own("attention_add"), x, attended)
    fed = numpy(layer.ffn_out(layer.ffn_in(layer.ffn_norm(middle.astype("float32")))))
    np.testing.assert_allclose(numpy(layer(x, spans=spans)), reference(kind, own("ffn_add"), middle, fed), rtol=1e-4, atol=1e-4)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`kind` must be one of"):
        RescaleAndAdd("highway")
    with pytest.raises(ValueError, match="`initial` has no meaning for kind='plain' and is 0 for kind='rezero'"):
        RescaleAndAdd("rezero", 0.1)
    with pytest.raises(ValueError, match="the last axis of the inputs must be known"):
        RescaleAndAdd().build((None, None, None))
