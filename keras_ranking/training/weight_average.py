"""An exponential moving average of the weights, over the steps of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_ranking.ops.averages import Averages
from keras_ranking.ops.replicas import whole_array

_PREFIX = "average/"


class WeightAverage(keras.callbacks.Callback):
    """Averages the trainable weights w_1 .. w_t after steps 1 .. t, later ones more:

        a_t = sum_s rate^(t - s) w_s / sum_s rate^(t - s)          a_1 = w_1

    The first weights are no part of it. With `every` = k, s runs over the multiples of k, and the rate is rate^k. Variables that are not
    trained, such as the moments of batch normalization, keep their last values.

    Args:
        rate: above 0 and below 1.
        every: steps between moves.
        step: number of steps made before.
        arrays: `arrays()` of the run to resume; {}: a new run.
    """

    def __init__(self, rate: float, every: int = 1, step: int = 0, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__()
        self.rate, self.every, self.step = float(rate) ** every, int(every), int(step)
        self._resumed = [(arrays or {})[f"{_PREFIX}{number}"] for number in range(len(arrays or {}))]
        self._averages: Averages | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        if self.step % self.every:
            return
        averages, moves = self._of(self.model), self.step // self.every
        averages.move((1 - self.rate) / (1 - self.rate**moves))

    def _of(self, model: Any) -> Averages:
        if self._averages is None:
            self._averages = Averages(model.trainable_variables, self._resumed or None)
        return self._averages

    def arrays(self) -> dict[str, np.ndarray]:
        """For the checkpoint."""
        found = self._resumed if self._averages is None else self._averages.arrays()
        return {f"{_PREFIX}{number}": array for number, array in enumerate(found)}

    @contextlib.contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Inside, the model has the averages as weights."""
        variables = model.trainable_variables
        own = [np.array(whole_array(variable.value)) for variable in variables]
        self.finish(model)
        try:
            yield
        finally:
            for variable, value in zip(variables, own, strict=True):
                variable.assign(value)

    def finish(self, model: Any) -> None:
        """Give the model the averages for good; its own weights before the first move."""
        if self.step >= self.every:
            for variable, value in zip(model.trainable_variables, self._of(model).arrays(), strict=True):
                variable.assign(value)


def averages_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of a checkpoint's arrays that `WeightAverage.arrays` made."""
    return {name: array for name, array in arrays.items() if name.startswith(_PREFIX)}
