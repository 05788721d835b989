"""Span attention on the active backend, forward and gradient, against the float64 reference; every kernel of the backend.

Tolerance in float32: 1e-5 of the largest reference value (measured: below 2e-6). In bfloat16 and float16 see the test.
"""

from __future__ import annotations

import importlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from keras_ranking.ops import Spans, candidate_attention, span_attention
from keras_ranking.ops.backends import reference
from tests.ops.support import EXACT, check, differentiate, distance, every, masks, numpy_spans, operands, packed_rows

BACKEND = keras.backend.backend()
OF_GPUS = ("pallas", "library", "flex")  # test_gpu_kernels.py
KERNELS = [kernel for kernel in importlib.import_module(f"keras_ranking.ops.backends.{BACKEND}").KERNELS if kernel not in OF_GPUS]

ROWS = 130  # more than one block, and a multiple of no tile


def test_reference_gradient_equals_central_differences(rng):
    """The formula of the gradient against central differences, in float64."""
    q, k, v, upstream = (part.astype("float64") for part in operands(rng, 1, 7, 7, 2, 1, 3))
    spans = numpy_spans(Spans.causal(np.array([[0, 1, 1, 1, 2, 2, 0]], "int32")))
    for place, grad in enumerate(reference.span_attention_gradients(q, k, v, spans, upstream)):
        inputs = [q, k, v]
        for index in [tuple(rng.integers(0, size) for size in inputs[place].shape) for _ in range(12)]:
            values = []
            for step in (1e-6, -1e-6):
                moved = [part.copy() for part in inputs]
                moved[place][index] += step
                values.append((upstream * reference.span_attention(*moved, spans)).sum())
            assert abs((values[0] - values[1]) / 2e-6 - grad[index]) < 1e-8


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mean", [20, 400])
def test_every_mask_with_grouped_heads(rng, kernel, mean):
    """Short segments and rows of one segment; rows that end in the middle of a tile; four query heads on two key heads."""
    for spans in masks(rng, 2, ROWS, mean).values():
        check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


def test_control_wrong_mask_or_scale(rng):
    """Control: the strict mask and another scale are far outside the tolerance."""
    *inputs, _ = operands(rng, 2, ROWS, ROWS, 4, 2, 8)
    found = masks(rng, 2, ROWS, 20)
    out = keras.ops.convert_to_numpy(span_attention(*inputs, found["causal"]))
    assert distance(out, reference.span_attention(*inputs, numpy_spans(found["causal"]))) < EXACT
    assert distance(out, reference.span_attention(*inputs, numpy_spans(found["strict"]))) > 0.1
    assert distance(out, reference.span_attention(*inputs, numpy_spans(found["causal"]), scale=0.3)) > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([3, 30, 200]))
def test_any_spans(kernel, seed, spread):
    """Integers without any order, partly outside the row: overlapping, touching, reversed and empty intervals."""
    rng = np.random.default_rng(seed)
    index = np.arange(ROWS)[None]
    spans = Spans(*((index + rng.integers(-spread, spread + 1, (2, ROWS))).astype("int32") for _ in range(3)))
    check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", [2, 3])
def test_every_mask_with_a_stride(rng, kernel, stride):
    """Every mask; and the output equals that of these tokens if all tokens are queries."""
    tokens = 132 * stride
    for name, spans in masks(rng, 2, tokens, 150).items():
        arrays = operands(rng, 2, 132, tokens, 4, 2, 8)
        check(kernel, arrays, every(spans, stride), stride=stride)
        queries = np.repeat(arrays[0], stride, axis=1)
        whole = reference.span_attention(queries, *arrays[1:3], numpy_spans(spans))
        assert distance(reference.span_attention(*arrays[:3], every(spans, stride), stride=stride), whole[:, ::stride]) < 1e-12, name


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([3, 30, 200]))
def test_any_spans_with_stride_two(kernel, seed, spread):
    rng = np.random.default_rng(seed)
    index = 2 * np.arange(ROWS)[None]
    spans = Spans(*((index + rng.integers(-spread, spread + 1, (2, ROWS))).astype("int32") for _ in range(3)))
    check(kernel, operands(rng, 2, ROWS, 2 * ROWS, 4, 2, 8), spans, stride=2)


def test_control_wrong_stride(rng):
    """Control: own keys at other places are far outside the tolerance; and wrong strides are errors."""
    arrays = operands(rng, 1, 20, 40, 2, 2, 8)
    spans = every(Spans.causal(np.ones((1, 40), "int32")), 2)
    out = keras.ops.convert_to_numpy(span_attention(*arrays[:3], spans, stride=2))
    assert distance(out, reference.span_attention(*arrays[:3], spans, stride=2)) < EXACT
    assert distance(out, reference.span_attention(*arrays[:3], spans)) > 0.1
    with pytest.raises(ValueError, match="there must be 3 keys per query"):
        span_attention(*arrays[:3], spans, stride=3)
    with pytest.raises(ValueError, match="`stride` must be an integer of at least 1"):
        span_attention(*arrays[:3], spans, stride=0)


@pytest.mark.few(2)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 3, 64, 257])
def test_lengths(rng, kernel, tokens):
    segments = np.ones((1, tokens), "int32")
    for spans in (Spans.causal(segments), Spans.bidirectional(segments)):
        check(kernel, operands(rng, 1, tokens, tokens, 2, 2, 4), spans)


@pytest.mark.few(2)
@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 3, 16, 80, 256])
def test_head_sizes(rng, kernel, size):
    check(kernel, operands(rng, 1, 70, 70, 2, 1, size), masks(rng, 1, 70, 30)["delayed"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_batch_of_equal_rows(rng, kernel):
    """Equal rows may be computed together."""
    spans = Spans.causal(np.ones((3, 70), "int32"))
    check(kernel, operands(rng, 3, 70, 70, 2, 1, 8), spans)


@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_after_a_history(rng, kernel):
    lengths, count = np.array([100, 0, 37], "int32"), np.array([20, 30, 0], "int32")
    check(kernel, operands(rng, 3, 130, 130, 2, 2, 8), Spans.candidates(lengths, 100, 30, candidate_count=count))


@pytest.mark.parametrize("kernel", KERNELS)
def test_cross_form(rng, kernel):
    """Fewer and more queries than keys."""
    lengths = np.array([50, 0, 7], "int32")
    check(kernel, operands(rng, 3, 9, 50, 2, 1, 8), Spans.history_only(lengths, 9))
    check(kernel, operands(rng, 3, 70, 50, 2, 1, 8), Spans.history_only(lengths, 70))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_many_short_rows(rng, kernel, heads):
    """Rows of several lengths, one of them empty, and with a stride."""
    segments = (np.arange(11) < rng.integers(0, 12, (40, 1))).astype("int32")
    segments[3] = 0
    for spans in (Spans.causal(segments), Spans.bidirectional(segments)):
        check(kernel, operands(rng, 40, 11, 11, *heads, 8), spans)
    spans = masks(rng, 40, 22, 5)["delayed"]
    check(kernel, operands(rng, 40, 11, 22, *heads, 8), every(spans, 2), stride=2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_visible_anywhere(rng, kernel):
    spans = Spans.causal(np.zeros((2, ROWS), "int32"))
    check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_given_scale(rng, kernel):
    check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), masks(rng, 2, ROWS, 20)["causal"], scale=0.7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores_do_not_overflow(rng, kernel):
    """Logits of some thousands: a softmax without subtraction of the maximum would be infinite."""
    q, k, v, _ = operands(rng, 2, ROWS, ROWS, 4, 2, 8)
    spans = masks(rng, 2, ROWS, 20)["causal"]
    out = keras.ops.convert_to_numpy(span_attention(200 * q, 20 * k, v, spans, kernel=kernel))
    # The rounding error of logits near 1e4 is 1e-3.
    assert distance(out, reference.span_attention(200 * q, 20 * k, v, numpy_spans(spans))) < 5e-3


@pytest.mark.few(2)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_unseen_keys_may_have_any_value(rng, kernel, poison):
    """NaN or infinity in padding: same output and gradients to the bit. Control: in a visible key they have an effect."""
    segments = packed_rows(rng, 2, ROWS, 20)[0]
    spans = Spans.delayed(np.zeros_like(segments), 1, segments)
    arrays = operands(rng, 2, ROWS, ROWS, 4, 2, 8)

    def run(parts):
        *inputs, upstream = parts
        return differentiate(lambda q, k, v: span_attention(q, k, v, spans, kernel=kernel), inputs, upstream)

    clean, grads = run(arrays)
    padding = segments == 0
    assert padding.any() and not padding.all()
    dirty = [np.where(padding[:, :, None, None], np.float32(poison), part) for part in arrays]
    out, dirty_grads = run(dirty)
    np.testing.assert_array_equal(out, clean)
    for one, other in zip(dirty_grads, grads, strict=True):
        np.testing.assert_array_equal(one, other)
    seen = tuple(np.argwhere(~padding)[0])
    arrays[2][seen] = poison
    assert not np.isfinite(run(arrays)[0][seen]).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_deterministic(rng, kernel):
    arrays = operands(rng, 2, ROWS, ROWS, 4, 2, 8)
    spans = masks(rng, 2, ROWS, 20)["delayed"]
    *inputs, upstream = arrays
    (one, one_grads), (two, two_grads) = (
        differentiate(lambda q, k, v: span_attention(q, k, v, spans, kernel=kernel), inputs, upstream) for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)
    for a, b in zip(one_grads, two_grads, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision(rng, kernel, dtype, bound):
    """Against the reference on the rounded inputs. Stated bound: 2e-2 in bfloat16 (8 bits), 3e-3 in float16 (11 bits)."""
    *inputs, _ = operands(rng, 2, ROWS, ROWS, 4, 2, 8)
    spans = masks(rng, 2, ROWS, 20)["delayed"]
    rounded = [keras.ops.cast(part, dtype) for part in inputs]
    exact = [keras.ops.convert_to_numpy(keras.ops.cast(part, "float32")) for part in rounded]
    out = span_attention(*rounded, spans, kernel=kernel)
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    wanted = reference.span_attention(*exact, numpy_spans(spans))
    assert distance(keras.ops.convert_to_numpy(keras.ops.cast(out, "float32")), wanted) < bound


@pytest.mark.parametrize("kernel", KERNELS)
def test_logits_beyond_the_largest_float16(rng, kernel):
    """q . k of 1e5 and more, where float16 ends at 65,504: the softmax is that of the rounded inputs, in both functions."""
    q, k, v = (rng.normal(size=(1, 9, 2, 8)).astype("float16") for _ in range(3))
    q, k = np.float16(150) * q, np.float16(150) * k
    assert np.abs(np.einsum("bqhd,bkhd->bhqk", *(x.astype("float64") for x in (q, k)))).max() > 1e5
    spans = Spans.causal(np.ones((1, 9), "int32"))
    exact = [x.astype("float64") for x in (q, k, v)]
    wanted = reference.span_attention(*exact, numpy_spans(spans))
    out, grads = differentiate(lambda *x: span_attention(*x, spans, kernel=kernel), [q, k, v], np.ones_like(q))
    np.testing.assert_allclose(np.asarray(out, "float64"), wanted, atol=4e-3)
    assert all(np.isfinite(np.asarray(grad, "float64")).all() for grad in grads)
    own = [np.float16(100) * rng.normal(size=(1, 4, 2, 8)).astype("float16") for _ in range(3)]
    got = keras.ops.convert_to_numpy(candidate_attention(own[0], k, v, np.array([9], "int32"), own[1], own[2]))
    keys = np.concatenate([np.repeat(exact[1][:, None], 4, 1), own[1].astype("float64")[:, :, None]], axis=2)
    values = np.concatenate([np.repeat(exact[2][:, None], 4, 1), own[2].astype("float64")[:, :, None]], axis=2)
    logits = np.einsum("bnhd,bnlhd->bnhl", own[0].astype("float64"), keys) / 8**0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    want = np.einsum("bnhl,bnlhd->bnhd", weights / weights.sum(axis=-1, keepdims=True), values)
    np.testing.assert_allclose(np.asarray(got, "float64"), want, rtol=4e-3, atol=4e-3)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 5, 2)}, "`query` must have shape"),
        ({"value": (2, 5, 2, 5)}, "`key` and `value` must have the same shape"),
        ({"query": (2, 5, 3, 4)}, "must be a multiple of the heads"),
        ({"query": (2, 5, 2, 8)}, "must agree in batch and head size"),
        ({"query": (2, 6, 2, 4)}, "must have shape \\(B, T\\) of `query`"),
        ({"query": (2, 5, 2, 257), "key": (2, 5, 2, 257), "value": (2, 5, 2, 257)}, "The head size must be 1 to 256"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    shapes = {"query": (2, 5, 2, 4), "key": (2, 5, 2, 4), "value": (2, 5, 2, 4)} | change
    spans = Spans.causal(np.ones((2, 5), "int32"))
    with pytest.raises(ValueError, match=message):
        span_attention(*(np.zeros(shape, "float32") for shape in shapes.values()), spans)
    with pytest.raises(ValueError, match=message):
        span_attention(*(keras.KerasTensor(shape) for shape in shapes.values()), spans)


@pytest.mark.quickest
def test_arguments_that_do_not_fit():
    q = np.zeros((1, 3, 2, 4), "float32")
    spans = Spans.causal(np.ones((1, 3), "int32"))
    with pytest.raises(ValueError, match="must have one floating-point dtype"):
        span_attention(q, q.astype("float16"), q, spans)
    with pytest.raises(ValueError, match="`spans.start` must be int32"):
        span_attention(q, q, q, Spans(*(keras.ops.cast(part, "float32") for part in spans)))
    with pytest.raises(ValueError, match="`scale` must be a positive finite number"):
        span_attention(q, q, q, spans, scale=0.0)
    with pytest.raises(ValueError, match="`kernel` must be 'auto' or one of"):
        span_attention(q, q, q, spans, kernel="cuda")
