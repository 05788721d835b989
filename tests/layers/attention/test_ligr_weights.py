"""Weights of a LiGR layer of PyTorch in a LiGRBlock: the layer written again in numpy, and in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.layers import LiGRBlock, load_ligr_weights
from keras_ranking.ops import Spans
from tests.layers.common import layer_norm, masked_attention, numpy, sigmoid, silu

T, D, H = 5, 8, 32
SHAPES = {
    "layer_norm_1.weight": (D,),
    "layer_norm_1.bias": (D,),
    "multi_head_attn.in_proj_weight": (3 * D, D),
    "multi_head_attn.in_proj_bias": (3 * D,),
    "multi_head_attn.out_proj.weight": (D, D),
    "multi_head_attn.out_proj.bias": (D,),
    "gating_linear_1.weight": (D, D),
    "gating_linear_1.bias": (D,),
    "layer_norm_2.weight": (D,),
    "layer_norm_2.bias": (D,),
    "feed_forward.ff_linear_1.weight": (H, D),
    "feed_forward.ff_linear_2.weight": (D, H),
    "feed_forward.ff_linear_3.weight": (H, D),
    "gating_linear_2.weight": (D, D),
    "gating_linear_2.bias": (D,),
}
FFN_BIASES = {"feed_forward.ff_linear_1.bias": (H,), "feed_forward.ff_linear_2.bias": (D,), "feed_forward.ff_linear_3.bias": (H,)}


def weights(prefix: str = "", ffn_bias: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {prefix + name: rng.normal(0, 0.5, shape) for name, shape in {**SHAPES, **(FFN_BIASES if ffn_bias else {})}.items()}


def tokens() -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(2, T, D))
    x[1] *= 0.01  # where epsilon matters
    return x.astype("float32")


def in_numpy(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The layer in float64: causal attention of two heads, then SwiGLU, each in a gated residual."""

    def linear(name: str, value: np.ndarray) -> np.ndarray:
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    h = x.astype("float64")
    a = layer_norm(h, w["layer_norm_1.weight"], w["layer_norm_1.bias"], 1e-5)
    matrices, biases = (np.split(w[f"multi_head_attn.in_proj_{name}"], 3) for name in ("weight", "bias"))
    q, k, v = ((a @ matrices[i].T + biases[i]).reshape(*a.shape[:2], 2, D // 2) for i in range(3))
    mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (len(x), T, T))
    h = h + linear("multi_head_attn.out_proj", masked_attention(q, k, v, mask).reshape(h.shape)) * sigmoid(linear("gating_linear_1", h))
    f = layer_norm(h, w["layer_norm_2.weight"], w["layer_norm_2.bias"], 1e-5)
    hidden = silu(linear("feed_forward.ff_linear_1", f)) * linear("feed_forward.ff_linear_3", f)
    return h + linear("feed_forward.ff_linear_2", hidden) * sigmoid(linear("gating_linear_2", h))


def made(**options: Any) -> LiGRBlock:
    return LiGRBlock(**{"num_heads": 2, "head_dim": D // 2, "rotary": None, "qkv_bias": True, "epsilon": 1e-5, **options})


def called(block: LiGRBlock) -> np.ndarray:
    return numpy(block(tokens(), spans=tuple(Spans.causal(np.ones((2, T), "int32")))))


@pytest.mark.parametrize("ffn_bias", [False, True])
def test_equal_outputs(ffn_bias: bool) -> None:
    w = weights("blocks.1.", ffn_bias)
    block = made(ffn_bias=ffn_bias)
    load_ligr_weights(block, {**w, "blocks.2.other": np.ones(3)}, prefix="blocks.1.")
    expected = in_numpy({name.removeprefix("blocks.1."): value for name, value in w.items()}, tokens())
    np.testing.assert_allclose(called(block), expected, rtol=1e-5, atol=1e-5)
    other = made(ffn_bias=ffn_bias, epsilon=1e-6)
    load_ligr_weights(other, w, prefix="blocks.1.")
    assert np.abs(called(other) - expected).max() > 1e-3, "control: another epsilon"
    one, three = "blocks.1.feed_forward.ff_linear_1.weight", "blocks.1.feed_forward.ff_linear_3.weight"
    load_ligr_weights(block, {**w, one: w[three], three: w[one]}, prefix="blocks.1.")
    assert np.abs(called(block) - expected).max() > 1e-2, "control: the two maps of the SwiGLU in each other's place"


@pytest.mark.quickest
def test_equal_to_a_layer_of_torch() -> None:
    import torch

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.multi_head_attn = torch.nn.MultiheadAttention(D, 2, batch_first=True)
            self.feed_forward = torch.nn.Module()
            for number in (1, 2):
                setattr(self, f"layer_norm_{number}", torch.nn.LayerNorm(D))
                setattr(self, f"gating_linear_{number}", torch.nn.Linear(D, D))
            for number, sizes in ((1, (D, H)), (2, (H, D)), (3, (D, H))):
                setattr(self.feed_forward, f"ff_linear_{number}", torch.nn.Linear(*sizes, bias=False))

    torch.manual_seed(0)
    own, x = Own(), torch.tensor(tokens())
    with torch.no_grad():
        for part in own.parameters():
            part.add_(0.2 * torch.randn_like(part))  # PyTorch's first biases are zeros
        a = own.layer_norm_1(x)
        hidden = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
        h = x + own.multi_head_attn(a, a, a, attn_mask=hidden)[0] * torch.sigmoid(own.gating_linear_1(x))
        f, ff = own.layer_norm_2(h), own.feed_forward
        grown = ff.ff_linear_2(torch.nn.functional.silu(ff.ff_linear_1(f)) * ff.ff_linear_3(f))
        expected = h + grown * torch.sigmoid(own.gating_linear_2(h))
    block = made()
    load_ligr_weights(block, own.state_dict())
    np.testing.assert_allclose(called(block), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.quickest
def test_the_blocks_of_a_model() -> None:
    log = kr.data.simulate(members=8, days=1, seed=0)
    sizes = {"dim": D, "num_heads": 2, "num_layers": 2, "max_history": 4, "rotary": None, "setwise_layers": 1}
    chosen = {"qkv_bias": True, "attention_dropout": 0.1, "epsilon": 1e-5}
    schema = log.schema.fit(log.events)
    model = kr.models.LiGR(schema, **sizes, **chosen)
    blocks = [layer for layer in model._flatten_layers() if isinstance(layer, LiGRBlock)]
    assert len(blocks) == 3
    for block in blocks:
        assert {name: block.get_config()[name] for name in chosen} == chosen
        load_ligr_weights(block, weights())
    assert {name: model.arguments[name] for name in chosen} == chosen
    assert not set(chosen) & set(kr.models.LiGR(schema, **sizes).arguments), "written where they are chosen"
    with pytest.raises(
        ValueError, match="`attention_dropout` must be from 0 to below 1, and `epsilon` positive. Received: attention_dropout=1.0"
    ):
        kr.models.GatedBlocks(attention_dropout=1.0)


@pytest.mark.quickest
def test_errors() -> None:
    w = weights()
    block = made()
    load_ligr_weights(block, w)
    before = called(block)
    bad = {**w, "layer_norm_1.weight": np.ones(D + 1), "gating_linear_1.scale": np.ones(1)}
    del bad["gating_linear_2.bias"], bad["layer_norm_2.bias"]
    with pytest.raises(ValueError) as raised:
        load_ligr_weights(block, {f"a.{name}": value for name, value in bad.items()}, prefix="a.")
    for part in (
        "Missing: ['a.layer_norm_2.bias', 'a.gating_linear_2.bias']",
        "Without a place here: ['a.gating_linear_1.scale']",
        "Shapes: 'a.layer_norm_1.weight' (9,) in place of (8,)",
    ):
        assert part in str(raised.value)
    np.testing.assert_array_equal(called(block), before)
    cases = [
        ({"qkv_bias": False}, w, "A block with qkv_bias=True has other names"),
        ({"gate": False}, w, "A block with gate=True has other names"),
        ({"use_bias": False}, w, "A block with use_bias=True has other names"),
        ({}, weights(ffn_bias=True), "A block with ffn_bias=True has other names"),
        ({"ffn_multiple": 2.0}, w, r"'feed_forward.ff_linear_1.weight' \(32, 8\) in place of \(16, 8\)"),
        ({"rotary": (8.0, 100.0)}, w, "make the block with rotary=None"),
        ({}, {"a.layer_norm_1.weight": np.ones(D)}, "`weights` must have 'layer_norm_1.weight', which gives the width"),
    ]
    for options, given, message in cases:
        with pytest.raises(ValueError, match=message):
            load_ligr_weights(made(**options), given)
