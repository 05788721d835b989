"""HistoryEncoder, fusion convolution: filters over the events, read once, and weighed by each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import HistoryEncoder
from tests.layers.common import by_path, numpy, randomise, run_layer_checks, silu
from tests.layers.history.test_history_encoder import B, D, E, L, N, W, inputs

WIDTHS = (1, 2, 4)


def make(**settings: Any) -> HistoryEncoder:
    return HistoryEncoder("convolution", **{"max_history": W, "dim": D, "widths": WIDTHS, **settings})


def ready(**settings: Any) -> HistoryEncoder:
    layer = make(**settings)
    layer.build({name: x.shape for name, x in inputs().items()})
    randomise(layer, scale=0.5)
    return layer


def reference(layer: HistoryEncoder, x: dict[str, np.ndarray]) -> np.ndarray:
    """One candidate at a time over the real events alone, in float64."""
    w = by_path(layer)
    rows = []
    for b in range(B):
        events = slice(max(0, int(x["visible"][b]) - W), int(x["visible"][b]))
        past = x["history"][b, events].astype("float64") @ w["history_map/kernel"] + w["history_map/bias"]
        new = x["candidates"][b].astype("float64") @ w["candidate_map/kernel"] + w["candidate_map/bias"]
        count, found = len(past), []
        for place, width in enumerate(WIDTHS):
            kernel, bias = w[f"filters_{place}/kernel"], w[f"filters_{place}/bias"]  # (width, D, filters)
            sums = [sum((past[j - i] @ kernel[width - 1 - i] for i in range(min(width, j + 1))), bias) for j in range(count)]
            found.append(silu(np.array(sums).reshape(count, bias.shape[0])))
        state = np.concatenate(found, axis=1)
        for n in range(N):
            logits = np.append(state @ new[n] / np.sqrt(D), 0.0)
            weights = np.exp(logits - logits.max())
            parts = [(weights / weights.sum())[:count] @ state]
            if layer.pool:
                over_time = np.max if layer.over_time == "max" else np.mean
                parts.append(over_time(state, axis=0) if count else np.zeros(D))
            row = np.concatenate(parts)
            rows.append(row if layer.projection is None else row @ w["projection/kernel"] + w["projection/bias"])
    return np.reshape(rows, (B, N, -1))


@pytest.mark.parametrize("settings", [{"over_time": "max"}, {"over_time": "mean", "projection": 3}, {"pool": False}])
def test_all_passes_equal_the_reference(settings: dict[str, Any]) -> None:
    """A call, chunks against the cached states, and packed rows."""
    layer, x = ready(**settings), inputs()
    whole = numpy(layer(x))
    np.testing.assert_allclose(whole, reference(layer, x), rtol=2e-5, atol=2e-5)
    if layer.projection is None:
        assert not whole[2].any(), "no event: zero"
        assert np.abs(whole[0, 0] - whole[0, 1]).max() > 1e-3, "control: candidates weigh the events differently"
    cache = layer.prefill({name: value for name, value in x.items() if name != "candidates"})
    beyond = np.arange(W)[None, :, None] >= numpy(cache["length"])[:, None, None]
    cache = {**cache, "state": np.where(beyond, np.float32(np.nan), numpy(cache["state"]))}  # as a store may send it
    chunks = [layer.score({"candidates": x["candidates"][:, begin : begin + 2]}, cache) for begin in range(0, N, 2)]
    np.testing.assert_allclose(np.concatenate([numpy(chunk) for chunk in chunks], axis=1), whole, rtol=1e-5, atol=1e-6)
    slot = np.array([[1, 1, 3, 0, 2, 4], [4, 2, 2, 0, 0, 3]], "int32")
    which = np.array([[0, 1, 2, 0, 3, 4], [4, 0, 1, 0, 0, 3]])
    row = {name: np.concatenate([value, value]) for name, value in x.items() if name != "candidates"}
    packed = numpy(layer.packed({**row, "candidates": x["candidates"][np.maximum(slot - 1, 0), which], "slot": slot}))
    for r, s in np.argwhere(slot > 0):
        np.testing.assert_allclose(packed[r, s], whole[slot[r, s] - 1, which[r, s]], rtol=1e-5, atol=2e-6)
    assert np.isfinite(packed).all()


def test_hidden_events_change_no_output() -> None:
    layer, x = ready(), inputs()
    before = numpy(layer(x))
    hidden = np.arange(L)[None, :] >= x["visible"][:, None]
    hidden[0, : L - W] = True  # older than the window
    changed = {**x, "history": np.where(hidden[..., None], np.float32(np.nan), x["history"])}
    np.testing.assert_array_equal(numpy(layer(changed)), before)
    changed["history"][0, 6] += 1.0
    assert (np.abs(numpy(layer(changed)) - before)[0].max(axis=-1) > 1e-3).all(), "control: the last visible event changes all outputs"


def test_the_order_of_events_counts() -> None:
    x = {**inputs(), "visible": np.full(B, W, "int32")}
    x["history"] = x["history"][:, :W]
    turned = {**x, "history": x["history"][:, ::-1]}
    layer, single = ready(), ready(widths=(1,))
    assert np.abs(numpy(layer(turned)) - numpy(layer(x))).max() > 1e-3
    np.testing.assert_allclose(numpy(single(turned)), numpy(single(x)), rtol=1e-5, atol=1e-5)  # control: filters of one event


@pytest.mark.release("jax")
@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("over_time", ["max", "mean"])
def test_common(over_time: str, tmp_path: Path) -> None:
    x = {name: value for name, value in inputs().items() if name not in ("times", "request_time")}
    run_layer_checks(lambda **more: make(over_time=over_time, **more), {"inputs": x}, tmp_path)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotary": (8.0, 1e6)}, "reads the order of the events: it has no `latest`, `rotary`, mask or other block"),
        ({"history_mask": "causal"}, "reads the order of the events"),
        ({"widths": ()}, r"`widths` must be positive integers, at least one. Received: widths=\(\)"),
        ({"widths": (0, 2)}, r"Received: widths=\(0, 2\)"),
        ({"over_time": "sum"}, "`over_time` must be one of"),
    ],
)
def test_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.quickest
def test_more_widths_than_filters_and_a_cache_that_should_grow() -> None:
    with pytest.raises(ValueError, match=r"`dim` must be at least the number of `widths`. Received: 2 and widths=\(1, 2, 4\)"):
        make(dim=2).build({"history": (None, None, E), "candidates": (None, None, 4)})
    layer, x = ready(), inputs()
    with pytest.raises(ValueError, match="a cache can be extended only if no event sees later ones"):
        layer.extend({"history": x["history"], "count": x["visible"]}, layer.prefill(x))
