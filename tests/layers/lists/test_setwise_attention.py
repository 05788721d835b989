"""SetwiseAttention: sets without order, the best k of each, and no dependence of one set on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import SetwiseAttention
from keras_ranking.ops import Spans
from tests.layers.common import by_path, layer_norm, masked_attention, numpy, randomise, run_layer_checks, sigmoid, silu

B, S, D = 2, 9, 8


def make(**settings: Any) -> SetwiseAttention:
    return SetwiseAttention(**{"num_heads": 2, "ffn_multiple": 2.0, **settings})


def ready(**settings: Any) -> SetwiseAttention:
    layer = make(**settings)
    layer.build((None, None, D))
    randomise(layer)
    return layer


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.normal(size=(B, S, D)).astype("float32"),
        "slot": np.array([[1, 1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]], "int32"),
        "score": np.array([[0.1, 0.5, 0.5, 0.2, 0.3, 0.9, 0.0, 9.0, 9.0], [0, 1, 2, 3, 4, 5, 6, 7, 7]], "float32"),
    }


def best(x: dict[str, np.ndarray], k: int | None) -> np.ndarray:
    """Whether each item is among the best k of its set, by brute force; of equal scores the earlier item first."""
    chosen = np.zeros((B, S), bool)
    for b in range(B):
        for group in set(x["slot"][b]) - {0}:
            index = np.flatnonzero(x["slot"][b] == group)
            chosen[b, index[np.argsort(-x["score"][b, index], kind="stable")][:k]] = True
    return chosen


def reference(layer: SetwiseAttention, x: dict[str, np.ndarray]) -> np.ndarray:
    w = by_path(layer)
    chosen = best(x, layer.top_k)
    h = x["inputs"].astype("float64")
    mask = (x["slot"][:, :, None] == x["slot"][:, None, :]) & chosen[:, :, None] & chosen[:, None, :]
    for i in range(layer.num_layers):
        at = f"block_{i}/attention_half/"
        a = layer_norm(h, w[at + "norm/gamma"], w[at + "norm/beta"])
        q, k, v = ((a @ w[f"{at}attention/{name}/kernel"]).reshape(B, S, 2, 4) for name in ("query", "key", "value"))
        out = masked_attention(q, k, v, mask).reshape(B, S, -1) @ w[at + "attention/output_map/kernel"]
        h = h + out * sigmoid(h @ w[at + "gate/kernel"] + w[at + "gate/bias"])
        at = f"block_{i}/ffn_half/"
        f = layer_norm(h, w[at + "norm/gamma"], w[at + "norm/beta"])
        out = (silu(f @ w[at + "ffn/gate/kernel"]) * (f @ w[at + "ffn/up/kernel"])) @ w[at + "ffn/down/kernel"]
        h = h + out * sigmoid(h @ w[at + "gate/kernel"] + w[at + "gate/bias"])
    return np.where(chosen[..., None], h, x["inputs"])


@pytest.mark.few(2)
@pytest.mark.parametrize("top_k", [None, 2, 50])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reference(top_k: int | None, num_layers: int) -> None:
    layer, x = ready(top_k=top_k, num_layers=num_layers), inputs()
    out, chosen = layer(**x)
    real = x["slot"] > 0
    np.testing.assert_array_equal(numpy(chosen) > 0, best(x, top_k))
    np.testing.assert_allclose(numpy(out)[real], reference(layer, x)[real], rtol=2e-5, atol=2e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("top_k", [None, 3, 50])
def test_permuting_a_set_permutes_its_output_and_a_whole_row_is_one_set(top_k: int | None) -> None:
    layer, x = ready(top_k=top_k), inputs()
    slot = np.broadcast_to(np.where(np.arange(S) < 7, 1, 0), (B, S)).astype("int32")
    one = {"inputs": x["inputs"], "slot": slot, "score": np.random.default_rng(2).random((B, S)).astype("float32")}
    out, _ = layer(**one)
    order = np.concatenate([np.random.default_rng(1).permutation(7), [7, 8]])
    moved, _ = layer(inputs=one["inputs"][:, order], slot=one["slot"], score=one["score"][:, order])
    np.testing.assert_allclose(numpy(moved)[:, :7], numpy(out)[:, order][:, :7], rtol=1e-5, atol=1e-6)
    short, chosen = layer(**one, whole=True)
    np.testing.assert_allclose(numpy(short)[:, :7], numpy(out)[:, :7], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(numpy(chosen), numpy(layer(**one)[1]))

    # control: an order inside the set changes the output
    class Ordered(SetwiseAttention):
        def _blocks(self, x: Any, spans: Any, training: Any) -> Any:
            return super()._blocks(x, tuple(Spans.causal(np.ones(x.shape[:2], "int32"))), training)

    ordered = Ordered(num_heads=2, ffn_multiple=2.0)
    ordered.build((None, None, D))
    randomise(ordered)
    out, moved = ordered(one["inputs"], slot=one["slot"])[0], ordered(one["inputs"][:, order], slot=one["slot"])[0]
    assert np.abs(numpy(moved) - numpy(out)[:, order]).max() > 1e-2


@pytest.mark.parametrize("top_k", [None, 2])
def test_sets_do_not_depend_on_other_sets_or_padding(top_k: int | None) -> None:
    layer, x = ready(top_k=top_k), inputs()
    before = numpy(layer(**x)[0])
    changed = {name: value.copy() for name, value in x.items()}
    changed["inputs"][0, :4] += 1.0
    changed["inputs"][0, 7:] = np.nan
    changed["score"][0, 7:] = 100.0
    after = numpy(layer(**changed)[0])
    np.testing.assert_array_equal(after[0, 4:7], before[0, 4:7])
    assert np.abs(after[0, :4] - before[0, :4]).max() > 1e-3, "control"
    if top_k is not None:  # other items neither change nor are seen
        changed = {name: value.copy() for name, value in x.items()}
        changed["inputs"][0, 0] += 1.0
        after = numpy(layer(**changed)[0])
        np.testing.assert_array_equal(after[0, 1:], before[0, 1:])
        np.testing.assert_array_equal(after[0, 0], changed["inputs"][0, 0])


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("top_k", [None, 2])
def test_common(top_k: int | None, tmp_path: Path) -> None:
    run_layer_checks(lambda **more: make(top_k=top_k, **more), inputs(), tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`top_k` must be a positive integer. Received: top_k=0"):
        make(top_k=0)
    with pytest.raises(ValueError, match="`score` must be given to choose the best 2"):
        ready(top_k=2)(inputs()["inputs"], slot=inputs()["slot"])
