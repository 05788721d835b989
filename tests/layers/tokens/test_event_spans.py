"""EventSpans, TokenSpans and VisibleLength: which events see which, by three rules and in three layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import EventSpans, TokenSpans, VisibleLength
from keras_ranking.ops import Spans
from tests.layers.common import numpy, run_layer_checks

RULES: list[dict[str, Any]] = [
    {"mask": "delay", "delay": 1},
    {"mask": "delay", "delay": 7},
    {"mask": "delay", "delay": 1000},
    {"mask": "session", "delay": 4, "session_gap": 4},
    {"mask": "session", "delay": 1, "session_gap": 9},
    {"mask": "causal", "delay": 1},
]


def rows(seed: int = 0, batch: int = 4, tokens: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Times and segments of packed rows with equal times, several members per row and padding at the end."""
    rng = np.random.default_rng(seed)
    times, segments = np.zeros((batch, tokens), "int32"), np.zeros((batch, tokens), "int32")
    for b in range(batch):
        at, segment = 0, 0
        while at < tokens - b:
            size, segment = min(int(rng.integers(1, 8)), tokens - b - at), segment + 1
            times[b, at : at + size] = np.sort(rng.integers(100, 130, size))
            segments[b, at : at + size] = segment
            at += size
    return times, segments


def seen(times: np.ndarray, rule: dict[str, Any], i: int, j: int) -> bool:
    """Whether event i of a stream sees the earlier event j, as described in the docstring."""
    if rule["mask"] == "delay":
        return bool(times[j] <= times[i] - rule["delay"])
    if rule["mask"] == "causal":
        return bool(times[j] < times[i])
    return j < i and any(times[k + 1] - times[k] >= rule["session_gap"] for k in range(j, i))


def event_mask(times: np.ndarray, segments: np.ndarray, rule: dict[str, Any], own: bool = False) -> np.ndarray:
    mask = np.zeros((*times.shape, times.shape[1]), bool)
    for b in range(len(times)):
        for segment in set(segments[b]) - {0}:
            where = np.flatnonzero(segments[b] == segment)
            for x, i in enumerate(where):
                for y, j in enumerate(where):
                    mask[b, i, j] = seen(times[b, where], rule, x, y) or (own and i == j)
    return mask


@pytest.mark.parametrize("own", [False, True])
def test_sessions_by_ids(own: bool) -> None:
    """Sessions of a member that overlap, and ids that two members of a row share."""
    rng = np.random.default_rng(5)
    layer, differs = EventSpans("session", delay=3, own=own, by_column=True), 0
    for seed in range(3):
        times, segments = rows(seed)
        ids = rng.integers(0, 3, times.shape).astype("int32")
        got = numpy(layer(times, segments=segments, sessions=ids).dense(times.shape[1]))
        want = np.zeros_like(got)
        for b, i, j in np.ndindex(got.shape):
            mine = segments[b] == segments[b, i] if segments[b, i] else np.zeros(times.shape[1], bool)
            first = np.flatnonzero(mine & (ids[b] == ids[b, i]))[:1]
            want[b, i, j] = (mine[j] and j < first.min(initial=99) and times[b, j] <= times[b, i] - 3) or (own and i == j and mine[j])
        np.testing.assert_array_equal(got, want)
        runs = numpy(Spans.sessions(ids, segments, own=own).dense(times.shape[1]))
        differs += int((runs & ~got).sum())
    assert differs  # control: runs of equal ids would show earlier events of a session that another interrupts


def test_a_request_sees_what_its_impressions_see_by_ids() -> None:
    rng = np.random.default_rng(6)
    times = np.sort(rng.integers(0, 60, (64, 9)), axis=1).astype("int32")
    ids, now = rng.integers(0, 4, (64, 10)).astype("int32"), rng.integers(60, 64, (64, 1)).astype("int32")
    length = rng.integers(0, 10, 64).astype("int32")
    layer = VisibleLength(5, "session", by_column=True)
    got = numpy(layer(times, history_length=length, request_time=now[:, 0], history_session=ids[:, :9], request_session=ids[:, 9]))
    for b, count in enumerate(length):
        row, sessions = np.append(times[b, :count], now[b])[None], np.append(ids[b, :count], ids[b, 9])[None]
        spans = EventSpans("session", delay=5, by_column=True)(row, segments=np.ones_like(row), sessions=sessions)
        assert got[b] == numpy(spans.end)[0, -1] - numpy(spans.start)[0, -1]
    assert (got < length).any() and (got > 0).any()


def test_ids_of_sessions_where_they_are_read() -> None:
    times = np.array([[1, 2]], "int32")
    with pytest.raises(ValueError, match="`sessions` must be given with `by_column`"):
        EventSpans("session", by_column=True)(times, segments=times)
    with pytest.raises(ValueError, match="`by_column` goes with mask='session'"):
        EventSpans("delay", by_column=True)
    with pytest.raises(ValueError, match="ids of sessions must be given with `by_column`"):
        VisibleLength(5, "session", by_column=True)(times, history_length=np.array([2]), request_time=np.array([9]))


@pytest.mark.few(3)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("own", [False, True])
def test_event_spans(rule: dict[str, Any], own: bool) -> None:
    for seed in range(3):
        times, segments = rows(seed)
        got = numpy(EventSpans(**rule, own=own)(times, segments=segments).dense(times.shape[1]))
        np.testing.assert_array_equal(got, event_mask(times, segments, rule, own))
    assert not own or got.any()
    # Control: a plain causal mask differs for events of the same second.
    assert (got != numpy(Spans.causal(segments, own=own).dense(times.shape[1]))).any()


@pytest.mark.parametrize("rule", RULES[2:])
def test_values_of_padding_change_nothing(rule: dict[str, Any]) -> None:
    times, segments = rows()
    rng = np.random.default_rng(3)
    wild = np.where(segments > 0, times, rng.integers(-(2**31), 2**31 - 1, times.shape)).astype("int32")
    for a, b in zip(EventSpans(**rule)(times, segments=segments), EventSpans(**rule)(wild, segments=segments), strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))


@pytest.mark.parametrize("rule", RULES[3:])
def test_any_order_inside_a_session_keeps_earlier_sessions(rule: dict[str, Any]) -> None:
    """Two sessions of 4 and 3 events, 100 seconds apart; the second in another order."""
    rule = {**rule, "session_gap": 50}
    times = np.array([[0, 1, 2, 3, 103, 105, 101]], "int32")
    got = numpy(EventSpans(**rule, own=False)(times, segments=np.ones_like(times)).dense(7))[0]
    assert got[4:, :4].all() and not got[:4, 4:].any()
    inside = [[0, 0, 0], [1, 0, 0], [1, 1, 0]] if rule["mask"] == "causal" else np.zeros((3, 3))
    np.testing.assert_array_equal(got[4:, 4:], inside)


@pytest.mark.parametrize("layout", ["interleaved", "fused", "value"])
def test_token_spans(layout: str) -> None:
    times, segments = rows()
    rule = RULES[1]
    older, count = event_mask(times, segments, rule), times.shape[1]
    got = numpy(TokenSpans(layout)(tuple(EventSpans(**rule, own=layout != "value")(times, segments=segments))).dense(2 * count))
    if layout == "value":
        np.testing.assert_array_equal(got[:, :, :count], older)
        return
    want = np.zeros((len(times), 2 * count, 2 * count), bool)
    for b, i in np.ndindex(times.shape):
        real = segments[b, i] > 0
        if layout == "interleaved":
            for token in (2 * i, 2 * i + 1):
                want[b, token] = np.repeat(older[b, i], 2)
                want[b, token, 2 * i : token + 1] |= real
        else:
            want[b, i, :count] = want[b, count + i, :count] = older[b, i]
            want[b, i, i] = want[b, count + i, count + i] = real
    np.testing.assert_array_equal(got, want)


@pytest.mark.few(3)
@pytest.mark.parametrize("rule", RULES)
def test_visible_length(rule: dict[str, Any]) -> None:
    """A request sees the same events as its impressions in a row: the history, then one event at the request time."""
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 60, (64, 9)), axis=1).astype("int32")
    length = rng.integers(0, 10, 64).astype("int32")
    before = np.where(length > 0, times[np.arange(64), np.maximum(length - 1, 0)], 0)
    request = (before + rng.integers(1, 20, 64)).astype("int32")
    want = []
    for row, n, now in zip(times, length, request, strict=True):
        stream = np.append(row[:n], now)
        want.append(sum(seen(stream, rule, n, j) for j in range(n)))
    got = numpy(VisibleLength(**rule)(times, history_length=length, request_time=request))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)
    if rule["delay"] < 1000:  # control: the end of the history has an effect
        assert (got < numpy(VisibleLength(**rule)(times, history_length=np.full_like(length, 9), request_time=request + 60))).any()


@pytest.mark.few(2)
@pytest.mark.parametrize("rule", RULES[2:])
def test_visible_length_agrees_with_the_spans_of_training(rule: dict[str, Any]) -> None:
    times, _ = rows(batch=1, tokens=20)
    times = np.sort(times, axis=1)
    spans = EventSpans(**rule)(times, segments=np.ones_like(times))
    for i in range(20):
        first = int(np.searchsorted(times[0], times[0, i]))  # of its request: events of the same second are not history
        got = numpy(VisibleLength(**rule)(times, history_length=np.array([first], "int32"), request_time=times[:, i]))
        assert got[0] == numpy(spans.end)[0, i] - numpy(spans.start)[0, i]


@pytest.mark.few(1)
@pytest.mark.parametrize("rule", [RULES[1], RULES[3], RULES[5]])
def test_common(rule: dict[str, Any], tmp_path: Path) -> None:
    times, segments = rows()
    inputs = {"times": times, "segments": segments}
    run_layer_checks(lambda **settings: EventSpans(**rule, **settings), inputs, tmp_path, mixed_dtype=None)
    (tmp_path / "visible").mkdir()
    history = {"history_time": times, "history_length": np.array([1, 4, 0, 12], "int32"), "request_time": times.max(1)}
    run_layer_checks(lambda **settings: VisibleLength(**rule, **settings), history, tmp_path / "visible", mixed_dtype=None)


@pytest.mark.few(1)
@pytest.mark.parametrize("layout", ["interleaved", "fused", "value"])
def test_token_spans_common(layout: str) -> None:
    times, segments = rows()
    spans = EventSpans()(times, segments=segments)
    layer = TokenSpans(layout, name="tokens")
    copy = TokenSpans.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config() and not layer.weights
    tokens = 12 if layout == "value" else 24
    for part, again in zip(layer(tuple(spans)), copy(tuple(spans)), strict=True):
        np.testing.assert_array_equal(numpy(part), numpy(again))
        assert tuple(part.shape) == (4, tokens)
    symbols = tuple(keras.Input((None,), dtype="int32", name=name) for name in ("start", "end", "own"))
    model = keras.Model(symbols, tuple(TokenSpans(layout)(symbols)))
    assert all(tuple(part.shape) == (None, None) and part.dtype == "int32" for part in model.outputs)
    for part, again in zip(model([numpy(part) for part in spans]), layer(tuple(spans)), strict=True):
        np.testing.assert_array_equal(numpy(part), numpy(again))


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`mask` must be one of"):
        EventSpans("window")
    for make in (lambda: EventSpans(delay=0), lambda: VisibleLength(0)):
        with pytest.raises(ValueError, match="`delay` must be at least 1 second. Received: delay=0"):
            make()
    with pytest.raises(ValueError, match="`session_gap` must be at least `delay`"):
        EventSpans("session", delay=60, session_gap=59)
    with pytest.raises(ValueError, match="`layout` must be one of"):
        TokenSpans("pairs")
