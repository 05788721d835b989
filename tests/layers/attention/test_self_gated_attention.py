"""SelfGatedAttention: gates, rotation, spans, and the three ways to call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import SelfGatedAttention
from keras_ranking.ops import Spans
from tests.layers.common import TOLERANCE, by_path, masked_attention, numpy, randomise, rotate_pairs, run_layer_checks, sigmoid

B, T, D, HEADS, HEAD = 2, 7, 6, 4, 4
CADET = ("representation", "query", "key")
ALL = (*CADET, "output")
ROTARY = (2.0, 5_000_000.0)


def attention(gates: tuple[str, ...] = CADET, kv: int | None = None, rotary: tuple[float, float] | None = ROTARY, **settings: Any) -> Any:
    return SelfGatedAttention(HEADS, HEAD, kv, gates=gates, rotary=rotary, **settings)


def ready(layer: Any, seed: int = 5) -> Any:
    layer.build((None, None, D))
    randomise(layer, seed)
    return layer


def row(seed: int = 0, tokens: int = T) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, times and segments: two members and one slot of padding."""
    rng = np.random.default_rng(seed)
    segments = np.ones((B, tokens), "int32")
    segments[0, tokens // 2 :] = 2
    segments[1, -1] = 0
    times = np.sort(rng.integers(0, 300_000_000, (B, tokens)), axis=1).astype("int32")
    return rng.normal(size=(B, tokens, D)).astype("float32"), times, segments


def reference(
    layer: Any,
    x: np.ndarray,
    times: np.ndarray,
    mask: np.ndarray,
    value_bias: np.ndarray | None = None,
    gates: tuple[str, ...] = CADET,
    gate_last: bool = False,
) -> np.ndarray:
    """The docstring's formulas in float64. `gate_last` gates after the rotation: the wrong order, for a control."""
    w = by_path(layer)
    x = x.astype("float64")
    batch, tokens, _ = x.shape
    half = layer.head_dim // 2
    longest, shortest = 2 * ROTARY[1], 8 * ROTARY[0]
    periods = np.rint(np.geomspace(longest, shortest, half))

    def gated(kind: str, values: np.ndarray, source: np.ndarray) -> np.ndarray:
        if kind not in gates:
            return values
        return values * sigmoid(source @ w[f"{kind}_gate/kernel"] + w[f"{kind}_gate/bias"])

    def turned(kind: str, values: np.ndarray, heads: int) -> np.ndarray:
        gate = gated(kind, np.ones_like(values), values).reshape(batch, tokens, heads, -1)
        split = values.reshape(batch, tokens, heads, -1)
        if layer.rotary is None:
            return split * gate
        return rotate_pairs(split, times, periods) * gate if gate_last else rotate_pairs(split * gate, times, periods)

    normed = gated("representation", x, x)
    query = turned("query", normed @ w["query/kernel"], layer.num_heads)
    key = turned("key", normed @ w["key/kernel"], layer.num_kv_heads)
    value = (normed if value_bias is None else normed + value_bias) @ w["value/kernel"]
    out = masked_attention(query, key, value.reshape(batch, tokens, layer.num_kv_heads, -1), mask)
    out = gated("output", out.reshape(batch, tokens, -1), x)
    return out @ w["output_map/kernel"]


@pytest.mark.few(1)
@pytest.mark.parametrize(("gates", "kv"), [(CADET, None), (ALL, 2), ((), 1)], ids=["cadet", "all-grouped", "none-shared"])
def test_common(gates: tuple[str, ...], kv: int | None, tmp_path: Path) -> None:
    x, times, segments = row()
    spans = tuple(numpy(part) for part in Spans.causal(segments))
    bias = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    inputs = {"inputs": x, "times": times, "spans": spans, "value_bias": bias}
    run_layer_checks(lambda **settings: attention(gates, kv, **settings), inputs, tmp_path)


def test_common_with_cache(tmp_path: Path) -> None:
    x, times, _ = row()
    rng = np.random.default_rng(1)
    keys, values = rng.normal(size=(2, B, 5, 2, HEAD)).astype("float32")
    inputs = {"inputs": x, "times": times, "cache": (keys, values, np.array([5, 3], "int32"))}
    run_layer_checks(lambda **settings: attention(kv=2, **settings), inputs, tmp_path)
    assert attention(kv=2)(x, times=times, cache=inputs["cache"], see_self=False).shape == x.shape


@pytest.mark.parametrize("rotary", [ROTARY, None], ids=["rotary", "plain"])
@pytest.mark.parametrize("kv", [None, 2, 1])
@pytest.mark.parametrize("gates", [CADET, ALL, ("output",), ("key",), ()], ids=["cadet", "all", "output", "key", "none"])
def test_reference(gates: tuple[str, ...], kv: int | None, rotary: tuple[float, float] | None) -> None:
    layer = ready(attention(gates, kv, rotary))
    x, times, segments = row()
    bias = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    spans = Spans.causal(segments)
    mask = numpy(spans.dense(T))
    for value_bias in (None, bias):
        out = numpy(layer(x, times=times, spans=spans, value_bias=value_bias))
        want = reference(layer, x, times, mask, value_bias, gates)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=5e-6)
    assert not out[1, -1].any()  # padding
    # Controls: without one of the gates, or without the mask, the numbers differ.
    for gate in gates:
        assert np.abs(out - reference(layer, x, times, mask, bias, tuple(g for g in gates if g != gate))).max() > 1e-2
    assert np.abs(out - reference(layer, x, times, np.ones_like(mask), bias, gates)).max() > 1e-2


def test_shifting_all_times_changes_nothing() -> None:
    layer = ready(attention(ALL))
    x, times, segments = row()
    spans = Spans.causal(segments)
    mask = numpy(spans.dense(T))
    before = numpy(layer(x, times=times, spans=spans))
    for shift in (1, 86_400, 1_500_000_000):
        np.testing.assert_allclose(numpy(layer(x, times=times + np.int32(shift), spans=spans)), before, **TOLERANCE)
    # Control: with gates after the rotation, the same weights depend on absolute time.
    wrong = [reference(layer, x, times + shift, mask, None, ALL, gate_last=True) for shift in (0, 3_000_007)]
    assert np.abs(wrong[0] - wrong[1]).max() > 1e-2
    right = [reference(layer, x, times + shift, mask, None, ALL) for shift in (0, 3_000_007)]
    np.testing.assert_allclose(right[0], right[1], rtol=1e-9, atol=1e-9)


def test_open_gates_equal_no_gates() -> None:
    """A gate with a bias of 40 is 1 to float32; the block is then plain attention."""
    gated, plain = ready(attention(ALL)), ready(attention(()))
    names = by_path(plain)
    for weight in plain.weights:
        twin = next(other for other in gated.weights if other.path.split("/", 1)[1] == weight.path.split("/", 1)[1])
        weight.assign(twin.value)
    assert set(names) == {"query/kernel", "key/kernel", "value/kernel", "output_map/kernel"}
    x, times, segments = row()
    spans = Spans.causal(segments)
    closed = numpy(gated(x, times=times, spans=spans))
    for weight in gated.weights:
        if weight.path.endswith("gate/bias"):
            weight.assign(weight * 0 + 40.0)
    want = numpy(plain(x, times=times, spans=spans))
    np.testing.assert_allclose(numpy(gated(x, times=times, spans=spans)), want, **TOLERANCE)
    assert np.abs(closed - want).max() > 1e-2  # control: the gates were not open before


def test_gates_are_nearly_open_at_the_start() -> None:
    layer = attention(ALL)
    layer.build((None, None, D))
    biases = [numpy(weight.value) for weight in layer.weights if weight.path.endswith("gate/bias")]
    assert len(biases) == 4
    assert all((bias == 2.0).all() for bias in biases)


@pytest.mark.parametrize("kv", [None, 2])
@pytest.mark.parametrize("see_self", [True, False])
def test_cached_history_and_candidates_equal_one_row(see_self: bool, kv: int | None) -> None:
    """Prefill and cached call = the joint row of history and candidates, for several lengths and request times."""
    history, slots = 9, 4
    layer = ready(attention(ALL, kv))
    rng = np.random.default_rng(7)
    past = rng.normal(size=(4, history, D)).astype("float32")
    shown = rng.normal(size=(4, slots, D)).astype("float32")
    past_times = np.sort(rng.integers(0, 200_000_000, (4, history)), axis=1).astype("int32")
    length = np.array([9, 4, 1, 0], "int32")
    segments = (np.arange(history)[None] < length[:, None]).astype("int32")
    _, key, value = layer(past, times=past_times, spans=Spans.causal(segments), return_cache=True)

    for late in (1, 40_000_000):
        now = (past_times.max(1) + late).astype("int32")
        times = np.tile(now[:, None], (1, slots))
        scored = numpy(layer(shown, times=times, cache=(key, value, length), see_self=see_self))
        spans = Spans.candidates(length, history, slots)
        if not see_self:
            order = np.tile(history + np.arange(slots, dtype="int32") + 1, (4, 1))
            own = np.concatenate([numpy(spans.own)[:, :history], order], axis=1)
            spans = Spans(numpy(spans.start), numpy(spans.end), own.astype("int32"))
        joint = layer(np.concatenate([past, shown], 1), times=np.concatenate([past_times, times], 1), spans=spans)
        np.testing.assert_allclose(scored, numpy(joint)[:, history:], **TOLERANCE)
        for chunk in (slice(2, 3), slice(0, 1)):
            alone = numpy(layer(shown[:, chunk], times=times[:, chunk], cache=(key, value, length), see_self=see_self))
            np.testing.assert_allclose(alone, scored[:, chunk], **TOLERANCE)
    if not see_self:
        assert not scored[3].any()  # an empty history, without itself
    # Controls: another length, or candidates that see each other, give different numbers.
    other = numpy(layer(shown, times=times, cache=(key, value, np.full(4, 9, "int32")), see_self=see_self))
    assert np.abs(other - scored)[1:].max() > 1e-3
    naive = Spans.causal(np.concatenate([segments * 0 + 1, np.ones((4, slots), "int32")], 1))
    together = layer(np.concatenate([past, shown], 1), times=np.concatenate([past_times, times], 1), spans=naive)
    assert np.abs(numpy(together)[0, history:] - scored[0]).max() > 1e-3


def test_cache_is_gated_and_rotated() -> None:
    layer = ready(attention(kv=2))
    x, times, segments = row()
    out, key, value = layer(x, times=times, spans=Spans.causal(segments), return_cache=True)
    assert tuple(key.shape) == tuple(value.shape) == (B, T, 2, HEAD)
    w = by_path(layer)
    normed = x * sigmoid(x @ w["representation_gate/kernel"] + w["representation_gate/bias"])
    raw = normed @ w["key/kernel"]
    gated = (raw * sigmoid(raw @ w["key_gate/kernel"] + w["key_gate/bias"])).reshape(B, T, 2, HEAD)
    want = rotate_pairs(gated, times, np.rint(np.geomspace(2 * ROTARY[1], 8 * ROTARY[0], HEAD // 2)))
    np.testing.assert_allclose(numpy(key), want, **TOLERANCE)
    np.testing.assert_allclose(numpy(value), (normed @ w["value/kernel"]).reshape(B, T, 2, HEAD), **TOLERANCE)
    np.testing.assert_array_equal(numpy(out), numpy(layer(x, times=times, spans=Spans.causal(segments))))


def test_no_leak() -> None:
    """Hidden tokens change no output, in training and in inference; visible tokens change it."""
    layer = ready(attention(ALL))
    x, times, segments = row()
    rng = np.random.default_rng(3)
    spans = Spans.causal(segments)
    mask = numpy(spans.dense(T))
    before = numpy(layer(x, times=times, spans=spans))
    for token in range(T):
        changed = x.copy()
        changed[0, token] += rng.normal(size=D)
        moved = np.abs(numpy(layer(changed, times=times, spans=spans)) - before).max(-1) > 1e-6
        np.testing.assert_array_equal(moved[0], mask[0, :, token])
        assert not moved[1].any()


def test_values_beyond_the_length_are_ignored() -> None:
    layer = ready(attention())
    x, times, _ = row()
    keys, values = np.random.default_rng(1).normal(size=(2, B, 5, HEADS, HEAD)).astype("float32")
    length = np.array([3, 2], "int32")
    before = numpy(layer(x, times=times, cache=(keys, values, length)))
    dirty_keys, dirty_values = keys.copy(), values.copy()
    dirty_keys[0, 3:], dirty_values[0, 3:] = np.nan, np.inf
    np.testing.assert_array_equal(numpy(layer(x, times=times, cache=(dirty_keys, dirty_values, length))), before)


@pytest.mark.quickest
def test_errors() -> None:
    for heads, kv in ((0, None), (4, 3), (4, 0), (2, 4)):
        with pytest.raises(ValueError, match=f"`num_heads` must be a positive multiple of `num_kv_heads`. Received: num_heads={heads}"):
            SelfGatedAttention(heads, 4, kv)
    for head in (0, 3):
        with pytest.raises(ValueError, match=f"`head_dim` must be positive, and even with a rotation. Received: head_dim={head}"):
            SelfGatedAttention(2, head)
    assert SelfGatedAttention(2, 3, rotary=None).head_dim == 3
    with pytest.raises(ValueError, match="`gates` must be of .* Received: \\['value'\\]"):
        SelfGatedAttention(2, 4, gates=("query", "value"))
    with pytest.raises(ValueError, match="`shortest` must be at least 1"):
        SelfGatedAttention(2, 4, rotary=(0.5, 100.0))
    with pytest.raises(ValueError, match="`rotary` must be \\(shortest, longest\\) or None. Received: rotary=\\(8.0,\\)"):
        SelfGatedAttention(2, 4, rotary=(8.0,))  # type: ignore[arg-type]


@pytest.mark.quickest
def test_call_errors() -> None:
    layer = ready(attention())
    x, _, segments = row()
    spans = Spans.causal(segments)
    with pytest.raises(ValueError, match="`times` must be given"):
        layer(x, spans=spans)
