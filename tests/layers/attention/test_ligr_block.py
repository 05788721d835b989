"""GatedResidual, SwiGLU and LiGRBlock against an independent numpy version; gates forced closed and open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import GatedResidual, LiGRBlock, SwiGLU
from keras_ranking.ops import Spans
from tests.layers.common import (
    by_path,
    layer_norm,
    masked_attention,
    numpy,
    randomise,
    rotate_pairs,
    run_layer_checks,
    sigmoid,
    silu,
)

B, T, D = 2, 6, 8
ROTARY = (8.0, 1_000_000.0)


def inputs() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], "int32")
    return {
        "inputs": rng.normal(size=(B, T, D)).astype("float32"),
        "times": np.sort(rng.integers(0, 100_000, (B, T)), axis=1).astype("int32"),
        "spans": tuple(numpy(part) for part in Spans.causal(segments)),
    }


def block(**settings: Any) -> LiGRBlock:
    return LiGRBlock(**{"num_heads": 2, "head_dim": 4, "rotary": ROTARY, "ffn_multiple": 2.0, **settings})


def ready(**settings: Any) -> LiGRBlock:
    layer = block(**settings)
    layer.build((None, None, D))
    randomise(layer)
    return layer


def reference(layer: LiGRBlock, x: dict[str, Any], normalised_gate: bool = False) -> np.ndarray:
    w = by_path(layer)
    h = x["inputs"].astype("float64")
    start, end, own = x["spans"]
    j = np.arange(T)
    mask = ((j >= start[..., None]) & (j < end[..., None])) | ((j >= own[..., None]) & (j <= j[:, None]))
    a = layer_norm(h, w["attention_half/norm/gamma"], w["attention_half/norm/beta"])
    q, k, v = ((a @ w[f"attention_half/attention/{name}/kernel"]).reshape(B, T, 2, 4) for name in ("query", "key", "value"))
    periods = np.rint(np.geomspace(2 * ROTARY[1], 8 * ROTARY[0], 2))
    q, k = (rotate_pairs(part, x["times"], periods) for part in (q, k))
    out = masked_attention(q, k, v, mask).reshape(B, T, -1) @ w["attention_half/attention/output_map/kernel"]
    h = h + out * sigmoid((a if normalised_gate else h) @ w["attention_half/gate/kernel"] + w["attention_half/gate/bias"])
    f = layer_norm(h, w["ffn_half/norm/gamma"], w["ffn_half/norm/beta"])
    out = (silu(f @ w["ffn_half/ffn/gate/kernel"]) * (f @ w["ffn_half/ffn/up/kernel"])) @ w["ffn_half/ffn/down/kernel"]
    return h + out * sigmoid((f if normalised_gate else h) @ w["ffn_half/gate/kernel"] + w["ffn_half/gate/bias"])


def test_reference() -> None:
    layer, x = ready(), inputs()
    got = numpy(layer(**x))
    np.testing.assert_allclose(got, reference(layer, x), rtol=2e-5, atol=2e-5)
    assert np.abs(got - reference(layer, x, normalised_gate=True)).max() > 1e-2, "control: the gate is computed from the stream before LN"


def force(layer: LiGRBlock, bias: float) -> None:
    for half in (layer.attend, layer.feed):
        half.gate_map.kernel.assign(np.zeros((D, D)))
        half.gate_map.bias.assign(np.full(D, bias))


def test_closed_and_open_gates() -> None:
    layer, x = ready(), inputs()
    force(layer, -1e4)
    np.testing.assert_array_equal(numpy(layer(**x)), x["inputs"])
    force(layer, 1e4)
    plain = block(gate=False)
    plain.build((None, None, D))
    gates = {id(w) for half in (layer.attend, layer.feed) for w in half.gate_map.weights}
    plain.set_weights([numpy(w.value) for w in layer.weights if id(w) not in gates])
    np.testing.assert_allclose(numpy(layer(**x)), numpy(plain(**x)), rtol=1e-6, atol=1e-6)
    force(layer, 0.0)
    assert np.abs(numpy(layer(**x)) - numpy(plain(**x))).max() > 1e-2, "control"


def test_initial_gate_bias() -> None:
    for bias, expected in ((0.0, 0.5), (2.0, sigmoid(np.array(2.0)))):
        layer = GatedResidual(keras.layers.Dense(D, kernel_initializer="zeros", bias_initializer="ones"), gate_bias=bias)
        zeros = np.zeros((1, D), "float32")
        np.testing.assert_allclose(numpy(layer(zeros)), np.full((1, D), expected), rtol=1e-6)
    assert len(GatedResidual(keras.layers.Dense(D), use_bias=False)(np.ones((1, D))).shape) == 2
    layer = GatedResidual(keras.layers.Dense(D), use_bias=False)
    layer.build((None, D))
    assert not layer.gate_map.use_bias


def test_each_branch_has_its_own_gate() -> None:
    layer = ready()
    assert layer.attend.gate_map is not layer.feed.gate_map
    assert len(layer.weights) == len(ready(gate=False).weights) + 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["block", "biased", "gated", "swiglu"])
def test_common(kind: str, tmp_path: Path) -> None:
    x = inputs()
    if kind == "block":
        run_layer_checks(block, x, tmp_path)
    elif kind == "biased":
        options = {"qkv_bias": True, "ffn_bias": True, "epsilon": 1e-5, "attention_dropout": 0.2, "num_kv_heads": 1}
        run_layer_checks(lambda **more: block(**options, **more), x, tmp_path)
    elif kind == "gated":

        def gated(**more: Any) -> GatedResidual:
            return GatedResidual(SwiGLU(16, name="inner", dtype=more.get("dtype")), **more)

        run_layer_checks(gated, {"inputs": x["inputs"]}, tmp_path)
    else:
        run_layer_checks(lambda **more: SwiGLU(16, **more), {"inputs": x["inputs"]}, tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`ffn_multiple` must be positive. Received: ffn_multiple=0"):
        block(ffn_multiple=0)
    with pytest.raises(ValueError, match="`epsilon` must be positive. Received: epsilon=0"):
        block(epsilon=0)
    with pytest.raises(ValueError, match="`attention_dropout` must be from 0 to below 1. Received: attention_dropout=1"):
        block(attention_dropout=1)
    with pytest.raises(ValueError, match="`sublayer` must be a Keras layer. Received: 3"):
        GatedResidual(3)
    with pytest.raises(ValueError, match="`hidden` must be a positive integer. Received: hidden=0"):
        SwiGLU(0)
    with pytest.raises(ValueError, match="the last axis of the inputs must be known"):
        GatedResidual(keras.layers.Dense(4)).build((None, None))
