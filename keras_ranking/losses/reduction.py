"""Reduction and dtype check of the losses of this package."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import Observed, Reading, check_arrays, unpack
from keras_ranking.losses.values import LARGEST_GRADE, in_graph, is_host, known
from keras_ranking.ops.replicas import loss_of_all, refuse_replicas, together


class _Mean(keras.losses.Loss):
    """Keras' reduction of a value that is a scalar already: divides by the number of replicas of a `tf.distribute` strategy."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


class PackedLoss(keras.losses.Loss):
    """A loss of packed targets: reads them, and checks the numbers where they are known.

    Numbers are always checked in arrays, and in tensors at the first call, so that a step never waits for a device again. In a later one,
    and inside a step that is compiled by XLA (JAX, and TensorFlow with `jit_compile`), a label or weight out of range makes the loss NaN; a
    graph of TensorFlow stops with its own `InvalidArgumentError`.
    """

    largest_label = LARGEST_GRADE
    smallest_label = 0.0
    boundaries: tuple[int, ...]  # of the subclass

    def __init__(self, name: str, dtype: Any) -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight", dtype=dtype or default_dtype())
        check_dtype(self.dtype)
        self._looked = False

    def check(self, y_true: Any, sample_weight: Any) -> None:
        """Check labels and weights in arrays, packed or plain.

        Raises:
            ValueError: a label that counts out of range, or a weight that is negative or not finite.
        """
        check_arrays(y_true, sample_weight, self.largest_label, self.smallest_label)

    def read(self, y_true: Any, y_pred: Any, sample_weight: Any, lists: bool) -> Observed:
        """The batch as tensors (B, T). `lists`: items of a request are compared, so that plain rows of one item are an error."""
        reading = Reading(self.largest_label, lists, logits=True, values=not self._looked, smallest_label=self.smallest_label)
        observed = unpack(y_true, y_pred, sample_weight, self.boundaries, self.dtype, reading)
        if not self._looked and not is_host(y_true):
            self._looked = known(observed.wrong_label) is not None
        return observed


def reported(value: Any, observed: Observed) -> Any:
    """A scalar loss, NaN for a batch with a label or weight out of range, scaled for replicas."""
    wrong = ops.logical_or(observed.wrong_label, observed.wrong_weight)
    one = ops.ones_like(value)
    # The gradient is a product with this factor, so that a graph that stops here has not moved a weight.
    factor = in_graph(ops.where(wrong, one * float("nan"), one), observed.wrong_label, observed.wrong_weight)
    return across_replicas(value * factor)


def across_replicas(value: Any) -> Any:
    """A scalar mean, scaled like the means of Keras; where replicas are added up, of the whole batch.

    Raises:
        NotImplementedError: several replicas, each of which would divide by its own weights.
    """
    refuse_replicas("keras_ranking.losses", "each replica would divide by the weights of its own part of the batch")
    if together() > 1:
        return loss_of_all(value)
    values = ops.reshape(value, (1,))
    return _Mean(name="mean", dtype=keras.backend.standardize_dtype(value.dtype))(values, values)


def default_dtype() -> str:
    """Keras's float type, and float32 where that has 16 bits."""
    return "float64" if keras.config.floatx() == "float64" else "float32"


def check_dtype(dtype: str) -> None:
    """A loss is a sum over many tokens: 16-bit dtypes are an error, and logits are cast to a wider dtype."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"`dtype` must be float32 or float64, logits of any dtype are cast to it. Received: dtype={dtype!r}")
