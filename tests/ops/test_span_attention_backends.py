"""Span attention: what only one backend has. TensorFlow: oneDNN, exports, second derivatives; torch: meta device, inference mode, plan."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_ranking.ops import Spans, span_attention
from keras_ranking.ops.backends import reference
from tests.ops.support import EXACT, check, distance, every, masks, numpy_spans, operands

BACKEND = keras.backend.backend()
ROWS = 130  # more than one block, and a multiple of no tile


@pytest.mark.skipif(BACKEND != "tensorflow", reason="oneDNN is an option of TensorFlow")
@pytest.mark.parametrize("switched_on", [True, False])
def test_every_mask_with_and_without_onednn(rng, monkeypatch, switched_on):
    """Both forms, whichever this CPU would choose; also float16 with a scale that is not a power of two."""
    from keras_ranking.ops.backends import tensorflow_loop as kernels

    monkeypatch.setattr(kernels, "_onednn", lambda: switched_on)
    for spans in masks(rng, 2, ROWS, 50).values():
        check("loop", operands(rng, 2, ROWS, ROWS, 4, 2, 8), spans)
    check("loop", operands(rng, 2, ROWS, 2 * ROWS, 4, 2, 8), every(masks(rng, 2, 2 * ROWS, 150)["delayed"], 2), stride=2)
    check("loop", [part.astype("float16") for part in operands(rng, 2, ROWS, ROWS, 4, 2, 8)], spans, bound=1e-2)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="custom gradients of JAX and torch are of the first order")
def test_a_second_derivative(rng):
    """The gradient uses the softmax's sum of the forward pass, through which the derivative must go; against a dense softmax."""
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
    """The gradient uses dP - rowsum(dP P), which cancels if values have a common part; it must not use rounded outputs."""
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
    assert len(set(counts)) == 1  # no new trace for any shape


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
def test_a_plan_is_kept_until_its_spans_change(rng):
    from keras_ranking.ops.backends import torch as kernels

    q, k, v, _ = operands(rng, 1, 9, 9, 2, 2, 4)
    spans = Spans.causal(np.ones((1, 9), "int32"))
    first = kernels._plan(spans, 9)
    assert kernels._plan(spans, 9) is first
    spans.end.zero_()  # changed in place: the old plan would give the causal output
    assert kernels._plan(spans, 9) is not first
    out = keras.ops.convert_to_numpy(span_attention(q, k, v, spans))
    assert distance(out, v) < EXACT  # each token sees only itself
