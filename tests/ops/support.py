"""Shared by the tests of ops: rows of packed members, masks, gradients on the active backend, comparison with the reference."""

from __future__ import annotations

import keras
import numpy as np

from keras_ranking.ops import Spans, span_attention
from keras_ranking.ops.backends import reference

EXACT = 1e-5
"""Bound in float32, relative to the largest reference value (measured: below 2e-6)."""


def packed_rows(rng, batch, tokens, mean):
    """Segments with padding left of, between and right of them; with times, sessions and events. All int32 (batch, tokens)."""
    segments, times, sessions, events = (np.zeros((batch, tokens), "int32") for _ in range(4))
    times[:] = rng.integers(0, 1000, times.shape)  # values of padding must not matter
    for row in range(batch):
        at, number = int(rng.integers(0, 3)), 1
        while at < tokens:
            length = min(tokens - at, int(rng.integers(1, 2 * mean)))
            part = slice(at, at + length)
            segments[row, part] = number
            times[row, part] = np.sort(rng.integers(0, 40, length))
            sessions[row, part] = np.sort(rng.integers(0, max(1, length // 4) + 1, length))
            events[row, part] = np.sort(rng.integers(0, length, length))
            number += 1
            at += length + int(rng.integers(0, 3)) * int(rng.random() < 0.4)
    return segments, times, sessions, events


def differentiate(function, arguments, upstream):
    """(output, gradients of sum(upstream * output)) as numpy, on the active backend."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        tensors = [torch.tensor(x, requires_grad=True) for x in arguments]
        out = function(*tensors)
        out.backward(torch.tensor(upstream))
        return out.detach().numpy(), [x.grad.numpy() for x in tensors]
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(x) for x in arguments]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            out = function(*tensors)
        return out.numpy(), [x.numpy() for x in tape.gradient(out, tensors, output_gradients=tf.constant(upstream))]
    import jax

    out, pull = jax.vjp(function, *map(jax.numpy.asarray, arguments))
    return np.asarray(out), [np.asarray(x) for x in pull(jax.numpy.asarray(upstream))]


def distance(actual, expected):
    """Largest difference, relative to the largest expected magnitude (at least 1)."""
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    assert actual.shape == expected.shape
    if not actual.size:
        return 0.0
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


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
