"""What the tests of ops share: rows of packed members, gradients on the active backend, and the distance to the reference."""

from __future__ import annotations

import keras
import numpy as np


def packed_rows(rng, batch, tokens, mean):
    """Segments with padding left of, between and right of them; times, sessions and events that fit. All int32 (batch, tokens)."""
    segments, times, sessions, events = (np.zeros((batch, tokens), "int32") for _ in range(4))
    times[:] = rng.integers(0, 1000, times.shape)  # what stands in padding must not matter
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
