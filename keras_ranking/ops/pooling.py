"""Mean, sum or maximum over the vectors of a set."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_ranking.ops.maxima import largest

POOLINGS = ("mean", "sum", "max")


def pooled(vectors: Any, real: Any, pooling: str) -> Any:
    """One vector for each set, whatever the order of its vectors; zero for a set without any.

        sum_k x_k,   sum_k x_k / number of real k,   or max_k x_k of each number        over real k

    Sums are computed in float32. Equal maxima share their gradient, see `largest`.

    Args:
        vectors: (..., K, D).
        real: bool (..., K): which are in the set.
        pooling: 'mean', 'sum' or 'max'.

    Returns:
        (..., D), in the type of `vectors`.
    """
    x, there = ops.cast(vectors, "float32"), ops.expand_dims(real, -1)
    if pooling == "max":
        return ops.cast(largest(x, there, axis=-2), vectors.dtype)
    total = ops.sum(ops.where(there, x, ops.zeros_like(x)), axis=-2)
    if pooling == "mean":
        count = ops.sum(ops.cast(there, "float32"), axis=-2)
        total = total / ops.maximum(count, ops.ones_like(count))
    return ops.cast(total, vectors.dtype)
