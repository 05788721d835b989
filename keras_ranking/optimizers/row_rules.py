"""How the rows of an embedding table that a step touches are updated."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.ops.tables import TouchedMask, TouchedRows


class RowRule(keras.optimizers.Optimizer):
    """The state of tables, and the update of touched rows; a part of `TableOptimizer`."""

    def update_rows(self, rows: TouchedRows | TouchedMask, gradients: Any, table: Any, number: int, rate: Any, step: Any) -> None:
        """Update the rows of a table and of its state.

        Args:
            rows: which.
            gradients: float32, clipped.
            table: the variable.
            number: of the table, as in `build`.
            rate: learning rate.
            step: number of the step, from 1 on, float32.
        """
        raise NotImplementedError


class RowwiseAdagrad(RowRule):
    """AdaGrad with one accumulator a row: a += mean_d g_d^2, w -= rate g / (sqrt(a) + epsilon)."""

    def __init__(self, learning_rate: Any, initial_accumulator: float, epsilon: float, name: str = "tables") -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.initial_accumulator, self.epsilon = initial_accumulator, epsilon

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        start = keras.initializers.Constant(self.initial_accumulator)
        self._sums = [
            self.add_variable((int(table.shape[0]),), start, "float32", name=f"{table.path.replace('/', '_')}_accumulator")
            for table in variables
        ]

    def update_rows(self, rows: TouchedRows | TouchedMask, gradients: Any, table: Any, number: int, rate: Any, step: Any) -> None:
        total = rows.read(self._sums[number]) + ops.mean(ops.square(gradients), axis=-1)
        rows.write(self._sums[number], total)
        # 0 / 0 where an accumulator and a gradient are zero and epsilon is 0
        divisor = ops.expand_dims(ops.sqrt(total) + self.epsilon, -1)
        rows.write(table, rows.read(table) - rate * gradients / divisor)


class LazyAdam(RowRule):
    """Adam whose moments and weights move in touched rows alone, with the step of the whole training in the bias correction."""

    def __init__(self, learning_rate: Any, beta_1: float, beta_2: float, epsilon: float, name: str = "tables") -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._moments = [
            [self.add_variable(table.shape, "zeros", "float32", name=f"{table.path.replace('/', '_')}_{moment}") for table in variables]
            for moment in ("momentum", "velocity")
        ]

    def update_rows(self, rows: TouchedRows | TouchedMask, gradients: Any, table: Any, number: int, rate: Any, step: Any) -> None:
        first, second = (moments[number] for moments in self._moments)
        mean = rows.read(first) + (gradients - rows.read(first)) * (1 - self.beta_1)
        square = rows.read(second) + (ops.square(gradients) - rows.read(second)) * (1 - self.beta_2)
        rows.write(first, mean)
        rows.write(second, square)
        rate = rate * ops.sqrt(1 - ops.power(self.beta_2, step)) / (1 - ops.power(self.beta_1, step))
        rows.write(table, rows.read(table) - rate * mean / (ops.sqrt(square) + self.epsilon))
