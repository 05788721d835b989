"""Functional models that check their integer inputs before Keras casts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ranking.ops.whole import whole_numbers


class WholeModelInputs:
    """A functional model whose integer inputs (times, ids, lengths) are refused as floats, and beyond int32.

    Keras casts what it is given to the type of the input: float32 times lose up to 64 seconds, and int64 wraps.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._whole(inputs), *args, **kwargs)  # type: ignore[misc]

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # what JAX's `fit` and `predict` run
        return super().call(self._whole(inputs), *args, **kwargs)  # type: ignore[misc]

    def _whole(self, inputs: Any) -> Any:
        if not isinstance(inputs, Mapping):
            return inputs
        declared = self.input  # type: ignore[attr-defined]
        return {name: _checked(name, value, declared) for name, value in inputs.items()}


@keras.saving.register_keras_serializable(package="keras_ranking")
class Graph(WholeModelInputs, keras.Model):
    """A functional `keras.Model` over layers of a `RankingModel`, such as its `serving_model`."""


def _checked(name: str, value: Any, declared: Any) -> Any:
    if not isinstance(declared, Mapping) or name not in declared or declared[name].dtype != "int32":
        return value
    if isinstance(value, np.ndarray) and value.dtype == bool:  # labels of earlier events
        return value
    return whole_numbers(value, name)
