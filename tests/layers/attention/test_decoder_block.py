"""DecoderBlock: pre-norm attention and feed-forward over spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import DecoderBlock
from keras_ranking.ops import Spans
from tests.layers.common import (
    by_path,
    check_symbolic,
    layer_norm,
    masked_attention,
    numpy,
    randomise,
    rotate_pairs,
    run_layer_checks,
    sigmoid,
    silu,
)

B, T, D = 2, 7, 8
ROTARY = (2.0, 5_000_000.0)


def make(**settings: Any) -> DecoderBlock:
    return DecoderBlock(**{"num_heads": 2, "head_dim": 4, "num_kv_heads": 1, "rotary": ROTARY, "ffn_multiple": 2.0, **settings})


def ready(layer: DecoderBlock) -> DecoderBlock:
    layer.build((None, None, D))
    randomise(layer)
    return layer


def row() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]], "int32")
    times = np.sort(rng.integers(0, 300_000_000, (B, T)), axis=1).astype("int32")
    return rng.normal(size=(B, T, D)).astype("float32"), times, segments


def reference(layer: DecoderBlock, x: np.ndarray, times: np.ndarray, mask: np.ndarray, prenorm: bool = True) -> np.ndarray:
    w = by_path(layer)
    x = x.astype("float64")

    def norm(name: str, values: np.ndarray) -> np.ndarray:
        return layer_norm(values, w[f"{name}/gamma"], w[f"{name}/beta"]) if prenorm else values

    def gate(name: str, values: np.ndarray) -> np.ndarray:
        return values * sigmoid(values @ w[f"attention/{name}_gate/kernel"] + w[f"attention/{name}_gate/bias"])

    periods = np.rint(np.geomspace(2 * ROTARY[1], 8 * ROTARY[0], 2))
    normed = gate("representation", norm("attention_norm", x))
    query, key = (
        rotate_pairs(gate(name, normed @ w[f"attention/{name}/kernel"]).reshape(B, T, -1, 4), times, periods) for name in ("query", "key")
    )
    value = (normed @ w["attention/value/kernel"]).reshape(B, T, -1, 4)
    x = x + masked_attention(query, key, value, mask).reshape(B, T, -1) @ w["attention/output_map/kernel"]
    hidden = silu(norm("ffn_norm", x) @ w["ffn_in/kernel"] + w["ffn_in/bias"])
    return x + hidden @ w["ffn_out/kernel"] + w["ffn_out/bias"]


@pytest.mark.release("jax")
@pytest.mark.slow
def test_common(tmp_path: Path) -> None:
    x, times, segments = row()
    spans = tuple(numpy(part) for part in Spans.causal(segments))
    bias = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    run_layer_checks(make, {"inputs": x, "times": times, "spans": spans, "value_bias": bias}, tmp_path)
    check_symbolic(make, {"inputs": x, "times": times, "spans": spans}, {"return_cache": True})


def test_reference() -> None:
    layer = ready(make())
    x, times, segments = row()
    spans = Spans.causal(segments)
    mask = numpy(spans.dense(T))
    out = numpy(layer(x, times=times, spans=spans))
    np.testing.assert_allclose(out, reference(layer, x, times, mask), rtol=1e-5, atol=1e-5)
    # Controls: without norms; and a norm removes a shift that is equal in all dimensions, but not a random one.
    assert np.abs(out - reference(layer, x, times, mask, prenorm=False)).max() > 1e-2


def test_no_leak() -> None:
    layer = ready(make())
    x, times, segments = row()
    rng = np.random.default_rng(3)
    spans = Spans.causal(segments)
    mask = numpy(spans.dense(T))
    for training in (False, True):
        before = numpy(layer(x, times=times, spans=spans, training=training))
        for token in range(T):
            changed = x.copy()
            changed[0, token] += rng.normal(size=D)
            moved = np.abs(numpy(layer(changed, times=times, spans=spans, training=training)) - before).max(-1) > 1e-6
            np.testing.assert_array_equal(moved[0], mask[0, :, token])
            assert not moved[1].any()
    # Control: with a mask that shows everything the same change changes the tokens before it.
    wide = Spans.bidirectional(segments)
    changed = x.copy()
    changed[0, 6] += rng.normal(size=D)
    difference = numpy(layer(changed, times=times, spans=wide)) - numpy(layer(x, times=times, spans=wide))
    assert (np.abs(difference).max(-1)[0] > 1e-6).tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("see_self", [True, False])
def test_two_blocks_with_a_cache_equal_one_row(see_self: bool) -> None:
    """Two blocks: history first, candidates later, equal to one row."""
    history, slots = 6, 3
    blocks = [ready(make()) for _ in range(2)]
    rng = np.random.default_rng(7)
    past, shown = rng.normal(size=(B, history, D)).astype("float32"), rng.normal(size=(B, slots, D)).astype("float32")
    times = np.sort(rng.integers(0, 200_000_000, (B, history)), axis=1).astype("int32")
    now = np.tile(times.max(1, keepdims=True) + 500, (1, slots)).astype("int32")
    length = np.array([6, 2], "int32")
    segments = (np.arange(history)[None] < length[:, None]).astype("int32")
    spans = Spans.candidates(length, history, slots)
    if not see_self:
        own = np.concatenate([numpy(spans.own)[:, :history], np.tile(history + 1 + np.arange(slots, dtype="int32"), (B, 1))], axis=1)
        spans = Spans(numpy(spans.start), numpy(spans.end), own.astype("int32"))
    x, y = past, shown
    joint = np.concatenate([past, shown], axis=1)
    for block in blocks:
        x, key, value = block(x, times=times, spans=Spans.causal(segments), return_cache=True)
        y = block(y, times=now, cache=(key, value, length), see_self=see_self)
        joint = block(joint, times=np.concatenate([times, now], axis=1), spans=spans)
    np.testing.assert_allclose(numpy(y), numpy(joint)[:, history:], rtol=1e-5, atol=1e-5)
    # Control: candidates in a plain causal row see each other.
    naive = np.concatenate([past, shown], axis=1)
    for block in blocks:
        naive = block(naive, times=np.concatenate([times, now], axis=1), spans=Spans.causal(np.ones((B, history + slots), "int32")))
    assert np.abs(numpy(naive)[:, history:] - numpy(y)).max() > 1e-2


def test_dropout_only_in_training() -> None:
    layer = make(dropout=0.5)
    x, times, segments = row()
    spans = Spans.causal(segments)
    np.testing.assert_array_equal(numpy(layer(x, times=times, spans=spans)), numpy(layer(x, times=times, spans=spans)))
    assert np.abs(numpy(layer(x, times=times, spans=spans, training=True)) - numpy(layer(x, times=times, spans=spans))).max() > 0
    assert layer.get_config()["dropout"] == 0.5


def test_width_of_the_feed_forward() -> None:
    layer = make(ffn_multiple=1.6)
    layer.build((None, None, D))
    assert layer.ffn_in.units == 13


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`ffn_multiple` must be positive. Received: ffn_multiple=0"):
        make(ffn_multiple=0)
    with pytest.raises(ValueError, match="`num_heads` must be a positive multiple"):
        make(num_kv_heads=3)
    with pytest.raises(ValueError, match="rate"):
        make(dropout=1.5)


def test_a_stride_computes_a_part_of_the_same_output() -> None:
    """Only every second token, in a row of two members; keys and values are those of all tokens."""
    layer = ready(make(gates=("representation", "query", "key", "output")))
    x, times, _ = row()
    x, times = x[:, :6], times[:, :6]
    segments = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0]], "int32")
    given = {"times": times, "spans": tuple(Spans.causal(segments)), "return_cache": True}
    whole, part = layer(x, **given), layer(x, **given, stride=2)
    np.testing.assert_allclose(numpy(part[0]), numpy(whole[0])[:, ::2], rtol=1e-5, atol=1e-6)
    assert np.abs(numpy(part[0]) - numpy(whole[0])[:, 1::2]).max() > 0.1  # control: other tokens
    for one, other in zip(part[1:], whole[1:], strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    symbolic = layer(keras.KerasTensor((None, 6, D)), **given, stride=2)
    assert symbolic[0].shape == (None, 3, D) and symbolic[1].shape[1] == 6
    with pytest.raises(ValueError, match="divide the number of tokens"):
        layer(x, **given, stride=4)
    with pytest.raises(ValueError, match="divide the number of tokens"):
        layer(keras.KerasTensor((None, 5, D)), **given, stride=2)
    with pytest.raises(ValueError, match="`stride` can be used only for a row of tokens"):
        layer(x, times=times, cache=(whole[1], whole[2], np.array([6, 4], "int32")), stride=2)
