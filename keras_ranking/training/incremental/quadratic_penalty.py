"""The quadratic penalties of one variable as a single one, for the whole variable or for the rows of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_ranking.ops.tables import look_up
from keras_ranking.training.incremental.fisher import grown


class QuadraticPenalty:
    """sum_k a_k H_k (w - w_k)^2 = P (w - m)^2 + c, elementwise. Half the memory and half the work per step.

        P = sum_k a_k H_k,    m = sum_k a_k H_k w_k / P,    c = sum_k a_k H_k (m - w_k)^2

    Args:
        variable: w.
        priors: (a_k, w_k, H_k). If w_k has fewer rows than w, H_k = 0 for the others.
    """

    def __init__(self, variable: Any, priors: list[tuple[float, np.ndarray, np.ndarray]]) -> None:
        self.variable, shape = variable, tuple(variable.shape)
        parts = [(share * grown(h.astype(np.float64), shape), grown(w.astype(np.float64), shape)) for share, w, h in priors]
        precision = sum((h for h, _ in parts), np.zeros(shape))
        self.any = bool(precision.any())
        mean = sum((h * w for h, w in parts), np.zeros(shape)) / np.where(precision > 0, precision, 1)
        least = sum((h * (w - mean) ** 2 for h, w in parts), np.zeros(shape))
        self.total = float(least.sum())
        constant = least.reshape(shape[0], -1).sum(axis=1) if shape else least
        self.precision, self.mean, self.constant = (ops.convert_to_tensor(part.astype(np.float32)) for part in (precision, mean, constant))

    def whole(self) -> Any:
        """The sum over the whole variable."""
        weight = ops.cast(self.variable.value, "float32")
        return ops.sum(self.precision * ops.square(weight - self.mean)) + self.total

    def rows(self, ids: list[Any]) -> Any:
        """The sum over the rows in `ids`, each counted once: ids are sorted, and repetitions are multiplied by zero."""
        flat = ops.concatenate([ops.reshape(ops.cast(part, "int32"), (-1,)) for part in ids], axis=0)
        row = ops.sort(ops.where(flat < 0, flat + self.variable.shape[0], flat))  # negative ids as in `ops.take`
        first = ops.cast(ops.concatenate([ops.ones_like(row[:1]), ops.cast(row[1:] != row[:-1], "int32")], axis=0), "float32")
        weight, precision, mean = (look_up(self.variable, row), *(ops.take(part, row, axis=0) for part in (self.precision, self.mean)))
        penalty = ops.sum(precision * ops.square(ops.cast(weight, "float32") - mean), axis=-1) + ops.take(self.constant, row, axis=0)
        return ops.sum(first * penalty)
