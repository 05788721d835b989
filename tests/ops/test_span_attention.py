"""Span attention on the active backend, forward and gradient, against the float64 reference; every kernel of the backend.

Tolerance in float32: 1e-5 of the largest reference value (measured: below 2e-6). In bfloat16 and float16 see the test.
"""

from __future__ import annotations

import importlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from keras_ranking.ops import Spans, span_attention
from keras_ranking.ops.backends import reference
from tests.ops.support import differentiate, distance, packed_rows

BACKEND = keras.backend.backend()
OF_GPUS = ("pallas", "library", "flex")  # test_gpu_kernels.py
KERNELS = [kernel for kernel in importlib.import_module(f"keras_ranking.ops.backends.{BACKEND}").KERNELS if kernel not in OF_GPUS]
EXACT = 1e-5

ROWS = 130  # more than one block, and a multiple of no tile


def numpy_spans(spans):
    return Spans(*(keras.ops.convert_to_numpy(part) for part in spans))


def operands(rng, batch, queries, keys, heads, kv_heads, size):
    shapes = [(batch, queries, heads, size), (batch, keys, kv_heads, size), (batch, keys, kv_heads, size), (batch, queries, heads, size)]
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


def every(spans, stride):
    """The spans of every `stride`-th token."""
    return Spans(*(part[:, ::stride] for part in numpy_spans(spans)))


def check(kernel, arrays, spans, scale=None, bound=EXACT, stride=1):
    """Output and the three gradients against the reference."""
    *inputs, upstream = arrays
    spans = numpy_spans(spans)
    out, grads = differentiate(lambda q, k, v: span_attention(q, k, v, spans, scale=scale, kernel=kernel, stride=stride), inputs, upstream)
    expected = reference.span_attention(*inputs, spans, scale, stride)
    assert distance(out, expected) < bound
    for got, wanted in zip(grads, reference.span_attention_gradients(*inputs, spans, upstream, scale, stride), strict=True):
        assert distance(got, wanted) < bound
    unseen = ~reference.visible(*spans, num_keys=inputs[1].shape[1], stride=stride).any(2)
    assert not out[unseen].any() and not grads[0][unseen].any()


def test_the_reference_gradient_is_the_slope_of_the_reference(rng):
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


def masks(rng, batch, tokens, mean):
    segments, times, sessions, events = packed_rows(rng, batch, tokens, mean)
    return {
        "causal": Spans.causal(segments),
        "strict": Spans.causal(segments, own=False),
        "window": Spans.window(5, segments),
        "delayed": Spans.delayed(times, 7, segments, events),
        "sessions": Spans.sessions(sessions, segments),
        "setwise": Spans.setwise(sessions, segments),
        "setwise history": Spans.setwise(sessions, segments, history=True),
        "bidirectional": Spans.bidirectional(segments),
    }


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mean", [20, 400])
def test_every_mask_with_grouped_heads(rng, kernel, mean):
    """Short segments and rows of one segment; rows that end in the middle of a tile; four query heads on two key heads."""
    for spans in masks(rng, 2, ROWS, mean).values():
        check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


def test_a_wrong_mask_or_scale_is_noticed(rng):
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
def test_only_every_few_tokens_ask(rng, kernel, stride):
    """Every mask; and what comes out is what these tokens get where all ask."""
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
def test_any_spans_where_every_second_token_asks(kernel, seed, spread):
    rng = np.random.default_rng(seed)
    index = 2 * np.arange(ROWS)[None]
    spans = Spans(*((index + rng.integers(-spread, spread + 1, (2, ROWS))).astype("int32") for _ in range(3)))
    check(kernel, operands(rng, 2, ROWS, 2 * ROWS, 4, 2, 8), spans, stride=2)


def test_a_stride_is_noticed(rng):
    """Control: own keys at other places are far outside the tolerance; and what does not fit is refused."""
    arrays = operands(rng, 1, 20, 40, 2, 2, 8)
    spans = every(Spans.causal(np.ones((1, 40), "int32")), 2)
    out = keras.ops.convert_to_numpy(span_attention(*arrays[:3], spans, stride=2))
    assert distance(out, reference.span_attention(*arrays[:3], spans, stride=2)) < EXACT
    assert distance(out, reference.span_attention(*arrays[:3], spans)) > 0.1
    with pytest.raises(ValueError, match="there must be 3 keys a query"):
        span_attention(*arrays[:3], spans, stride=3)
    with pytest.raises(ValueError, match="`stride` must be an integer of at least 1"):
        span_attention(*arrays[:3], spans, stride=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="oneDNN is a switch of TensorFlow's")
@pytest.mark.parametrize("switched_on", [True, False])
def test_every_mask_in_the_form_for_onednn_and_in_the_other(rng, monkeypatch, switched_on):
    """Whatever this CPU would choose, both forms are right; a float16 of a scale that is no power of two too."""
    from keras_ranking.ops.backends import tensorflow_loop as kernels

    monkeypatch.setattr(kernels, "_onednn", lambda: switched_on)
    for spans in masks(rng, 2, ROWS, 50).values():
        check("loop", operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)
    check("loop", operands(rng, 2, ROWS, 2 * ROWS, 4, 2, 8), every(masks(rng, 2, 2 * ROWS, 150)["delayed"], 2), stride=2)
    check("loop", [part.astype("float16") for part in operands(rng, 2, ROWS, ROWS, 4, 2, 8)], spans, bound=1e-2)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="custom gradients of JAX and torch are of the first order")
def test_a_second_derivative(rng):
    """The gradient uses the softmax's sum of the forward pass: it must be followed there, against a dense softmax."""
    import tensorflow as tf

    q, k, v, _ = (tf.constant(part) for part in operands(rng, 1, 40, 40, 2, 2, 4))
    spans = Spans.causal(np.ones((1, 40), "int32"))
    mask = tf.constant(reference.visible(*numpy_spans(spans), num_keys=40))[:, None]

    def dense(q):
        scores = tf.where(mask, tf.einsum("bthd,bshd->bhts", q, k) * 0.5, -1e30)
        return tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), v)

    found, forward = [], []
    for attend in (lambda q: span_attention(q, k, v, spans, kernel="loop"), dense):
        with tf.autodiff.ForwardAccumulator(q, k) as accumulator:
            value = attend(q)
        forward.append(accumulator.jvp(value).numpy())
        with tf.GradientTape() as outer:
            outer.watch(q)
            with tf.GradientTape() as inner:
                inner.watch(q)
                value = tf.reduce_sum(attend(q) ** 2)
            slope = tf.reduce_sum(inner.gradient(value, q) ** 2)
        found.append(outer.gradient(slope, q).numpy())
    assert distance(*found) < EXACT and distance(*forward) < EXACT


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's loop")
def test_half_precision_with_values_far_from_zero(rng):
    """The gradient takes dP - rowsum(dP P), which cancels where values share a part: not of outputs that are rounded already."""
    import tensorflow as tf

    arrays = operands(rng, 1, 150, 150, 2, 2, 32)
    arrays[2] += 10
    rounded = [tf.cast(part, "bfloat16") for part in arrays]
    exact = [tf.cast(part, "float32").numpy() for part in rounded]
    spans = numpy_spans(Spans.causal(np.ones((1, 150), "int32")))
    *inputs, upstream = rounded
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = tf.reduce_sum(tf.cast(span_attention(*inputs, spans) * upstream, "float32"))
    for got, wanted in zip(tape.gradient(value, inputs), reference.span_attention_gradients(*exact[:3], spans, exact[3]), strict=True):
        assert distance(tf.cast(got, "float32").numpy(), wanted) < 0.06


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 3, 64, 257])
def test_lengths(rng, kernel, tokens):
    segments = np.ones((1, tokens), "int32")
    for spans in (Spans.causal(segments), Spans.bidirectional(segments)):
        check(kernel, operands(rng, 1, tokens, tokens, 2, 2, 4), spans)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 3, 16, 80, 256])
def test_head_sizes(rng, kernel, size):
    check(kernel, operands(rng, 1, 70, 70, 2, 1, size), masks(rng, 1, 70, 30)["delayed"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_batch_of_equal_rows(rng, kernel):
    """Rows that are alike may be computed together."""
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
def test_nothing_visible_anywhere(rng, kernel):
    spans = Spans.causal(np.zeros((2, ROWS), "int32"))
    check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_given_scale(rng, kernel):
    check(kernel, operands(rng, 2, ROWS, ROWS, 4, 2, 8), masks(rng, 2, ROWS, 20)["causal"], scale=0.7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores_do_not_overflow(rng, kernel):
    """Logits of some thousands: a softmax without its maximum taken out would be infinite."""
    q, k, v, _ = operands(rng, 2, ROWS, ROWS, 4, 2, 8)
    spans = masks(rng, 2, ROWS, 20)["causal"]
    out = keras.ops.convert_to_numpy(span_attention(200 * q, 20 * k, v, spans, kernel=kernel))
    # Rounding of logits near 1e4 is 1e-3: one in a thousand is what float32 can promise here.
    assert distance(out, reference.span_attention(200 * q, 20 * k, v, numpy_spans(spans))) < 5e-3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_nobody_sees_may_be_anything(rng, kernel, poison):
    """Poison in padding: same output and same gradients to the bit. Control: poison in a visible key is noticed."""
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
def test_twice_the_same(rng, kernel):
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


# -- how it is used ------------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_span_attention")
class Causal(keras.layers.Layer):
    """Spans of its segments."""

    def call(self, segments):
        return Spans.causal(segments)

    def compute_output_spec(self, segments):
        return Spans(*(keras.KerasTensor(segments.shape, "int32") for _ in range(3)))


def small_model():
    x, segments = keras.Input((None, 8)), keras.Input((None,), dtype="int32")
    heads = keras.layers.Reshape((-1, 2, 4))(keras.layers.Dense(8)(x))
    out = span_attention(heads, heads, heads, Causal()(segments))
    return keras.Model([x, segments], keras.layers.Dense(1)(keras.layers.Reshape((-1, 8))(out)))


def test_functional_model_saves_and_loads(rng, tmp_path):
    model = small_model()
    inputs = [rng.standard_normal((2, 9, 8)).astype("float32"), packed_rows(rng, 2, 9, 5)[0]]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(each(inputs)) for each in (model, loaded)))


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_trains_compiled_and_not_with_equal_losses(rng, jit):
    """Batches of a PyDataset, whose batch size TensorFlow does not know when it traces."""
    if BACKEND == "torch" and jit:
        pytest.skip("compiled training is TensorFlow's and JAX's")

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            rng = np.random.default_rng(number)
            return (rng.standard_normal((2, 70, 8)).astype("float32"), packed_rows(rng, 2, 70, 30)[0]), rng.standard_normal((2, 70, 1))

    losses = []
    for compiled in (jit, False):
        keras.utils.set_random_seed(3)
        model = small_model()
        model.compile("sgd", "mse", jit_compile=compiled)
        losses.append(model.fit(Batches(), epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][0] != losses[0][1]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs with unknown shapes and SavedModels are TensorFlow's")
def test_unknown_shapes_export_and_reload(rng, tmp_path):
    """One trace for every B and T, exported, reloaded, equal to the reference; gradients inside such a graph too."""
    import tensorflow as tf

    traces = []
    tensor, part = tf.TensorSpec([None, None, 4, 8]), tf.TensorSpec([None, None], tf.int32)

    class Module(tf.Module):
        @tf.function(input_signature=[tensor] * 3 + [part] * 3)
        def attend(self, q, k, v, start, end, own):
            traces.append(1)
            return span_attention(q, k, v, Spans(start, end, own))

        @tf.function(input_signature=[tensor] * 3 + [part] * 3)
        def slope(self, q, k, v, start, end, own):
            with tf.GradientTape() as tape:
                tape.watch([q, k, v])
                out = tf.reduce_sum(span_attention(q, k, v, Spans(start, end, own)) ** 2)
            return tape.gradient(out, [q, k, v])

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    counts = []
    for batch, tokens in ((1, 1), (2, 9), (3, 150), (0, 4), (2, 0)):
        q, k, v, _ = operands(rng, batch, tokens, tokens, 4, 4, 8)
        spans = Spans(*(rng.integers(0, tokens + 1, (batch, tokens)).astype("int32") for _ in range(3)))
        expected = reference.span_attention(q, k, v, spans)
        for each in (module, loaded):
            assert distance(each.attend(q, k, v, *spans).numpy(), expected) < EXACT
            grads = each.slope(q, k, v, *spans)
            for got, wanted in zip(grads, reference.span_attention_gradients(q, k, v, spans, 2 * expected), strict=True):
                assert distance(got.numpy(), wanted) < EXACT
        counts.append(len(traces))
    assert len(set(counts)) == 1  # no shape was traced anew


@pytest.mark.skipif(BACKEND != "torch", reason="the meta device is torch's")
def test_on_the_meta_device():
    import torch

    q = torch.empty((2, 5, 2, 4), device="meta")
    spans = Spans(*(torch.empty((2, 5), dtype=torch.int32, device="meta") for _ in range(3)))
    assert span_attention(q, q, q, spans).shape == (2, 5, 2, 4)


@pytest.mark.skipif(BACKEND != "torch", reason="inference mode is torch's")
def test_in_inference_mode(rng):
    import torch

    q, k, v, _ = operands(rng, 1, 9, 9, 2, 2, 4)
    expected = keras.ops.convert_to_numpy(span_attention(q, k, v, Spans.causal(np.ones((1, 9), "int32"))))
    with torch.inference_mode():
        spans = Spans.causal(np.ones((1, 9), "int32"))
        assert distance(keras.ops.convert_to_numpy(span_attention(q, k, v, spans)), expected) < EXACT
        spans.end.zero_()  # changed in place, which inference tensors do not count
        assert distance(keras.ops.convert_to_numpy(span_attention(q, k, v, spans)), v) < EXACT


@pytest.mark.skipif(BACKEND != "torch", reason="the plan of tiles is torch's")
def test_a_plan_is_kept_while_its_spans_live_and_dropped_when_they_change(rng):
    from keras_ranking.ops.backends import torch as kernels

    q, k, v, _ = operands(rng, 1, 9, 9, 2, 2, 4)
    spans = Spans.causal(np.ones((1, 9), "int32"))
    first = kernels._plan(spans, 9)
    assert kernels._plan(spans, 9) is first
    spans.end.zero_()  # changed in place: the old plan would give the causal output
    assert kernels._plan(spans, 9) is not first
    out = keras.ops.convert_to_numpy(span_attention(q, k, v, spans))
    assert distance(out, v) < EXACT  # each token sees itself alone


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
