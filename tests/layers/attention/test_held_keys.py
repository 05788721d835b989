"""HeldKeys and AppendKeys: later tokens read a cache and themselves as the row of both does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import AppendKeys, HeldKeys, SelfGatedAttention
from keras_ranking.layers.attention.held_keys import Held, attend_held, hold
from keras_ranking.ops import Spans
from tests.layers.common import TOLERANCE, check_build, check_config, masked_attention, numpy, randomise, run_layer_checks

B, BLOCKS, S, M, HEADS, KV, SIZE = 3, 2, 6, 3, 4, 2, 5
RAGGED, FULL = np.array([6, 2, 0], "int32"), np.array([6, 6, 6], "int32")
RNG = np.random.default_rng(0)
KEY, VALUE = RNG.normal(size=(2, B, BLOCKS, S, KV, SIZE)).astype("float32")
NEW_KEY, NEW_VALUE = RNG.normal(size=(2, B, BLOCKS, M, KV, SIZE)).astype("float32")
QUERY = RNG.normal(size=(B, M, HEADS, SIZE)).astype("float32")


def poisoned(x: np.ndarray, length: np.ndarray, value: float) -> np.ndarray:
    """Rows of (B, BLOCKS, S, ...) beyond the length as an unkind client may send them."""
    x = x.copy()
    for row, count in enumerate(length):
        x[row, :, count:] = value
    return x


def spans_of_row(length: np.ndarray) -> Spans:
    """All that a row of S + M tokens can have: a window, a gap before the token itself, an own event of two, and padding."""
    index = np.arange(S + M, dtype="int32") + np.zeros((B, 1), "int32")
    start, end, own = np.maximum(index - 5, 0), np.maximum(index - 1, 0), index.copy()
    own[0, S + 1] -= 1
    padding = index >= length[:, None] + M - 1
    return Spans(*(np.where(padding, nothing, part).astype("int32") for part, nothing in ((start, index), (end, index), (own, index + 1))))


def later_spans(spans: Spans, length: np.ndarray) -> Spans:
    return Spans(*(np.take_along_axis(part, length[:, None] + np.arange(M), axis=1) for part in spans))


def wanted(length: np.ndarray, block: int) -> np.ndarray:
    """Attention over the joined row in float64."""
    spans = spans_of_row(length)
    seen = numpy(spans.dense(S + M))
    out = np.zeros((B, M, HEADS, SIZE))
    for row, count in enumerate(length):
        key, value = (np.concatenate([x[row, block, :count], y[row, block]]) for x, y in ((KEY, NEW_KEY), (VALUE, NEW_VALUE)))
        given = (QUERY[row : row + 1], key[None], value[None])
        mask = seen[row : row + 1, count : count + M, : count + M]
        out[row] = masked_attention(*(x.astype("float64") for x in given), mask)[0]
    return out


def held_of(length: np.ndarray, poison: tuple[float, float] = (np.nan, np.inf)) -> tuple[Any, ...]:
    given = poisoned(KEY, length, poison[0]), poisoned(VALUE, length, poison[1])
    spans = [keras.ops.convert_to_tensor(part) for part in later_spans(spans_of_row(length), length)]
    return hold(*map(keras.ops.convert_to_tensor, given), Spans(*spans), keras.ops.convert_to_tensor(length))


def attended(held: Held, block: int) -> np.ndarray:
    """What the later tokens read; the last one is padding, with any key and value."""
    key, value = NEW_KEY[:, block].copy(), NEW_VALUE[:, block].copy()
    key[:, -1], value[:, -1] = np.nan, np.nan
    return numpy(attend_held(*map(keras.ops.convert_to_tensor, (QUERY, key, value)), held.block(block)))


@pytest.mark.parametrize("length", [RAGGED, FULL], ids=["ragged", "full"])
def test_equals_the_row_of_both(length: np.ndarray) -> None:
    held = held_of(length)
    for block in range(BLOCKS):
        np.testing.assert_allclose(attended(held, block), wanted(length, block), **TOLERANCE)
    assert not wanted(length, 0)[:, -1].any()  # padding sees nothing
    # Controls: another block, all keys, and values that nothing has cleaned.
    assert np.abs(attended(held, 0) - wanted(length, 1)).max() > 0.1
    everything = held._replace(seen=keras.ops.ones_like(held.seen), some=keras.ops.ones_like(held.some))
    assert not np.allclose(attended(everything, 0)[:, :-1], wanted(length, 0)[:, :-1], atol=0.01)
    if length is RAGGED:
        dirty = keras.ops.convert_to_tensor(poisoned(VALUE, length, np.inf).transpose(1, 0, 3, 2, 4))
        assert not np.isfinite(attended(held._replace(value=dirty), 0)).all()


def test_a_call_with_held_keys_equals_one_with_a_cache() -> None:
    layer = SelfGatedAttention(HEADS, SIZE + 1, KV)
    layer.build((None, None, 7))
    randomise(layer)
    x, times = RNG.normal(size=(B, S + M, 7)).astype("float32"), np.sort(RNG.integers(0, 9999, (B, S + M))).astype("int32")
    causal = Spans.causal(np.ones((B, S + M), "int32"))
    _, key, value = layer(x[:, :S], times=times[:, :S], spans=[part[:, :S] for part in causal], return_cache=True)
    new = {"inputs": x[:, S:], "times": times[:, S:], "return_cache": True}
    expected = numpy(layer(**new, cache=(key, value, FULL), spans=causal))
    held = HeldKeys()(key[:, None], values=value[:, None], spans=tuple(part[:, S:] for part in causal), length=FULL)
    out, *own = layer(**new, cache=held.block(0))
    assert [tuple(part.shape) for part in own] == [(B, M, KV, SIZE + 1)] * 2
    longer = AppendKeys()(key[:, None], values=value[:, None], new=tuple(part[:, None] for part in own), length=FULL)
    found = [numpy(out), *(numpy(part)[:, 0] for part in longer)]
    for one, other, row in zip(found, expected, numpy(layer(x, times=times, spans=causal, return_cache=True)), strict=True):
        np.testing.assert_allclose(one, other, **TOLERANCE)
        np.testing.assert_allclose(one, row[:, S:] if one is found[0] else row, **TOLERANCE)
    with pytest.raises(ValueError, match="`spans` does not go with a block of `HeldKeys`"):
        layer(**new, cache=held.block(0), spans=causal)
    with pytest.raises(ValueError, match="`return_attention_scores` does not go with"):
        layer(**new, cache=held.block(0), return_attention_scores=True)


@pytest.mark.parametrize("length", [RAGGED, FULL], ids=["ragged", "full"])
def test_new_keys_follow_the_last_real_one(length: np.ndarray) -> None:
    found = numpy(AppendKeys()(KEY, values=VALUE, new=(NEW_KEY, NEW_VALUE), length=length))
    for out, old, new in zip(found, (KEY, VALUE), (NEW_KEY, NEW_VALUE), strict=True):
        assert out.shape == (B, BLOCKS, S + M, KV, SIZE)
        for row, count in enumerate(length):
            np.testing.assert_array_equal(out[row, :, : count + M], np.concatenate([old[row, :, :count], new[row]], axis=1))


def test_in_sixteen_bits() -> None:
    given = [keras.ops.cast(keras.ops.convert_to_tensor(x), "bfloat16") for x in (QUERY, NEW_KEY[:, 0], NEW_VALUE[:, 0])]
    held = held_of(RAGGED)
    held = held._replace(key=keras.ops.cast(held.key, "bfloat16"), value=keras.ops.cast(held.value, "bfloat16"))
    out = attend_held(*given, held.block(0))
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    np.testing.assert_allclose(numpy(out), wanted(RAGGED, 0), atol=0.03)


def test_common() -> None:
    """The checks that do not leave the number of blocks unknown."""
    inputs = {"inputs": KEY, "values": VALUE, "spans": tuple(later_spans(spans_of_row(RAGGED), RAGGED)), "length": RAGGED}
    check_build(HeldKeys, inputs, {})
    check_config(HeldKeys, inputs, {})
    mixed = HeldKeys(dtype="mixed_bfloat16")(**inputs)
    assert [keras.backend.standardize_dtype(part.dtype) for part in mixed] == ["bfloat16"] * 2 + ["bool"] * 3
    named = {"values": (BLOCKS, S, KV, SIZE), "length": ()}
    spans = tuple(keras.Input((M,), dtype="int32") for _ in Spans._fields)
    symbols = {name: keras.Input(shape, dtype="float32" if shape else "int32") for name, shape in named.items()}
    shapes = [part.shape for part in HeldKeys()(keras.Input(named["values"]), spans=spans, **symbols)]
    assert shapes == [(BLOCKS, None, KV, S, SIZE)] * 2 + [(None, M, S + M), (None, M), (None, M)]


def test_common_append(tmp_path: Path) -> None:
    inputs = {"inputs": KEY, "values": VALUE, "new": (NEW_KEY, NEW_VALUE), "length": RAGGED}
    run_layer_checks(lambda **more: AppendKeys(**more), inputs, tmp_path, mixed_dtype=None)
