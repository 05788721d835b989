"""IndexRotaryEmbedding, and attention that rotates by index, by time, or by both in halves of its heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import IndexRotaryEmbedding, SelfGatedAttention
from keras_ranking.ops import Spans
from tests.layers.common import by_path, masked_attention, numpy, randomise, rotate_pairs, run_layer_checks

ROTARY = (2.0, 5_000_000.0)


def turned(x: np.ndarray, index: np.ndarray, base: float) -> np.ndarray:
    """Pairs (k, k + D/2) of x (B, T, H, D) as complex numbers, rotated by p base^(-2k/D)."""
    half = x.shape[-1] // 2
    angle = index[..., None] * base ** (-np.arange(half) / half)
    out = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, :, None, :]
    return np.concatenate([out.real, out.imag], axis=-1)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 6, 3, 8)).astype("float32"), rng.integers(0, 2000, (2, 6)).astype("int32")


def test_common(tmp_path: Path) -> None:
    x, index = inputs()
    run_layer_checks(lambda **settings: IndexRotaryEmbedding(base=100.0, **settings), {"inputs": x, "index": index}, tmp_path)


def test_reference() -> None:
    x, index = inputs()
    out = numpy(IndexRotaryEmbedding(1e5)(x, index=index))
    # Indices up to 2000 have angles up to 2000 in float32: an error of 1.2e-4 radian.
    np.testing.assert_allclose(out, turned(x.astype("float64"), index, 1e5), atol=5e-4)
    assert np.abs(out - turned(x, index, 1e4)).max() > 0.1  # control


def row() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(2, 6, 8)).astype("float32"),
        "times": np.sort(rng.integers(0, 300_000_000, (2, 6)), axis=1).astype("int32"),
        "index": np.sort(rng.integers(0, 40, (2, 6)), axis=1).astype("int32"),
    }


@pytest.mark.few(1)
@pytest.mark.parametrize("rotate_by", ["index", "split"])
def test_attention_reference(rotate_by: str) -> None:
    layer = SelfGatedAttention(4, 4, num_kv_heads=2, gates=(), rotary=ROTARY, rotate_by=rotate_by, rotary_base=50.0)
    data = row()
    spans = Spans.causal(np.ones((2, 6), "int32"))
    layer.build((None, None, 8))
    randomise(layer)
    w, x = by_path(layer), data["x"].astype("float64")
    periods = np.rint(np.geomspace(2 * ROTARY[1], 8 * ROTARY[0], 2))

    def rotated(heads: np.ndarray) -> np.ndarray:
        by_place = turned(heads, data["index"], 50.0)
        if rotate_by == "index":
            return by_place
        half = heads.shape[2] // 2
        return np.concatenate([by_place[:, :, :half], rotate_pairs(heads, data["times"], periods)[:, :, half:]], axis=2)

    query, key = (rotated((x @ w[f"{name}/kernel"]).reshape(2, 6, -1, 4)) for name in ("query", "key"))
    value = (x @ w["value/kernel"]).reshape(2, 6, -1, 4)
    want = masked_attention(query, key, value, numpy(spans.dense(6))).reshape(2, 6, -1) @ w["output_map/kernel"]
    given = {"times": data["times"], "index": data["index"], "spans": spans}
    out = numpy(layer(data["x"], **given))
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=2e-5)
    # Only differences of indices matter. Control: one token at another index.
    later = {**given, "index": data["index"] + 17}
    np.testing.assert_allclose(numpy(layer(data["x"], **later)), out, atol=1e-4)
    moved = data["index"].copy()
    moved[:, 2] += 17
    assert np.abs(numpy(layer(data["x"], **{**given, "index": moved})) - out).max() > 1e-2


@pytest.mark.few(1)
@pytest.mark.parametrize("rotate_by", ["index", "split", None])
def test_attention_common(rotate_by: str | None, tmp_path: Path) -> None:
    data = row()
    spans = tuple(numpy(part) for part in Spans.causal(np.ones((2, 6), "int32")))
    run_layer_checks(
        lambda **settings: SelfGatedAttention(2, 4, gates=(), rotary=ROTARY, rotate_by=rotate_by, **settings),
        {"inputs": data["x"], "times": data["times"], "spans": spans},
        tmp_path,
        settings={"index": data["index"]},
    )


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`base` must be above 1. Received: base=1"):
        IndexRotaryEmbedding(1)
    with pytest.raises(ValueError, match="`rotate_by` must be one of"):
        SelfGatedAttention(2, 4, rotate_by="place")
    for wrong in ({"num_kv_heads": 1}, {"rotary": None}):
        with pytest.raises(ValueError, match="`num_kv_heads` must be even and `rotary` must be given with rotate_by='split'"):
            SelfGatedAttention(2, 4, rotate_by="split", **wrong)
    with pytest.raises(ValueError, match="`head_dim` must be positive, and even with a rotation"):
        SelfGatedAttention(2, 3, rotary=None, rotate_by="index")
    with pytest.raises(ValueError, match="`index` must be given with"):
        SelfGatedAttention(2, 4, rotate_by="index")(row()["x"], spans=Spans.causal(np.ones((2, 6), "int32")))
