"""HistoryEncoder, fusion concat: the latest visible events, read together with each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import HistoryEncoder
from tests.layers.common import by_path, layer_norm, masked_attention, numpy, randomise, rotate_pairs, run_layer_checks, silu

B, L, N, E, C, W, K = 3, 7, 4, 4, 2, 5, 2
D = E + C
ROTARY = (2.0, 5_000_000.0)


def make(**settings: Any) -> HistoryEncoder:
    return HistoryEncoder(**{"fusion": "concat", "max_history": W, "num_heads": 2, "head_dim": 4, "latest": K, **settings})


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "history": rng.normal(size=(B, L, E)).astype("float32"),
        "candidates": rng.normal(size=(B, N, C)).astype("float32"),
        "visible": np.array([7, 3, 0], "int32"),
        "times": np.sort(rng.integers(0, 300_000_000, (B, L)), axis=1).astype("int32"),
    }


def ready(**settings: Any) -> HistoryEncoder:
    layer = make(**settings)
    layer.build({name: x.shape for name, x in inputs().items()})
    randomise(layer)
    return layer


def reference(layer: HistoryEncoder, x: dict[str, np.ndarray]) -> np.ndarray:
    """One candidate and one window at a time, in float64, with the real events only."""
    w = by_path(layer)
    out = np.zeros((B, N, (1 + K) * D))
    for b in range(B):
        events = slice(max(0, x["visible"][b] - W), x["visible"][b])
        length = events.stop - events.start
        for n in range(N if length else 0):
            h = np.concatenate([x["history"][b, events], np.tile(x["candidates"][b, n], (length, 1))], axis=1).astype("float64")[None]
            for i in range(2):
                normed = layer_norm(h, w[f"block_{i}/attention_norm/gamma"], w[f"block_{i}/attention_norm/beta"])
                query, key, value = (
                    (normed @ w[f"block_{i}/attention/{name}/kernel"]).reshape(1, length, 2, 4) for name in ("query", "key", "value")
                )
                if layer.rotary is not None:
                    periods = np.rint(np.geomspace(2 * ROTARY[1], 8 * ROTARY[0], 2))
                    query, key = (rotate_pairs(part, x["times"][b : b + 1, events], periods) for part in (query, key))
                mask = np.ones((1, length, length), bool)
                h = h + masked_attention(query, key, value, mask).reshape(1, length, -1) @ w[f"block_{i}/attention/output_map/kernel"]
                normed = layer_norm(h, w[f"block_{i}/ffn_norm/gamma"], w[f"block_{i}/ffn_norm/beta"])
                hidden = silu(normed @ w[f"block_{i}/ffn_in/kernel"] + w[f"block_{i}/ffn_in/bias"])
                assert hidden.shape[-1] == D // 2
                h = h + hidden @ w[f"block_{i}/ffn_out/kernel"] + w[f"block_{i}/ffn_out/bias"]
            h = layer_norm(h, w["norm/gamma"], w["norm/beta"])[0]
            out[b, n, :D] = h.max(axis=0)
            for k in range(min(K, length)):
                out[b, n, (1 + k) * D : (2 + k) * D] = h[length - 1 - k]
    return out if layer.projection is None else out @ w["projection/kernel"] + w["projection/bias"]


@pytest.mark.release("jax")
@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("rotary", [None, ROTARY])
def test_common(rotary: Any, tmp_path: Path) -> None:
    x = inputs()
    if rotary is None:
        x.pop("times")
    run_layer_checks(lambda **settings: make(rotary=rotary, **settings), {"inputs": x}, tmp_path)


@pytest.mark.few(1)
@pytest.mark.parametrize("settings", [{}, {"rotary": ROTARY}, {"projection": 3}])
def test_reference(settings: dict[str, Any]) -> None:
    layer = ready(**settings)
    got, want = numpy(layer(inputs())), reference(layer, inputs())
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    if layer.projection is None:
        assert not got[2].any(), "no event: zero"
        assert not got[1, :, 3 * D :].any() and got[1, :, D : 3 * D].any()


def test_hidden_events_change_no_output() -> None:
    layer, x = ready(rotary=ROTARY), inputs()
    before = numpy(layer(x))
    hidden = np.arange(L)[None, :] >= x["visible"][:, None]
    hidden[0, : L - W] = True  # older than the window
    changed = {**x, "history": np.where(hidden[..., None], np.float32(np.nan), x["history"]), "times": np.where(hidden, 1, x["times"])}
    np.testing.assert_array_equal(numpy(layer(changed)), before)
    # control: the last visible event changes every candidate of its request
    changed["history"][0, 6] += 1.0
    assert (np.abs(numpy(layer(changed)) - before)[0].max(axis=-1) > 1e-3).all()


@pytest.mark.quickest
def test_output_does_not_depend_on_other_candidates_or_padding() -> None:
    layer, x = ready(), inputs()
    before = numpy(layer(x))
    one = numpy(layer({**x, "candidates": x["candidates"][:, 2:3]}))
    np.testing.assert_allclose(one, before[:, 2:3], rtol=1e-5, atol=1e-6)
    longer = {**x, "history": np.pad(x["history"], ((0, 0), (0, 9), (0, 0)), constant_values=7.0)}
    np.testing.assert_array_equal(numpy(layer(longer)), before)
    shorter = {name: values[1:2, :3] if values.ndim > 1 and name != "candidates" else values[1:2] for name, values in x.items()}
    np.testing.assert_allclose(numpy(layer(shorter)), before[1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`fusion` must be one of .* Received: fusion='sum'"):
        make(fusion="sum")
    with pytest.raises(ValueError, match="`latest` must be from 0 to max_history=5. Received: latest=6"):
        make(latest=6)
    with pytest.raises(ValueError, match="`num_layers` must be a positive integer. Received: num_layers=0"):
        make(num_layers=0)
    with pytest.raises(ValueError, match=r"Missing: \['times'\]"):
        make(rotary=ROTARY).build({name: x.shape for name, x in inputs().items() if name != "times"})
