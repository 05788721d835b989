"""Reduction and dtype check of the losses of this package."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class _Mean(keras.losses.Loss):
    """Keras' reduction of a value that is a scalar already: divides by the number of replicas of a `tf.distribute` strategy."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


def across_replicas(value: Any) -> Any:
    """A scalar mean, scaled like the means of Keras for several replicas whose gradients are summed."""
    values = ops.reshape(value, (1,))
    return _Mean(name="mean", dtype=keras.backend.standardize_dtype(value.dtype))(values, values)


def check_dtype(dtype: str) -> None:
    """A loss is a sum over many tokens: 16-bit dtypes are an error, and logits are cast to a wider dtype."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"`dtype` must be float32 or float64, logits of any dtype are cast to it. Received: dtype={dtype!r}")
