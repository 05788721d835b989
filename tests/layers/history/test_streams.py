"""HistoryEncoder over rows of histories that several requests read: equal to a copy of its history for each request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import HistoryEncoder
from tests.layers.common import numpy, randomise

E, C, T, W = 5, 3, 12, 8
# Each request reads tokens begin:end of a row with the streams 0:6 and 6:11; the last one has no history.
BEGIN = np.array([[0, 0, 6, 0, 11], [0, 6, 6, 0, 0]], "int32")
END = np.array([[2, 6, 11, 4, 11], [5, 7, 10, 6, 0]], "int32")
STREAM = np.array([[1] * 6 + [2] * 5 + [0]] * 2, "int32")
SLOT = np.array([[1, 1, 2, 3, 4, 5, 0], [3, 3, 1, 2, 4, 5, 5]], "int32")


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "history": rng.normal(size=(2, T, E)).astype("float32"),
        "times": np.cumsum(rng.integers(1, 3000, (2, T)), axis=1).astype("int32"),
        "candidates": rng.normal(size=(2, 7, C)).astype("float32"),
        "request_time": rng.integers(40_000, 50_000, (2, 5)).astype("int32"),
        "stream": STREAM,
        "begin": BEGIN,
        "end": END,
        "slot": SLOT,
    }


def copies(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same requests with a history of their own."""
    history, times = np.full((2, 5, W, E), 7.0, "float32"), np.zeros((2, 5, W), "int32")
    for b in range(2):
        for q in range(5):
            events = slice(x["begin"][b, q], x["end"][b, q])
            history[b, q, : events.stop - events.start] = x["history"][b, events]
            times[b, q, : events.stop - events.start] = x["times"][b, events]
    return {
        **{name: x[name] for name in ("candidates", "slot")},
        "request_time": x["request_time"].reshape(-1),
        "visible": (x["end"] - x["begin"]).reshape(-1),
        "history": history.reshape(-1, W, E),
        "times": times.reshape(-1, W),
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("fusion", ["append_cross", "append_falcon"])
@pytest.mark.parametrize("mask", ["causal", "sessions", "bidirectional"])
@pytest.mark.parametrize(
    "rotation", [{}, {"rotary": (8.0, 1e6)}, {"rotary": (8.0, 1e3), "rotate_by": "index"}], ids=["none", "time", "index"]
)
def test_shared_tokens_equal_copies(fusion: str, mask: str, rotation: dict[str, Any]) -> None:
    layer, x = HistoryEncoder(fusion=fusion, max_history=W, history_mask=mask, num_heads=1, dim=4, **rotation), inputs()
    if mask == "bidirectional":  # windows: whole streams alone
        x["end"] = np.where(x["end"] > x["begin"], np.where(x["begin"] == 0, 6, 11), x["begin"]).astype("int32")
    layer.packed(copies(x))
    randomise(layer)
    expected, real = numpy(layer.packed(copies(x))), SLOT > 0
    got = numpy(layer.streams(x))
    np.testing.assert_allclose(got[real], expected[real], rtol=1e-6, atol=2e-6)
    assert np.isfinite(got).all()
    later = {**x, "history": x["history"] + np.where(np.arange(T) == 5, 1.0, 0.0).astype("float32")[:, None]}
    moved = np.abs(numpy(layer.streams(later)) - got).max(axis=-1) > 1e-5
    assert moved[0, 2] and not moved[0, 3], "the last event of a stream changes requests that see it, and no other stream"
    assert mask == "bidirectional" or not moved[0, [0, 1, 4]].any(), "a shorter prefix does not see it"


@pytest.mark.quickest
def test_errors() -> None:
    layer = HistoryEncoder(fusion="append_cross", max_history=W, num_heads=1, dim=4, pool=True)
    with pytest.raises(ValueError, match="streams are for an appended history of which no summary is kept. Received: .* pool=True"):
        layer.streams(inputs())
    layer = HistoryEncoder(fusion="append_cross", max_history=W, num_heads=1, dim=4)
    with pytest.raises(ValueError, match=r"Missing: \['stream'\]"):
        layer({name: x for name, x in {**inputs(), "visible": END.reshape(-1)}.items() if name != "stream"}, step="streams")
