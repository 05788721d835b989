"""Moving averages in TensorFlow: one graph for all variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


class Store:
    """See `keras_ranking.ops.averages.Averages`."""

    def __init__(self, starts: list[np.ndarray]) -> None:
        self.values = [tf.Variable(start, trainable=False) for start in starts]
        self._move: Any = None

    def move(self, weights: list[Any], share: float) -> None:
        if self._move is None:

            def moved(share: Any) -> None:
                for value, weight in zip(self.values, weights, strict=True):
                    value.assign_add(share * (tf.cast(weight, tf.float32) - value))

            self._move = tf.function(moved)
        self._move(tf.constant(share, tf.float32))

    def numpy(self) -> list[np.ndarray]:
        return [value.numpy() for value in self.values]
