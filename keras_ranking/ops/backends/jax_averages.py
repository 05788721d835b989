"""Moving averages in JAX: one compiled program for all arrays, which are written in place."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@partial(jax.jit, donate_argnums=0)
def _moved(values: list[Any], weights: list[Any], share: Any) -> list[Any]:
    return [value + share * (weight.astype(jnp.float32) - value) for value, weight in zip(values, weights, strict=True)]


class Store:
    """See `keras_ranking.ops.averages.Averages`."""

    def __init__(self, starts: list[np.ndarray]) -> None:
        self.values: list[Any] = [jnp.array(start) for start in starts]

    def move(self, weights: list[Any], share: float) -> None:
        self.values = _moved(self.values, weights, np.float32(share))

    def numpy(self) -> list[np.ndarray]:
        return [np.asarray(value) for value in self.values]
