"""Candidates against cached keys: the float64 reference, and equality with span attention over the concatenated row."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_ranking.ops import Spans, candidate_attention, span_attention
from keras_ranking.ops.backends import reference
from tests.ops.support import differentiate, distance

EXACT = 1e-5
BATCH, LENGTH, OFFERED = 3, 70, 33
LENGTHS = np.array([70, 0, 13], "int32")


def operands(rng, heads=4, kv_heads=2, size=8):
    old, new = (BATCH, LENGTH, kv_heads, size), (BATCH, OFFERED, kv_heads, size)
    query = (BATCH, OFFERED, heads, size)
    return [rng.standard_normal(shape).astype("float32") for shape in (query, old, old, new, new, query)]


@pytest.mark.parametrize("own", [True, False])
def test_forward_and_gradients(rng, own):
    query, key, value, self_key, self_value, upstream = operands(rng)
    inputs = [query, key, value] + ([self_key, self_value] if own else [])
    out, grads = differentiate(lambda q, k, v, *mine: candidate_attention(q, k, v, LENGTHS, *mine), inputs, upstream)
    mine = tuple(inputs[3:])
    assert distance(out, reference.candidate_attention(query, key, value, LENGTHS, *mine)) < EXACT
    expected = reference.candidate_attention_gradients(query, key, value, LENGTHS, upstream, *mine)
    for got, wanted in zip(grads, expected, strict=True):
        assert distance(got, wanted) < EXACT
    if own:
        group = np.repeat(self_value, 2, axis=2)
        assert distance(out[1], group[1]) < EXACT  # no history: the softmax of one key
    else:
        assert not out[1].any() and not grads[0][1].any()


def test_equals_span_attention_over_history_and_candidates(rng):
    query, key, value, self_key, self_value, _ = operands(rng)
    history = rng.standard_normal((BATCH, LENGTH, 4, 8)).astype("float32")
    joined = [np.concatenate(pair, axis=1) for pair in ((history, query), (key, self_key), (value, self_value))]
    whole = keras.ops.convert_to_numpy(span_attention(*joined, Spans.candidates(LENGTHS, LENGTH, OFFERED)))[:, LENGTH:]
    cached = keras.ops.convert_to_numpy(candidate_attention(query, key, value, LENGTHS, self_key, self_value))
    assert distance(cached, whole) < EXACT
    # Control: a plain causal row lets candidates see each other.
    causal = keras.ops.convert_to_numpy(span_attention(*joined, Spans.causal(np.ones(joined[0].shape[:2], "int32"))))[:, LENGTH:]
    assert distance(cached, causal) > 0.1


def test_chunks_of_candidates_give_the_same(rng):
    query, key, value, self_key, self_value, _ = operands(rng)
    whole = keras.ops.convert_to_numpy(candidate_attention(query, key, value, LENGTHS, self_key, self_value))
    part = slice(5, 12)
    chunk = candidate_attention(query[:, part], key, value, LENGTHS, self_key[:, part], self_value[:, part])
    assert distance(keras.ops.convert_to_numpy(chunk), whole[:, part]) < EXACT


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_cache_beyond_its_length_may_have_any_value(rng, poison):
    query, key, value, self_key, self_value, upstream = operands(rng)

    def run(key, value):
        inputs = [query, key, value, self_key, self_value]
        return differentiate(lambda q, k, v, sk, sv: candidate_attention(q, k, v, LENGTHS, sk, sv), inputs, upstream)

    clean, grads = run(key, value)
    beyond = (np.arange(LENGTH)[None] >= LENGTHS[:, None])[:, :, None, None]
    out, dirty = run(*(np.where(beyond, np.float32(poison), part) for part in (key, value)))
    np.testing.assert_array_equal(out, clean)
    for one, other in zip(dirty, grads, strict=True):
        np.testing.assert_array_equal(one, other)
    value[0, 0] = poison
    assert not np.isfinite(run(key, value)[0][0]).any()  # control: a visible key has an effect


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision(rng, dtype, bound):
    rounded = [keras.ops.cast(part, dtype) for part in operands(rng)[:5]]
    q, k, v, sk, sv = (keras.ops.convert_to_numpy(keras.ops.cast(part, "float32")) for part in rounded)
    out = candidate_attention(*rounded[:3], LENGTHS, *rounded[3:])
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    assert (
        distance(keras.ops.convert_to_numpy(keras.ops.cast(out, "float32")), reference.candidate_attention(q, k, v, LENGTHS, sk, sv))
        < bound
    )


def test_symbolic_and_eager_agree(rng):
    query, key, value, self_key, self_value, _ = operands(rng)
    inputs = [keras.Input(part.shape[1:]) for part in (query, key, value, self_key, self_value)]
    lengths = keras.Input((), dtype="int32")
    model = keras.Model([*inputs, lengths], candidate_attention(*inputs[:3], lengths, *inputs[3:], scale=0.5))
    out = keras.ops.convert_to_numpy(model([query, key, value, self_key, self_value, LENGTHS]))
    assert distance(out, reference.candidate_attention(query, key, value, LENGTHS, self_key, self_value, scale=0.5)) < EXACT


@pytest.mark.quickest
def test_arguments_that_do_not_fit(rng):
    query, key, value, self_key, self_value, _ = operands(rng)
    with pytest.raises(ValueError, match="must be given together"):
        candidate_attention(query, key, value, LENGTHS, self_key)
    with pytest.raises(ValueError, match="`self_key` must have shape"):
        candidate_attention(query, key, value, LENGTHS, self_key[:, :3], self_value[:, :3])
    with pytest.raises(ValueError, match="`lengths` must have shape"):
        candidate_attention(query, key, value, LENGTHS[:2])
    with pytest.raises(ValueError, match="`lengths` must be int32"):
        candidate_attention(query, key, value, LENGTHS.astype("float32"))
