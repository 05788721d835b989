"""Bisection in sorted rows of integers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.ops.integers import at_most


def search(values: Any, low: Any, high: Any, limit: Any) -> Any:
    """First place p in [low, high] where `values[p] > limit`, by bisection in rows that do not decrease; `high` if there is none."""
    if keras.backend.backend() == "jax" and not any(isinstance(part, keras.KerasTensor) for part in (values, low, high, limit)):
        from keras_ranking.ops.backends import jax_search

        return jax_search.search(values, low, high, limit)

    def halve(low: Any, high: Any) -> tuple[Any, Any]:
        middle = (low + high) // 2
        # After the search (low = high) the middle may be one past the row: a valid place is read, and the value is ignored.
        seen = ops.take_along_axis(values, at_most(middle, ops.shape(values)[1] - 1), axis=1)
        right = ops.logical_and(seen <= limit, low < high)
        return ops.where(right, middle + 1, low), ops.where(right, high, middle)

    length = values.shape[1]
    if length is None:
        # In a served graph: a loop. Unrolled steps would be larger and slower to load than the rest of the model.
        return ops.while_loop(lambda low, high: ops.any(low < high), halve, (low, high))[0]
    for _ in range(int(length).bit_length()):
        low, high = halve(low, high)
    return low
