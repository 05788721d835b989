"""What the losses of this package share besides their formula."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class _Mean(keras.losses.Loss):
    """Keras' own reduction of a value that is reduced already: divides by the replicas of a `tf.distribute` strategy."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


def across_replicas(value: Any) -> Any:
    """A scalar mean, scaled as Keras scales its own means when several replicas add up their gradients."""
    values = ops.reshape(value, (1,))
    return _Mean(name="mean", dtype=keras.backend.standardize_dtype(value.dtype))(values, values)


def check_dtype(dtype: str) -> None:
    """A loss sums over many tokens: 16 bits are refused, the logits are cast up instead."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"`dtype` must be float32 or float64, logits of any dtype are cast to it. Received: dtype={dtype!r}")
