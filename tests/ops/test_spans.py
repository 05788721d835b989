"""Every constructor of Spans against a mask written pair by pair in plain Python."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from keras_ranking.ops import Spans
from tests.ops.support import packed_rows

BACKEND = keras.backend.backend()


def runs(*ids):
    """Run number of each token: neighbours with equal ids have the same number."""
    out = np.zeros(len(ids[0]), int)
    for i in range(1, len(out)):
        out[i] = out[i - 1] + any(values[i] != values[i - 1] for values in ids)
    return out


def brute(segments, rule):
    """Mask (B, T, T) of pairs of one segment's run for which rule(row, i, j, run) holds."""
    batch, tokens = segments.shape
    mask = np.zeros((batch, tokens, tokens), bool)
    for row in range(batch):
        member = runs(segments[row])
        for i in range(tokens):
            for j in range(tokens):
                if segments[row, i] and member[i] == member[j]:
                    mask[row, i, j] = rule(row, i, j)
    return mask


def dense(spans, keys):
    return keras.ops.convert_to_numpy(Spans(*spans).dense(keys))


def own_delays(times):
    return times * 7 % 12 - 2  # a value below 1 counts as 1


def cases(segments, times, sessions, events):
    """(name, spans, expected mask) for every constructor of training rows."""
    event = [runs(segments[row], events[row]) for row in range(len(segments))]
    session = [runs(segments[row], sessions[row]) for row in range(len(segments))]

    drawn = own_delays(times)

    def own(row, i, j):
        return event[row][i] == event[row][j] and j <= i

    return [
        ("causal", Spans.causal(segments), brute(segments, lambda row, i, j: j <= i)),
        ("causal without own", Spans.causal(segments, own=False), brute(segments, lambda row, i, j: j < i)),
        ("window", Spans.window(3, segments), brute(segments, lambda row, i, j: i - 3 <= j <= i)),
        ("window without own", Spans.window(1, segments, own=False), brute(segments, lambda row, i, j: j == i - 1)),
        ("delayed", Spans.delayed(times, 5, segments), brute(segments, lambda row, i, j: j == i or times[row, j] <= times[row, i] - 5)),
        (
            "delayed, one delay per token",
            Spans.delayed(times, drawn, segments),
            brute(segments, lambda row, i, j: j == i or times[row, j] <= times[row, i] - max(drawn[row, i], 1)),
        ),
        (
            "delayed events",
            Spans.delayed(times, 1, segments, events),
            brute(segments, lambda row, i, j: own(row, i, j) or times[row, j] <= times[row, i] - 1),
        ),
        (
            "delayed without own",
            Spans.delayed(times, 2, segments, own=False),
            brute(segments, lambda row, i, j: times[row, j] <= times[row, i] - 2),
        ),
        (
            "sessions",
            Spans.sessions(sessions, segments),
            brute(segments, lambda row, i, j: j == i or (j < i and session[row][j] != session[row][i])),
        ),
        (
            "sessions events",
            Spans.sessions(sessions, segments, events),
            brute(segments, lambda row, i, j: own(row, i, j) or (j < i and session[row][j] != session[row][i])),
        ),
        ("setwise", Spans.setwise(sessions, segments), brute(segments, lambda row, i, j: session[row][j] == session[row][i])),
        (
            "setwise history",
            Spans.setwise(sessions, segments, history=True),
            brute(segments, lambda row, i, j: session[row][j] <= session[row][i]),
        ),
        ("bidirectional", Spans.bidirectional(segments), brute(segments, lambda row, i, j: True)),
    ]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 7, 16]), st.integers(1, 9))
def test_training_masks_equal_their_rules(seed, tokens, mean):
    rows = packed_rows(np.random.default_rng(seed), 2, tokens, mean)
    for name, spans, expected in cases(*rows):
        np.testing.assert_array_equal(dense(spans, tokens), expected, err_msg=name)


def test_control_wrong_rule(rng):
    """Control: strict and non-strict delay differ on these rows, so the comparison above can fail."""
    segments, times, _, _ = packed_rows(rng, 2, 16, 9)
    strict = brute(segments, lambda row, i, j: j == i or times[row, j] < times[row, i] - 5)
    assert (dense(Spans.delayed(times, 5, segments), 16) != strict).any()


def test_equal_times_do_not_see_each_other_under_the_shortest_delay():
    segments, times = np.ones((1, 4), "int32"), np.array([[5, 5, 5, 6]], "int32")
    np.testing.assert_array_equal(dense(Spans.delayed(times, 1, segments), 4)[0], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]])


def test_times_inside_padding_do_not_matter():
    segments = np.array([[0, 1, 1, 0, 2, 2, 0]], "int32")
    times = np.array([[0, 3, 9, 0, 4, 8, 0]], "int32")
    wild = np.where(segments == 0, 2**31 - 1, times).astype("int32")
    for one, other in zip(Spans.delayed(times, 2, segments), Spans.delayed(wild, 2, segments), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


@pytest.mark.parametrize("count", [None, [2, 0, 3]])
def test_candidates_see_the_history_and_themselves(count):
    lengths, slots, offered = np.array([4, 0, 2], "int32"), 4, 3
    spans = Spans.candidates(lengths, slots, offered, candidate_count=None if count is None else np.array(count, "int32"))
    expected = np.zeros((3, 7, 7), bool)
    for row, length in enumerate(lengths):
        for i in range(length):
            expected[row, i, : i + 1] = True
        for n in range(offered if count is None else count[row]):
            expected[row, slots + n, :length] = expected[row, slots + n, slots + n] = True
    np.testing.assert_array_equal(dense(spans, 7), expected)
    tail = Spans.history_only(lengths, offered, candidate_count=None if count is None else np.array(count, "int32"))
    np.testing.assert_array_equal(dense(tail, 4), expected[:, slots:, :slots])


def test_candidates_take_the_history_spans_and_the_visible_part_that_are_given():
    lengths = np.array([3, 2], "int32")
    history = Spans.bidirectional(np.array([[1, 1, 1], [1, 1, 1]], "int32"))
    spans = Spans.candidates(lengths, 3, 1, history=history, visible=np.array([2, 5], "int32"))
    expected = np.zeros((2, 4, 4), bool)
    expected[0, :3, :3] = expected[1, :2, :2] = True
    expected[0, 3, [0, 1, 3]] = expected[1, 3, [0, 1, 3]] = True
    np.testing.assert_array_equal(dense(spans, 4), expected)


def test_interleaving_gives_each_event_an_item_and_an_action_token(rng):
    segments, times, _, _ = packed_rows(rng, 3, 11, 6)
    for own in (True, False):
        events = dense(Spans.delayed(times, 4, segments, own=own), 11)
        spans = Spans.delayed(times, 4, segments, own=own).interleave()
        expected = np.zeros((3, 22, 22), bool)
        for row, i, j in np.argwhere(events):
            if i != j:
                expected[row, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = True
        for row, i in np.argwhere(events.any(2)):
            expected[row, 2 * i, 2 * i] = True
            expected[row, 2 * i + 1, 2 * i : 2 * i + 2] = True
        np.testing.assert_array_equal(dense(spans, 22), expected)


def test_all_padding_sees_nothing():
    for part in (Spans.causal, Spans.bidirectional, lambda segments: Spans.window(2, segments)):
        assert not dense(part(np.zeros((2, 5), "int32")), 5).any()


@pytest.mark.quickest
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_delay_and_window_must_be_at_least_one(wrong):
    segments = np.ones((1, 3), "int32")
    with pytest.raises(ValueError, match="`delay` must be an integer of at least 1"):
        Spans.delayed(segments, wrong, segments)
    with pytest.raises(ValueError, match="`window` must be an integer of at least 1"):
        Spans.window(wrong, segments)


@pytest.mark.quickest
def test_ids_must_be_rows():
    with pytest.raises(ValueError, match="`segments` must have shape"):
        Spans.causal(np.ones(3, "int32"))


def test_memory_does_not_grow_with_the_square_of_the_length(rng):
    """A row of 20,000 tokens: a T x T mask would be 400 MB."""
    segments = np.sort(rng.integers(1, 200, (1, 20000))).astype("int32")
    times = np.arange(20000, dtype="int32")[None]
    start, end, own = (keras.ops.convert_to_numpy(part) for part in Spans.delayed(times, 7, segments))
    first = np.searchsorted(segments[0], segments[0])
    np.testing.assert_array_equal(start[0], first)
    np.testing.assert_array_equal(end[0], np.maximum(first, times[0] - 6))
    np.testing.assert_array_equal(own[0], times[0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graph mode with unknown B and T is TensorFlow's")
def test_unknown_shapes_in_a_graph(rng):
    import tensorflow as tf

    part = tf.TensorSpec([None, None], tf.int32)

    @tf.function(input_signature=[part] * 4)
    def masks(segments, times, sessions, events):
        return [spans.dense(tf.shape(segments)[1]) for _, spans, _ in static_cases(segments, times, sessions, events)]

    for tokens in (1, 9):
        rows = packed_rows(rng, 2, tokens, 5)
        for mask, (name, _, expected) in zip(masks(*rows), cases(*rows), strict=True):
            np.testing.assert_array_equal(mask.numpy(), expected, err_msg=name)


def static_cases(segments, times, sessions, events):
    """The spans of `cases` without their masks."""
    built = [
        Spans.causal(segments),
        Spans.causal(segments, own=False),
        Spans.window(3, segments),
        Spans.window(1, segments, own=False),
        Spans.delayed(times, 5, segments),
        Spans.delayed(times, own_delays(times), segments),
        Spans.delayed(times, 1, segments, events),
        Spans.delayed(times, 2, segments, own=False),
        Spans.sessions(sessions, segments),
        Spans.sessions(sessions, segments, events),
        Spans.setwise(sessions, segments),
        Spans.setwise(sessions, segments, history=True),
        Spans.bidirectional(segments),
    ]
    return [(None, spans, None) for spans in built]


@pytest.mark.skipif(BACKEND != "jax", reason="jit is JAX's")
def test_under_jit(rng):
    import jax

    rows = packed_rows(rng, 2, 9, 5)
    masks = jax.jit(lambda *ids: [spans.dense(9) for _, spans, _ in static_cases(*ids)])(*rows)
    for mask, (name, _, expected) in zip(masks, cases(*rows), strict=True):
        np.testing.assert_array_equal(np.asarray(mask), expected, err_msg=name)


@pytest.mark.skipif(BACKEND != "jax", reason="only relevant with the fusion of XLA")
def test_each_search_runs_once_under_jit():
    """A search is a loop: if it were unrolled, every operation that uses it would repeat all its gathers for every element."""
    import jax

    def gathers(tokens):
        def angles(segments, times):
            spans = Spans.delayed(times, 5, segments)
            return keras.ops.cos((spans.end - spans.start)[..., None] * np.arange(8.0))

        rows = jax.ShapeDtypeStruct((2, tokens), "int32")
        return jax.jit(angles).lower(rows, rows).compile().as_text().count(" gather(")

    assert gathers(2048) == gathers(64) <= 3  # the two ends of a run, and the horizon

    def unrolled(tokens):  # control
        def angles(times, place):
            for _ in range(tokens.bit_length()):
                place = keras.ops.take_along_axis(times, place, axis=1)
            return keras.ops.cos(place[..., None] * np.arange(8.0))

        rows = jax.ShapeDtypeStruct((2, tokens), "int32")
        return jax.jit(angles).lower(rows, rows).compile().as_text().count(" gather(")

    assert unrolled(2048) > unrolled(64) > 3


@pytest.mark.skipif(BACKEND != "torch", reason="the meta device is torch's")
def test_on_the_meta_device(rng):
    import torch

    with keras.device("meta"):
        rows = [torch.empty((2, 9), dtype=torch.int32, device="meta") for _ in range(4)]
        for _, spans, _ in static_cases(*rows):
            assert all(part.device.type == "meta" and part.shape == (2, 9) and part.dtype == torch.int32 for part in spans)


def test_spans_pass_through_a_functional_model(rng):
    """A NamedTuple is a tree to Keras: layers may return it and take it."""

    class Make(keras.layers.Layer):
        def call(self, segments):
            return Spans.causal(segments)

        def compute_output_spec(self, segments):
            return Spans(*(keras.KerasTensor(segments.shape, "int32") for _ in range(3)))

    segments = keras.Input((None,), dtype="int32")
    spans = Make()(segments)
    assert isinstance(spans, Spans)
    model = keras.Model(segments, [spans.start, spans.end, spans.own])
    rows = packed_rows(rng, 2, 9, 5)[0]
    for got, expected in zip(model(rows), Spans.causal(rows), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(got), keras.ops.convert_to_numpy(expected))


def test_spans_of_a_symbolic_row() -> None:
    segments = np.array([[1, 1, 2, 0]], "int32")
    inputs = keras.Input((4,), dtype="int32")
    symbolic = keras.Model(inputs, tuple(Spans.causal(inputs)))
    for found, wanted in zip(symbolic(segments), Spans.causal(segments), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(wanted))
