"""Bisection in sorted rows as a loop of XLA."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax, numpy as jnp

from keras_ranking.ops.backends.jax_devices import by_rows, place_of


def search(values: Any, low: Any, high: Any, limit: Any) -> Any:
    """First place p in [low, high] of each row where `values[p] > limit`, by bisection; `high` where there is none. int32 (B, T).

    A loop, because XLA would fuse unrolled steps, with their gathers, into every operation that uses the result: a rotation by index then
    takes longer than the rest of a training step. On several devices each searches in its own rows, or all would wait for the longest loop.
    """
    return by_rows(place_of(values, low, high, limit), _search, values, low, high, limit)


@jax.jit
def _search(values: Any, low: Any, high: Any, limit: Any) -> Any:
    def halve(ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) // 2
        seen = jnp.take_along_axis(values, jnp.minimum(middle, values.shape[1] - 1), axis=1)
        right = (seen <= limit) & (low < high)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    return lax.while_loop(lambda ends: (ends[0] < ends[1]).any(), halve, (low, high))[0]
