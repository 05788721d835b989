"""Times, ids and lengths in a layer are integers of int32, or refused: no backend rounds or wraps them in silence."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking import layers

X = np.random.default_rng(0).normal(size=(1, 3, 8)).astype("float32")
HEADS = X.reshape(1, 3, 2, 4)
SEGMENTS = np.ones((1, 3), "int32")
UNIX = np.array([[1_780_000_000, 1_780_000_060, 1_780_003_600]])
LENGTH = np.array([3], "int32")


def history(**changes: Any) -> dict[str, Any]:
    given = {"history": X, "candidates": X[:, :2], "visible": LENGTH, "times": UNIX.astype("int32")}
    return {**given, "request_time": UNIX[:, -1].astype("int32"), **changes}


# argument -> a call with its value
CALLS = {
    ("times", "TimestampRotaryEmbedding"): lambda v: layers.TimestampRotaryEmbedding()(HEADS, times=v),
    ("index", "IndexRotaryEmbedding"): lambda v: layers.IndexRotaryEmbedding()(HEADS, index=v),
    ("times", "SelfGatedAttention"): lambda v: layers.SelfGatedAttention(2, 4)(X, times=v, spans=kr.ops.Spans.causal(SEGMENTS)),
    ("times", "DecoderBlock"): lambda v: layers.DecoderBlock(2, 4)(X, times=v, spans=kr.ops.Spans.causal(SEGMENTS)),
    ("times", "LiGRBlock"): lambda v: layers.LiGRBlock(2, 4)(X, times=v, spans=kr.ops.Spans.causal(SEGMENTS)),
    ("times", "GatedResidual"): lambda v: layers.GatedResidual(layers.SelfGatedAttention(2, 4))(
        X, times=v, spans=kr.ops.Spans.causal(SEGMENTS)
    ),
    ("times", "EventSpans"): lambda v: layers.EventSpans()(v, segments=SEGMENTS),
    ("segments", "EventSpans"): lambda v: layers.EventSpans()(UNIX.astype("int32"), segments=v),
    ("times", "TokenTimes"): lambda v: layers.TokenTimes()(v),
    ("request_time", "RequestTimes"): lambda v: layers.RequestTimes()(X, request_time=v[0, -1:]),
    ("history_time", "VisibleLength"): lambda v: layers.VisibleLength(60)(
        v, history_length=LENGTH, request_time=UNIX[0, -1:].astype("int32")
    ),
    ("request_time", "VisibleLength"): lambda v: layers.VisibleLength(60)(
        UNIX.astype("int32"), history_length=LENGTH, request_time=v[0, -1:]
    ),
    ("times", "HistoryEncoder"): lambda v: layers.HistoryEncoder(max_history=3, num_heads=1)(history(times=v)),
    ("request_time", "HistoryEncoder"): lambda v: layers.HistoryEncoder(max_history=3, num_heads=1)(history(request_time=v[0, -1:])),
    ("times", "rotate"): lambda v: kr.ops.rotate(HEADS, v, kr.ops.rotary_periods(4, 8, 86400)),
    ("times", "Spans.delayed"): lambda v: kr.ops.Spans.delayed(v, 60, SEGMENTS),
    ("inputs", "QuantizedEmbedding"): lambda v: layers.QuantizedEmbedding.from_table(X[0])(v % 3),
    ("inputs", "QuotientRemainderEmbedding"): lambda v: layers.QuotientRemainderEmbedding(2, divisor=65_536)(v[:, :2] % 9),
    ("inputs", "LabelTreeEmbedding"): lambda v: layers.LabelTreeEmbedding(depth=3, dim=2)(v % 16),
    ("inputs", "SemanticIdEmbedding"): lambda v: layers.SemanticIdEmbedding(levels=3, codebook_size=4, dim=2)(v % 4),
    ("ids", "RandomEffect"): lambda v: layers.RandomEffect(4)(X[:, :, 0], v % 4),
    ("item_id", "EventEmbedding"): lambda v: layers.EventEmbedding([kr.Id("item_id", buckets=9)], dim=2, id_dim=2)({"item_id": v % 9}),
    ("item_id", "FeatureConcat"): lambda v: layers.FeatureConcat([kr.Id("item_id", buckets=9)], id_dim=2)({"item_id": v % 9}),
}
BIG = {key for key in CALLS if "time" in key[0]}  # whose values stand in the call as they are


@pytest.mark.few(3)
@pytest.mark.parametrize("key", sorted(CALLS), ids=" of ".join)
def test_a_float_is_refused_as_an_array_a_tensor_and_a_list(key: tuple[str, str]) -> None:
    for dtype in ("float16", "float32", "float64"):
        with pytest.raises(ValueError, match=f"`{key[0]}` must be integers .int32.. Received: dtype={dtype}"):
            CALLS[key]((UNIX % 1000).astype(dtype))
    with pytest.raises(ValueError, match=f"`{key[0]}` must be integers .int32.. Received: dtype=float32"):
        CALLS[key](keras.ops.convert_to_tensor((UNIX % 1000).astype("float32")))
    if key in BIG:
        with pytest.raises(ValueError, match=f"`{key[0]}` must be integers .int32.. Received: dtype=bool"):
            CALLS[key](UNIX > 0)


@pytest.mark.few(5)
@pytest.mark.parametrize("key", sorted(CALLS), ids=" of ".join)
def test_int64_gives_what_int32_gives(key: tuple[str, str]) -> None:
    keras.utils.set_random_seed(0)
    want = keras.tree.flatten(CALLS[key](UNIX.astype("int32")))
    keras.utils.set_random_seed(0)
    got = keras.tree.flatten(CALLS[key](UNIX.astype("int64")))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.few(3)
@pytest.mark.parametrize("key", sorted(BIG), ids=" of ".join)
@pytest.mark.parametrize("dtype", ["int64", "uint32", "uint64"])
def test_values_beyond_int32_are_refused(key: tuple[str, str], dtype: str) -> None:
    """Milliseconds, and the first second after 2**31 - 1."""
    for values in ((UNIX * 1000), UNIX + (2**31 - UNIX.max())):
        if values.max() < np.iinfo(dtype).max:
            with pytest.raises(ValueError, match=f"`{key[0]}` must be whole numbers of int32"):
                CALLS[key](values.astype(dtype))


def test_an_input_with_the_default_type_of_keras_is_refused_when_the_model_is_made() -> None:
    x, times = keras.Input((None, 2, 4)), keras.Input((None,))
    with pytest.raises(ValueError, match=r"`times` must be integers .* keras.Input\(..., dtype='int32'\)"):
        layers.TimestampRotaryEmbedding()(x, times=times)
    with pytest.raises(ValueError, match=r"`times` must be int32. Received: dtype=int64. Declare"):
        layers.TimestampRotaryEmbedding()(x, times=keras.Input((None,), dtype="int64"))


def test_a_functional_model_with_int32_times_tells_a_minute_apart() -> None:
    """The control of what float32 loses: of 1,780,000,000 and a minute later it makes one number."""
    assert np.float32(1_780_000_000) == np.float32(1_780_000_060)
    x, times = keras.Input((None, 2, 4)), keras.Input((None,), dtype="int32")
    model = keras.Model([x, times], layers.TimestampRotaryEmbedding()(x, times=times))
    one, other = (keras.ops.convert_to_numpy(model([HEADS, (UNIX + moved).astype("int32")])) for moved in (0, 60))
    assert np.abs(one - other).max() > 1e-3


def test_pandas_types() -> None:
    """Its own types have no counterpart in Keras: whole numbers are read, missing ones refused."""
    times = layers.RequestTimes()(X, request_time=pd.Series([5], dtype="Int64"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(times), [[5, 5, 5]])
    for column in (pd.Series([None], dtype="Int64"), pd.Series([5.0], dtype="Float64"), pd.Series(pd.to_datetime(["2020-01-01"]))):
        with pytest.raises(ValueError, match="`request_time` must be integers"):
            layers.RequestTimes()(X, request_time=column)


def test_halves_of_an_id_and_lengths_of_a_cache_beyond_int32() -> None:
    """JAX would cut 2**32 + 1 to 1."""
    with pytest.raises(ValueError, match="`inputs` must be whole numbers of int32"):
        layers.QuotientRemainderEmbedding(2, divisor=65_536)(np.array([[2**32 + 1, 2]]))
    attention = layers.SelfGatedAttention(2, 4, rotary=None)
    with pytest.raises(ValueError, match="`lengths` must be whole numbers of int32"):
        attention(X, cache=(HEADS, HEADS, np.array([2**32 + 1])))
    assert attention(X, cache=(HEADS, HEADS, np.array([1]))).shape == X.shape
