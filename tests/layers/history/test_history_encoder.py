"""HistoryEncoder, appended fusions: the history is read once, then any candidates against its keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import HistoryEncoder
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

B, L, N, E, C, W, D = 4, 7, 5, 6, 4, 5, 8
TIME, INDEX = (8.0, 1_000_000.0), (4.0, 64.0)
GAP = 1800
AMORTISED = ("append_cross", "append_falcon")
MASKS = ("bidirectional", "causal", "sessions")


def make(fusion: str = "append_cross", **settings: Any) -> HistoryEncoder:
    return HistoryEncoder(fusion, **{"max_history": W, "num_heads": 2, "head_dim": 4, "dim": D, **settings})


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pauses = rng.choice([30, 700, 4000], (B, L))
    return {
        "history": rng.normal(size=(B, L, E)).astype("float32"),
        "candidates": rng.normal(size=(B, N, C)).astype("float32"),
        "visible": np.array([7, 3, 0, 1], "int32"),
        "times": np.cumsum(pauses, axis=1).astype("int32"),
        "request_time": np.array([40_000, 41_000, 42_000, 43_000], "int32"),
    }


def ready(*args: Any, **settings: Any) -> HistoryEncoder:
    layer = make(*args, **settings)
    layer.build({name: x.shape for name, x in inputs().items()})
    randomise(layer, scale=0.3)
    return layer


def reference(layer: HistoryEncoder, x: dict[str, np.ndarray]) -> np.ndarray:
    """One candidate after one window of real events at a time, in float64, with a dense mask."""
    w = by_path(layer)
    periods = None if layer.rotary is None else np.rint(np.geomspace(2 * layer.rotary[1], 8 * layer.rotary[0], 2))
    rows = []
    for b in range(B):
        stop = int(x["visible"][b])
        events = slice(max(0, stop - W), stop)
        count = events.stop - events.start
        times = x["times"][b, events]
        past = x["history"][b, events].astype("float64") @ w["history_map/kernel"] + w["history_map/bias"]
        new = x["candidates"][b].astype("float64") @ w["candidate_map/kernel"] + w["candidate_map/bias"]
        sessions = np.cumsum(np.concatenate([[0], np.diff(times) >= GAP]))[:count] if count else np.zeros(0)
        mask = np.zeros((count + 1, count + 1), bool)
        for i in range(count):
            for j in range(count):
                seen = {"bidirectional": True, "causal": j <= i, "sessions": sessions[j] < sessions[i] or i == j}
                mask[i, j] = seen[layer.history_mask]
        mask[count, :count] = True
        mask[count, count] = layer.fusion != "append_cross"
        if layer.fusion == "append_self":
            mask[:] = True
        at = np.append(times, x["request_time"][b]) if layer.rotate_by == "time" else np.arange(count + 1)
        for n in range(N):
            h = np.concatenate([past, new[n : n + 1]])[None]
            for i in range(2):
                at_block = f"block_{i}/"
                half = "attention_half/" if layer.block == "ligr" else ""
                norm = half + ("norm" if half else "attention_norm")
                normed = layer_norm(h, w[f"{at_block}{norm}/gamma"], w[f"{at_block}{norm}/beta"])
                q, k, v = (
                    (normed @ w[f"{at_block}{half}attention/{part}/kernel"]).reshape(1, count + 1, 2, 4)
                    for part in ("query", "key", "value")
                )
                if periods is not None:
                    q, k = (rotate_pairs(part, at[None], periods) for part in (q, k))
                out = masked_attention(q, k, v, mask[None]).reshape(1, count + 1, -1) @ w[f"{at_block}{half}attention/output_map/kernel"]
                if half:
                    gate = sigmoid(h @ w[f"{at_block}attention_half/gate/kernel"] + w[f"{at_block}attention_half/gate/bias"])
                    h = h + gate * out
                    normed = layer_norm(h, w[f"{at_block}ffn_half/norm/gamma"], w[f"{at_block}ffn_half/norm/beta"])
                    up = silu(normed @ w[f"{at_block}ffn_half/ffn/gate/kernel"]) * (normed @ w[f"{at_block}ffn_half/ffn/up/kernel"])
                    gate = sigmoid(h @ w[f"{at_block}ffn_half/gate/kernel"] + w[f"{at_block}ffn_half/gate/bias"])
                    h = h + gate * (up @ w[f"{at_block}ffn_half/ffn/down/kernel"])
                else:
                    h = h + out
                    normed = layer_norm(h, w[f"{at_block}ffn_norm/gamma"], w[f"{at_block}ffn_norm/beta"])
                    hidden = silu(normed @ w[f"{at_block}ffn_in/kernel"] + w[f"{at_block}ffn_in/bias"])
                    h = h + hidden @ w[f"{at_block}ffn_out/kernel"] + w[f"{at_block}ffn_out/bias"]
            states = layer_norm(h, w["norm/gamma"], w["norm/beta"])[0]
            parts = [states[count]]
            if layer.pool:
                parts.append(states[:count].max(axis=0) if count else np.zeros(D))
            for k in range(layer.latest):
                parts.append(states[count - 1 - k] if count > k else np.zeros(D))
            row = np.concatenate(parts)
            rows.append(row if layer.projection is None else row @ w["projection/kernel"] + w["projection/bias"])
    return np.reshape(rows, (B, N, -1))


@pytest.mark.few(3)
@pytest.mark.parametrize("fusion", AMORTISED)
@pytest.mark.parametrize(
    "settings",
    [
        {"rotary": TIME},
        {"rotary": INDEX, "rotate_by": "index", "history_mask": "causal", "pool": True, "latest": 2, "projection": 3},
        {"rotary": None, "history_mask": "sessions", "block": "ligr", "block_options": {"ffn_multiple": 2.0}},
        {"rotary": TIME, "pool": True, "latest": 2, "block": "ligr"},
    ],
    ids=["time", "index", "sessions", "ligr"],
)
def test_all_passes_equal_the_reference(fusion: str, settings: dict[str, Any]) -> None:
    """A call, one candidate at a time, chunks, the cached pass and packed rows equal the reference."""
    layer, x = ready(fusion, **settings), inputs()
    whole = numpy(layer(x))
    np.testing.assert_allclose(whole, reference(layer, x), rtol=2e-5, atol=2e-5)
    cache = layer.prefill({name: value for name, value in x.items() if name not in ("candidates", "request_time")})
    chunks = [layer.score({**x, "candidates": x["candidates"][:, begin : begin + 2]}, cache) for begin in range(0, N, 2)]
    np.testing.assert_allclose(np.concatenate([numpy(chunk) for chunk in chunks], axis=1), whole, rtol=1e-5, atol=1e-6)
    # two rows: the requests in two orders, with empty slots
    slot = np.array([[1, 1, 3, 0, 2, 4], [4, 2, 2, 0, 0, 3]], "int32")
    which = np.array([[0, 1, 2, 0, 3, 4], [4, 0, 1, 0, 0, 3]])
    row = {name: np.concatenate([value, value]) for name, value in x.items() if name != "candidates"}
    candidates = x["candidates"][np.maximum(slot - 1, 0), which]
    packed = numpy(layer.packed({**row, "candidates": candidates, "slot": slot}))
    for r, s in np.argwhere(slot > 0):
        np.testing.assert_allclose(packed[r, s], whole[slot[r, s] - 1, which[r, s]], rtol=1e-5, atol=2e-6)
    assert np.isfinite(packed).all()


@pytest.mark.quickest
def test_append_self_is_the_control_without_a_cache() -> None:
    layer, x = ready("append_self", rotary=TIME), inputs()
    expected = reference(layer, x)
    alone = np.concatenate([numpy(layer({**x, "candidates": x["candidates"][:, n : n + 1]})) for n in range(N)], axis=1)
    np.testing.assert_allclose(alone, expected, rtol=2e-5, atol=2e-5)
    assert np.abs(numpy(layer(x)) - expected).max() > 1e-2, "control: scored together, candidates change each other's scores"
    with pytest.raises(ValueError, match="has no cache"):
        layer.prefill(x)
    with pytest.raises(ValueError, match="no packed pass"):
        layer.packed({**x, "slot": np.ones((B, N), "int32")})


@pytest.mark.release("jax")
@pytest.mark.few(1)
@pytest.mark.parametrize("fusion", AMORTISED)
@pytest.mark.parametrize("mask", ["causal", "sessions"])
@pytest.mark.parametrize("rotary", [(TIME, "time"), (INDEX, "index")], ids=["time", "index"])
def test_extended_cache_equals_prefill_over_all_events(fusion: str, mask: str, rotary: Any) -> None:
    layer, x = ready(fusion, history_mask=mask, rotary=rotary[0], rotate_by=rotary[1], max_history=50), inputs()
    first = np.array([4, 2, 0, 1], "int32")
    cache = layer.prefill({**x, "visible": first})
    for step in (1, 2):  # two steps; in the second some rows get no new event
        until = np.minimum(x["visible"], first + 2) if step == 1 else x["visible"]
        count = (until - first).astype("int32")
        new, times = np.full((B, 3, E), 9.0, "float32"), np.zeros((B, 3), "int32")
        for b in range(B):
            new[b, : count[b]], times[b, : count[b]] = x["history"][b, first[b] : until[b]], x["times"][b, first[b] : until[b]]
        cache = layer.extend({"history": new, "count": count, "times": times}, cache)
        first = until
    grown = numpy(layer.score(x, cache))
    np.testing.assert_allclose(grown, numpy(layer(x)), rtol=1e-5, atol=1e-6)
    assert np.abs(grown - numpy(layer({**x, "visible": np.array([4, 2, 0, 1], "int32")})))[0].max() > 1e-3, "control"


@pytest.mark.quickest
@pytest.mark.parametrize("settings", [{}, {"pool": True}, {"latest": 1, "history_mask": "causal"}])
def test_extend_needs_a_history_without_look_ahead(settings: dict[str, Any]) -> None:
    layer, x = ready(**settings), inputs()
    with pytest.raises(ValueError, match="a cache can be extended only if no event sees later ones"):
        layer.extend({"history": x["history"], "count": x["visible"], "times": x["times"]}, layer.prefill(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("mask", MASKS)
def test_hidden_events_change_no_output(mask: str) -> None:
    layer, x = ready("append_falcon", rotary=TIME, history_mask=mask, pool=True), inputs()
    before = numpy(layer(x))
    hidden = np.arange(L)[None, :] >= x["visible"][:, None]
    hidden[0, : L - W] = True  # older than the window
    times = np.where(hidden, x["times"] if mask == "sessions" else 1, x["times"])
    changed = {**x, "history": np.where(hidden[..., None], np.float32(np.nan), x["history"]), "times": times}
    np.testing.assert_array_equal(numpy(layer(changed)), before)
    longer = {**x, "history": np.pad(x["history"], ((0, 0), (0, 9), (0, 0)), constant_values=7.0)}
    longer["times"] = np.pad(x["times"], ((0, 0), (0, 9)), constant_values=5)
    np.testing.assert_allclose(numpy(layer(longer)), before, rtol=1e-5, atol=1e-6)
    changed["history"][0, 6] += 1.0
    assert (np.abs(numpy(layer(changed)) - before)[0].max(axis=-1) > 1e-3).all(), "control: the last visible event changes all outputs"


def test_sessions_mask_hides_events_of_the_same_session() -> None:
    """Of two events of one session neither sees the other; an earlier session is seen."""
    x = inputs()
    x["times"][:] = np.array([0, 10, 5000, 5010, 5020, 9000, 9010])
    settings = {"history_mask": "sessions", "num_layers": 2, "latest": 5, "max_history": 7}
    layer = ready(**settings)
    before = numpy(layer.prefill({**x, "visible": np.full(B, 7, "int32")})["summary"]).reshape(B, 5, D)
    x["history"][:, 3] += 1.0  # in the second session, of events 2, 3, 4
    moved = np.abs(numpy(layer.prefill({**x, "visible": np.full(B, 7, "int32")})["summary"]).reshape(B, 5, D) - before).max(axis=(0, 2))
    assert (moved[[0, 1, 3]] > 1e-4).all(), "events 6 and 5 of the next session see event 3, and so does event 3 itself"
    assert not moved[[2, 4]].any(), "events 4 and 2 are of the same session"


@pytest.mark.release("jax")
@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"rotary": TIME}, {"fusion": "append_falcon", "history_mask": "sessions", "pool": True, "block": "ligr"}]
)
def test_common(settings: dict[str, Any], tmp_path: Path) -> None:
    x = inputs()
    run_layer_checks(lambda **more: make(**settings, **more), {"inputs": x}, tmp_path)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "sum"}, r"`fusion` must be one of .* Received: fusion='sum'"),
        ({"history_mask": "none"}, "`history_mask` must be one of"),
        ({"block": "gru"}, "`block` must be one of"),
        ({"latest": 6}, "`latest` must be from 0 to max_history=5. Received: latest=6"),
        ({"dim": 0}, "`dim` must be a positive integer. Received: dim=0"),
        ({"fusion": "append_self", "pool": True}, "fusion='append_self' is full self-attention"),
        ({"fusion": "concat", "dim": 4}, "fusion='concat' is pooled"),
    ],
)
def test_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.quickest
def test_missing_inputs_are_named() -> None:
    x = inputs()
    with pytest.raises(ValueError, match=r"Missing: \['request_time'\]"):
        ready(rotary=TIME)({name: value for name, value in x.items() if name != "request_time"})
    for built in (make(), ready()):
        with pytest.raises(ValueError, match=r"Missing: \['candidates'\]"):
            built({name: value for name, value in x.items() if name != "candidates"})
    with pytest.raises(ValueError, match=r"Missing: \['visible'\]. Without `visible`, give a history with a Keras mask"):
        make().prefill({"history": x["history"]})


def test_events_of_one_session_do_not_see_each_other_by_ids() -> None:
    """In two blocks: what an event is in the second depends on what it sees in the first."""
    rng = np.random.default_rng(2)
    layer = HistoryEncoder(
        "append_cross", max_history=8, num_layers=2, num_heads=1, history_mask="sessions", session_ids=True, pool=False, latest=0
    )
    sessions = np.array([[4, 7, 4, 7, 9, 4]], "int32")  # two that overlap
    history = rng.standard_normal((1, 6, 4)).astype("float32")
    inputs = {"history": history, "candidates": history[:, :2], "visible": np.array([6], "int32"), "sessions": sessions}
    layer(inputs)
    before = layer.prefill(inputs)
    np.testing.assert_array_equal(numpy(before["session"]), sessions)
    for event, seen_by in ((0, [1, 3, 4]), (1, [4]), (2, [4]), (3, [4]), (4, [])):
        changed = history.copy()
        changed[0, event] += rng.standard_normal(4)
        after = layer.prefill({**inputs, "history": changed})
        moved = np.abs(numpy(after["key"]) - numpy(before["key"]))[0, 1].max(axis=(-1, -2)) > 1e-6
        assert np.flatnonzero(moved).tolist() == sorted([event, *seen_by])
    with pytest.raises(ValueError, match="`session_ids` go with history_mask='sessions'"):
        HistoryEncoder(session_ids=True)
