"""HistoryEncoder, fusion concat over rows of many requests: equal to the form that encodes each slot's window by itself."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import HistoryEncoder
from keras_ranking.layers.attention import windows
from tests.layers.common import numpy, randomise

B, Q, S, L, E, C = 2, 5, 17, 12, 6, 4
ROTARY = (2.0, 5_000_000.0)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"rotary": ROTARY},
    {"rotary": ROTARY, "rotate_by": "index"},
    {"block_options": {"gates": ("query", "output")}},
    {"block_options": {"num_kv_heads": 1}, "projection": 3},
]


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    visible = rng.integers(0, L + 1, B * Q).astype("int32")
    visible[:3] = (0, 3, L)
    return {
        "history": rng.normal(size=(B * Q, L, E)).astype("float32"),
        "candidates": rng.normal(size=(B, S, C)).astype("float32"),
        "visible": visible,
        "times": np.sort(rng.integers(0, 10**8, (B * Q, L)), axis=1).astype("int32"),
        "request_time": np.full(B * Q, 10**8, "int32"),
        "slot": np.sort(rng.integers(0, Q + 1, (B, S)), axis=1).astype("int32"),
    }


def by_length(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    length = np.where(x["slot"] > 0, x["visible"].reshape(B, Q)[np.arange(B)[:, None], np.maximum(x["slot"] - 1, 0)], 0)
    made = {}
    for name, least, most in (("slots_whole", 6, 12), ("slots_half", 3, 6), ("slots_quarter", 0, 3)):
        wanted = (length > least) & (length <= most)
        made[name] = np.zeros((B, wanted.sum(axis=1).max() + 1), "int32")
        for b in range(B):
            slots = 1 + np.flatnonzero(wanted[b])
            made[name][b, : len(slots)] = slots
    return made


def one_by_one(layer: HistoryEncoder, x: dict[str, np.ndarray]) -> np.ndarray:
    """Each slot as a request of one candidate."""
    owner = (np.arange(B)[:, None] * Q + np.maximum(x["slot"] - 1, 0)).reshape(-1)
    single = {name: x[name][owner] for name in ("history", "visible", "times", "request_time")}
    return numpy(layer({**single, "candidates": x["candidates"].reshape(B * S, 1, C)})).reshape(B, S, -1)


@pytest.mark.few(2)
@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "time", "index", "gates", "groups"])
@pytest.mark.parametrize("window", [7, 12])
def test_rows_equal_windows_one_by_one(settings: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = HistoryEncoder(fusion="concat", max_history=window, num_heads=2, latest=3, **settings), inputs()
    one_by_one(layer, x)
    randomise(layer)
    expected, real = one_by_one(layer, x), x["slot"] > 0
    for given in (x, {**x, **by_length(x)}):
        np.testing.assert_allclose(numpy(layer.packed(given))[real], expected[real], rtol=1e-6, atol=5e-6)
    wrong = {**x, "history": np.roll(x["history"], 1, axis=0)}
    assert np.abs(numpy(layer.packed(wrong)) - expected)[real].max() > 1e-2, "control: the history of another request"
    monkeypatch.setattr(windows, "LONGEST", 2)
    monkeypatch.setattr("keras_ranking.layers.history.concatenated_rows.LONGEST", 2)
    np.testing.assert_allclose(numpy(layer.packed({**x, **by_length(x)}))[real], expected[real], rtol=1e-6, atol=5e-6)


@pytest.mark.quickest
def test_slots_without_a_history_have_zeros() -> None:
    layer, x = HistoryEncoder(fusion="concat", max_history=7, num_heads=2, latest=3), inputs()
    out = numpy(layer.packed({**x, **by_length(x)}))
    assert not out[x["slot"] == 0].any()
    alone = {**x, **by_length(x), "slots_half": np.zeros((B, 1), "int32")}
    missing = numpy(layer.packed(alone))
    assert (np.abs(missing - out).max(axis=-1) > 0).any(), "control: slots that are named by no input are not read"


@pytest.mark.quickest
def test_projections_of_parts_are_those_of_the_whole_token() -> None:
    """LN([h ; c]) W in float64, with an offset on the token that cancels only in the centred form."""
    layer, x = HistoryEncoder(fusion="concat", max_history=7, num_heads=2, latest=3), inputs()
    one_by_one(layer, x)
    randomise(layer)
    block = layer.blocks[0]
    history, candidates = x["history"] + 100, x["candidates"].reshape(-1, C) + 100
    owner, which = np.array([0, 3, 3], "int32"), np.array([5, 1, 2], "int32")
    got = windows.SharedProjections(block, _tensor(history), _tensor(candidates)).of(_tensor(owner), _tensor(which), 4, 1)
    token = np.concatenate([history[owner, :4], np.repeat(candidates[which][:, None], 4, axis=1)], axis=-1).astype("float64")
    centred = token - token.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    normed = normed * numpy(block.attention_norm.gamma) + numpy(block.attention_norm.beta)
    for part, map_of in zip(got, (block.attention.query, block.attention.key, block.attention.value), strict=True):
        np.testing.assert_allclose(numpy(part), normed @ numpy(map_of.kernel), rtol=1e-4, atol=1e-4)


def _tensor(values: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(values)
