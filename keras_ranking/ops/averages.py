"""Moving averages of variables, moved by one call a step."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


class Averages:
    """Float32 numbers next to variables, each moved towards its variable: a <- a + share (w - a).

    Args:
        variables: of Keras, float.
        values: first numbers, one array a variable; None: the variables' own.
    """

    def __init__(self, variables: Sequence[Any], values: Sequence[np.ndarray] | None = None) -> None:
        self.variables = list(variables)
        starts = [keras.ops.convert_to_numpy(keras.ops.cast(one.value, "float32")) for one in variables] if values is None else values
        backend: Any = importlib.import_module(f"keras_ranking.ops.backends.{keras.backend.backend()}_averages")
        self._store = backend.Store([np.array(start, dtype=np.float32) for start in starts])

    def move(self, share: float) -> None:
        """One move of all."""
        self._store.move([variable.value for variable in self.variables], float(share))

    def arrays(self) -> list[np.ndarray]:
        """A copy of the averages."""
        return [np.array(value) for value in self._store.numpy()]
