"""Gradients on any backend, random packed batches, and references written as plain loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_ranking.losses import targets


def value_and_gradient(function: Callable[[Any], Any], x: np.ndarray) -> tuple[float, np.ndarray]:
    """A scalar function of one tensor: its value and its gradient."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        variable = tf.Variable(x)
        with tf.GradientTape() as tape:
            value = function(tf.convert_to_tensor(variable))
        return float(value), tf.convert_to_tensor(tape.gradient(value, variable)).numpy()
    if backend == "jax":
        import jax

        value, gradient = jax.jit(jax.value_and_grad(function))(jax.numpy.asarray(x))
        return float(value), np.asarray(gradient)
    import torch

    leaf = torch.tensor(x, requires_grad=True, device=keras.ops.convert_to_tensor(0.0).device)
    value = function(leaf)
    value.backward()
    return float(value.detach()), leaf.grad.cpu().numpy()


def value_of(loss: Any, y_true: np.ndarray, logits: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The loss; on JAX as one compiled program, because compiling each operation takes longer than all tests."""
    if keras.backend.backend() == "jax":
        import jax

        return float(jax.jit(lambda x: loss(y_true, x, weight))(logits))
    return float(loss(y_true, logits, weight))


def random_batch(
    rng: np.random.Generator, rows: int = 4, tokens: int = 23, towers: int = 3, longest: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Packed targets, logits, weights (some 0), and label/position/request as (rows, tokens, 3) float64."""
    request = np.zeros((rows, tokens), dtype=np.int64)
    position = np.zeros((rows, tokens), dtype=np.int64)
    for row in range(rows):
        token, number = 0, int(rng.integers(1, 4))
        while token < tokens:
            size = min(int(rng.integers(1, longest + 1)), tokens - token)
            request[row, token : token + size] = number
            position[row, token : token + size] = 1 + rng.permutation(size)
            token, number = token + size, number + int(rng.integers(1, 3))
    label = (rng.random((rows, tokens)) < 0.4).astype(np.float64)
    logits = rng.normal(size=(rows, tokens, towers)).astype(np.float32) * 2
    weight = (rng.random((rows, tokens)) * (rng.random((rows, tokens)) < 0.8)).astype(np.float32)
    return targets(label, position, request), logits, weight, np.stack([label, position, request], axis=-1)


def bucket_of(position: float, boundaries: tuple[int, ...]) -> int:
    return len([bound for bound in boundaries if position > bound])


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def chosen(plain: np.ndarray, logits: np.ndarray, boundaries: tuple[int, ...]) -> np.ndarray:
    rows, tokens, _ = plain.shape
    out = np.zeros((rows, tokens))
    for b in range(rows):
        for t in range(tokens):
            out[b, t] = float(logits[b, t, bucket_of(plain[b, t, 1], boundaries)])
    return out


def reference_cross_entropy(plain: np.ndarray, logits: np.ndarray, weight: np.ndarray, boundaries: tuple[int, ...]) -> float:
    score = chosen(plain, logits, boundaries)
    top = bottom = 0.0
    for b, t in np.ndindex(*score.shape):
        p = 1.0 / (1.0 + math.exp(-score[b, t]))
        y, w = plain[b, t, 0], float(weight[b, t])
        top += -w * (y * math.log(p) + (1 - y) * math.log(1 - p))
        bottom += w
    return top / bottom if bottom else 0.0


def reference_pairwise(
    plain: np.ndarray,
    logits: np.ndarray,
    weight: np.ndarray,
    boundaries: tuple[int, ...],
    same_bucket: bool = True,
    reach: int | None = None,
) -> float:
    score = chosen(plain, logits, boundaries)
    rows, tokens = score.shape
    top = bottom = 0.0
    for b in range(rows):
        for i in range(tokens):
            for j in range(tokens):
                if plain[b, i, 0] <= plain[b, j, 0] or plain[b, i, 2] != plain[b, j, 2]:
                    continue
                if same_bucket and bucket_of(plain[b, i, 1], boundaries) != bucket_of(plain[b, j, 1], boundaries):
                    continue
                if reach is not None and abs(i - j) >= reach:
                    continue
                w = float(weight[b, i]) * float(weight[b, j])
                top += w * softplus(-(score[b, i] - score[b, j]))
                bottom += w
    return top / bottom if bottom else 0.0


def reference_softmax(plain: np.ndarray, logits: np.ndarray, weight: np.ndarray, boundaries: tuple[int, ...]) -> float:
    score = chosen(plain, logits, boundaries)
    top = bottom = 0.0
    for b in range(score.shape[0]):
        for number in np.unique(plain[b, :, 2]):
            member = [t for t in range(score.shape[1]) if plain[b, t, 2] == number and weight[b, t] > 0]
            clicks = sum(plain[b, t, 0] for t in member)
            if not clicks:
                continue
            mass = sum(math.exp(score[b, t]) for t in member)
            for t in member:
                share = float(weight[b, t]) * plain[b, t, 0] / clicks
                top -= share * math.log(math.exp(score[b, t]) / mass)
                bottom += share
    return top / bottom if bottom else 0.0
