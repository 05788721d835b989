"""Small layers on times, lengths and slots: `lengths.py`, `token_times.py`, `rows.py`."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ranking.layers import (
    FlattenRows,
    KeepFirst,
    RequestTimes,
    Segments,
    SlotOwners,
    TokenTimes,
    UnflattenRows,
)
from tests.layers.common import check_build, check_config, numpy, run_layer_checks


def rows(seed: int = 0, batch: int = 4, tokens: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Times and segments of packed rows with equal times, several members per row and padding at the end."""
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


@pytest.mark.few(2)
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


def test_keep_first_removes_values_beyond_the_length() -> None:
    x = np.full((1, 3, 2), np.nan, "float32")
    x[:, 0] = 4.0
    out = numpy(KeepFirst()(x, length=np.array([1], "int32")))
    np.testing.assert_array_equal(out, [[[4, 4], [0, 0], [0, 0]]])
    # Control: a product with the mask does not remove a NaN.
    assert np.isnan(x * np.array([1, 0, 0])[None, :, None]).any()


def test_keep_first_keeps_float32_under_mixed_precision() -> None:
    """Numbers are set to zero before the model casts them: 16,777,215 must not become 16,777,216."""
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


@pytest.mark.parametrize(("layout", "distinct"), [("interleaved", True), ("fused", False)])
def test_token_times_by_layout(layout: str, distinct: bool, tmp_path: Path) -> None:
    times, _ = rows()
    out = numpy(TokenTimes(layout, distinct)(times))
    want = np.concatenate([times, times], axis=1)
    if distinct:
        want = np.empty_like(want)
        want[:, ::2], want[:, 1::2] = 2 * times, 2 * times + 1
    np.testing.assert_array_equal(out, want)
    run_layer_checks(lambda **settings: TokenTimes(layout, distinct, **settings), {"times": times}, tmp_path, mixed_dtype=None)


@pytest.mark.quickest
def test_errors() -> None:
    for wrong in ({"layout": "value"}, {"layout": "fused", "distinct": True}):
        with pytest.raises(ValueError, match="`layout` must be 'interleaved' or 'fused', and `distinct` needs 'interleaved'"):
            TokenTimes(**wrong)


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
