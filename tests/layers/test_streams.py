"""The small layers that turn times, lengths and slots into what models need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import (
    DelayedSpans,
    FlattenRows,
    KeepFirst,
    RequestTimes,
    Segments,
    SlotOwners,
    TokenTimes,
    UnflattenRows,
    VisibleLength,
)
from keras_ranking.ops import Spans

from .common import check_build, check_config, numpy, run_example, run_layer_checks


def rows(seed: int = 0, batch: int = 4, tokens: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Times and segments of packed rows with ties in time, several members a row and padding at the end."""
    rng = np.random.default_rng(seed)
    times, segments = np.zeros((batch, tokens), "int32"), np.zeros((batch, tokens), "int32")
    for b in range(batch):
        at, segment = 0, 0
        while at < tokens - b:
            size, segment = min(int(rng.integers(1, 6)), tokens - b - at), segment + 1
            times[b, at : at + size] = np.sort(rng.integers(100, 130, size))
            segments[b, at : at + size] = segment
            at += size
    return times, segments


def expected_mask(times: np.ndarray, segments: np.ndarray, delay: int, layout: str) -> np.ndarray:
    """Who sees whom, pair by pair, from the words of the docstring."""
    batch, tokens = times.shape
    older = np.zeros((batch, tokens, tokens), bool)
    for b, i, j in np.ndindex(older.shape):
        older[b, i, j] = segments[b, i] > 0 and segments[b, i] == segments[b, j] and times[b, j] <= times[b, i] - delay
    if layout == "value":
        return older
    mask = np.repeat(np.repeat(older, 2, axis=1), 2, axis=2)
    for b, i in np.ndindex(batch, tokens):
        if segments[b, i] > 0:
            mask[b, 2 * i, 2 * i] = mask[b, 2 * i + 1, 2 * i] = mask[b, 2 * i + 1, 2 * i + 1] = True
    return mask


@pytest.mark.parametrize("layout", ["interleaved", "value"])
@pytest.mark.parametrize("delay", [1, 7, 1000])
def test_delayed_spans(delay: int, layout: str) -> None:
    times, segments = rows()
    spans = DelayedSpans(delay, layout)(times, segments=segments)
    want = expected_mask(times, segments, delay, layout)
    got = numpy(Spans(*spans).dense(want.shape[-1]))
    np.testing.assert_array_equal(got, want)
    # Control: the same mask at a delay one second longer or shorter is another one, as long as any time decides.
    if delay < 1000:
        assert (got != expected_mask(times, segments, delay + 1, layout)).any()


def test_events_of_one_second_do_not_see_each_other() -> None:
    times, segments = np.full((1, 4), 50, "int32"), np.ones((1, 4), "int32")
    seen = numpy(DelayedSpans(1, "value")(times, segments=segments).dense(4))
    assert not seen.any()
    # Control: a causal mask lets the second impression of a request see the first one's click.
    assert numpy(Spans.causal(segments).dense(4))[0, 1, 0]


@pytest.mark.parametrize("layout", ["interleaved", "value"])
def test_delayed_spans_common(layout: str, tmp_path: Path) -> None:
    times, segments = rows()
    run_layer_checks(
        lambda **settings: DelayedSpans(5, layout, **settings), {"times": times, "segments": segments}, tmp_path, mixed_dtype=None
    )


def test_visible_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 100, (64, 9)), axis=1).astype("int32")
    length = rng.integers(0, 10, 64).astype("int32")
    request = rng.integers(0, 130, 64).astype("int32")
    for delay in (1, 20):
        want = [sum(int(t) <= int(now) - delay for t in row[:n]) for row, n, now in zip(times, length, request, strict=True)]
        got = numpy(VisibleLength(delay)(times, history_length=length, request_time=request))
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)
        # Controls: without the delay, or with what stands beyond the history, more is seen.
        assert (got < numpy(VisibleLength(1)(times, history_length=length, request_time=request + 1))).any()
        assert (got < numpy(VisibleLength(delay)(times, history_length=np.full_like(length, 9), request_time=request))).any()
    inputs = {"history_time": times, "history_length": length, "request_time": request}
    run_layer_checks(lambda **settings: VisibleLength(20, **settings), inputs, tmp_path, mixed_dtype=None)


def test_visible_length_agrees_with_the_spans_of_training() -> None:
    """What a request sees of a history is what the event would have seen in a row of training."""
    times, segments = rows(batch=1, tokens=20)
    times, segments = np.sort(times, axis=1), np.ones_like(segments)
    spans = DelayedSpans(6, "value")(times, segments=segments)
    for i in range(20):
        seen = numpy(VisibleLength(6)(times, history_length=np.array([i], "int32"), request_time=times[:, i]))
        assert seen[0] == numpy(spans.end)[0, i] - numpy(spans.start)[0, i]


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2), (3, 5, 2, 2)])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_keep_first(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=shape, scale=50).astype(dtype)
    length = np.array([0, 2, 5], "int32")
    out = numpy(KeepFirst()(x, length=length))
    want = x.copy()
    want[0], want[1, 2:] = 0, 0
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out, want)
    run_layer_checks(KeepFirst, {"inputs": x, "length": length}, tmp_path, mixed_dtype=None)


def test_keep_first_lets_no_garbage_through() -> None:
    x = np.full((1, 3, 2), np.nan, "float32")
    x[:, 0] = 4.0
    out = numpy(KeepFirst()(x, length=np.array([1], "int32")))
    np.testing.assert_array_equal(out, [[[4, 4], [0, 0], [0, 0]]])
    # Control: a product with the mask does not clean a NaN.
    assert np.isnan(x * np.array([1, 0, 0])[None, :, None]).any()


def test_keep_first_keeps_float32_under_mixed_precision() -> None:
    """Numbers are cleaned before the model casts them: 16,777,215 must not become 16,777,216."""
    x = np.array([[16_777_215.0]], "float32")
    out = KeepFirst(dtype="mixed_bfloat16")(x, length=np.array([1], "int32"))
    assert keras.backend.standardize_dtype(out.dtype) == "float32"
    np.testing.assert_array_equal(numpy(out), x)


def test_segments(tmp_path: Path) -> None:
    times, length = np.zeros((3, 4), "int32"), np.array([0, 3, 4], "int32")
    out = numpy(Segments()(times, length=length))
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out, [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    run_layer_checks(Segments, {"times": times, "length": length}, tmp_path, mixed_dtype=None)


def test_token_times(tmp_path: Path) -> None:
    times, _ = rows()
    out = numpy(TokenTimes()(times))
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out[:, ::2], times)
    np.testing.assert_array_equal(out[:, 1::2], times)
    run_layer_checks(TokenTimes, {"times": times}, tmp_path, mixed_dtype=None)


def test_request_times(tmp_path: Path) -> None:
    candidates = np.random.default_rng(3).normal(size=(3, 5, 2)).astype("float32")
    request = np.array([7, 2**31 - 1, 0], "int32")
    out = numpy(RequestTimes()(candidates, request_time=request))
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out, np.tile(request[:, None], (1, 5)))
    run_layer_checks(RequestTimes, {"candidates": candidates, "request_time": request}, tmp_path, mixed_dtype=None)


def test_errors() -> None:
    for layer in (DelayedSpans, VisibleLength):
        with pytest.raises(ValueError, match="`delay` must be at least 1 second. Received: delay=0"):
            layer(0)
    with pytest.raises(ValueError, match="`layout` must be 'interleaved' or 'value'. Received: layout='pairs'"):
        DelayedSpans(5, "pairs")


@pytest.mark.parametrize("layer", [DelayedSpans, VisibleLength, KeepFirst, Segments, TokenTimes, RequestTimes])
def test_examples(layer: Any) -> None:
    run_example(layer)


def test_slots_of_packed_requests() -> None:
    slots = np.array([[1, 1, 2, 0], [3, 1, 2, 2]], "int32")
    values = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    owned = {"slots": slots, "requests": np.zeros((2, 3), "int32")}
    flat = {"inputs": values.reshape(8, 3), "like": slots}
    for kind, inputs in ((FlattenRows, {"inputs": values}), (UnflattenRows, flat), (SlotOwners, owned)):
        check_build(kind, inputs, {})
        check_config(kind, inputs, {})
    placeholder = keras.Input((None, 3))
    graph = keras.Model(placeholder, UnflattenRows()(FlattenRows()(placeholder), like=placeholder[..., 0]))
    np.testing.assert_array_equal(numpy(graph(values)), values)
    histories = np.random.default_rng(1).normal(size=(2, 3, 5)).astype("float32")
    owners = numpy(SlotOwners()(slots, requests=np.zeros((2, 3), "int32")))
    each = numpy(UnflattenRows()(numpy(FlattenRows()(histories))[owners], like=slots))
    for b, s in np.ndindex(2, 4):
        np.testing.assert_array_equal(each[b, s], histories[b, max(slots[b, s] - 1, 0)])
    run_example(FlattenRows)
    run_example(UnflattenRows)
    run_example(SlotOwners)
