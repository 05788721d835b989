"""Attention whose weights are dropped in training: each weight is zero or the plain one over the rate kept."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import SelfGatedAttention
from keras_ranking.layers.attention.dropped_weights import attend_dropping, candidates_dropping
from keras_ranking.ops import Spans, candidate_attention, span_attention
from tests.layers.common import numpy, randomise

B, T, H, S = 2, 8, 4, 8


def parts(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def spans() -> Spans:
    return Spans.causal(np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1] * 8], "int32"))


def test_weights_are_dropped_one_by_one() -> None:
    """Values that are unit vectors show the weights."""
    query, key = parts((B, T, H, S), (B, S, 2, S))
    value = np.broadcast_to(np.eye(S, dtype="float32")[None, :, None], (B, S, 2, S))
    seen = spans().dense(S)
    plain = numpy(span_attention(query, key, value, spans()))
    drop = keras.layers.Dropout(0.5, dtype="float32", seed=1)
    got = numpy(attend_dropping(drop, *map(keras.ops.convert_to_tensor, (query, key, value)), seen))
    kept = got > 0
    np.testing.assert_allclose(got, np.where(kept, 2 * plain, 0), rtol=1e-5, atol=1e-6)
    visible = np.broadcast_to(numpy(seen)[:, :, None, :], got.shape)
    share = kept[visible].mean()
    assert 0.35 < share < 0.65 and not kept[~visible].any()
    again = numpy(attend_dropping(drop, *map(keras.ops.convert_to_tensor, (query, key, value)), seen))
    assert np.abs(again - got).max() > 0.1, "another draw in each step"


def test_equal_to_the_kernels_at_rate_zero() -> None:
    query, key, value, own_key, own_value = parts((B, T, H, 4), (B, S, 2, 4), (B, S, 2, 4), (B, T, 2, 4), (B, T, 2, 4))
    key[0, 6:], value[0, 6:] = np.nan, np.nan  # padding
    tensors = [keras.ops.convert_to_tensor(part) for part in (query, key, value)]
    drop = keras.layers.Dropout(0.0, dtype="float32")
    got = numpy(attend_dropping(drop, *tensors, spans().dense(S)))
    np.testing.assert_allclose(got, numpy(span_attention(*tensors, spans())), rtol=1e-5, atol=1e-5)
    half = Spans(*(part[:, ::2] for part in spans()))
    got = numpy(attend_dropping(drop, tensors[0][:, ::2], *tensors[1:], half.dense(S, 2)))
    np.testing.assert_allclose(got, numpy(span_attention(tensors[0][:, ::2], *tensors[1:], half, stride=2)), rtol=1e-5, atol=1e-5)
    lengths = keras.ops.convert_to_tensor(np.array([0, 5], "int32"))
    for own in ({}, {"self_key": keras.ops.convert_to_tensor(own_key), "self_value": keras.ops.convert_to_tensor(own_value)}):
        expected = numpy(candidate_attention(*tensors, lengths, **own))
        np.testing.assert_allclose(numpy(candidates_dropping(drop, *tensors, lengths, **own)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("call", ["row", "candidates", "later tokens"])
def test_in_training_alone(call: str) -> None:
    x, later = parts((B, T, 8), (B, 2, 8))
    layer, plain = (SelfGatedAttention(2, 4, gates=(), rotary=None, qkv_bias=True, attention_dropout=rate) for rate in (0.5, 0.0))
    for each in (layer, plain):
        each.build((None, None, 8))
        randomise(each)
    own = [keras.ops.convert_to_tensor(part) for part in parts((B, T, 2, 4), (B, T, 2, 4))]
    cache = (*own, keras.ops.convert_to_tensor(np.array([3, 8], "int32")))
    given: dict[str, Any] = {"row": {"spans": tuple(spans())}, "candidates": {"cache": cache}}.get(call, {})
    if call == "later tokens":
        given = {"cache": cache, "spans": tuple(Spans.causal(np.ones((B, T + 2), "int32")))}
    inputs = later if call == "later tokens" else x
    np.testing.assert_array_equal(numpy(layer(inputs, **given)), numpy(plain(inputs, **given)))
    np.testing.assert_array_equal(numpy(layer(inputs, **given, training=False)), numpy(plain(inputs, **given)))
    first, second = (numpy(layer(inputs, **given, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-2 and np.isfinite(first).all()
    np.testing.assert_array_equal(numpy(plain(inputs, **given, training=True)), numpy(plain(inputs, **given)))
