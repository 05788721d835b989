"""Reduction and dtype check of the losses of this package."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.losses.packed import Observed, Reading, check_arrays, unpack
from keras_ranking.losses.values import LARGEST_GRADE, in_graph, is_host, known
from keras_ranking.ops import replicas
from keras_ranking.ops.replicas import loss_of_all, refuse_replicas, together


class _Mean(keras.losses.Loss):
    """Keras' reduction of a value that is a scalar already: divides by the number of replicas of a `tf.distribute` strategy."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


REDUCTIONS = ("mean_with_sample_weight", "sum")
_EPSILON = 1e-7  # as in the cross-entropies of Keras


def divided(value: Any, total: Any, reduction: str) -> Any:
    """A sum of weighted terms, divided by the sum of their weights over all replicas unless the reduction is 'sum'; 0 where that is 0."""
    if reduction == "sum":
        return value
    total = replicas.total(total)
    return value / ops.where(total > 0, total, ops.ones_like(total))


def logits_of(probability: Any) -> Any:
    """ln p - ln(1 - p) of p between 1e-7 and 1 - 1e-7, to which others in [0, 1] are moved; NaN beyond."""
    inside = ops.logical_and(probability >= 0, probability <= 1)
    p = ops.clip(probability, _EPSILON, 1 - _EPSILON)
    return ops.where(inside, ops.log(p) - ops.log1p(-p), ops.full_like(p, float("nan")))


class PackedLoss(keras.losses.Loss):
    """A loss of packed targets: reads them, and checks the numbers where they are known.

    `reduction` is 'mean_with_sample_weight', by which the sum of the terms is divided by the sum of their weights, or 'sum'. The other
    reductions of Keras divide by the number of tokens, padding among them, or keep a term for each, which pairs and lists do not have.

    Numbers are always checked in arrays, and in tensors at the first call, so that a step never waits for a device again. In a later one,
    and inside a step that is compiled by XLA (JAX, and TensorFlow with `jit_compile`), a label or weight out of range makes the loss NaN; a
    graph of TensorFlow stops with its own `InvalidArgumentError`.
    """

    largest_label = LARGEST_GRADE
    smallest_label = 0.0
    boundaries: tuple[int, ...]  # of the subclass

    def __init__(self, name: str, dtype: Any, reduction: str = "mean_with_sample_weight", from_logits: bool = True) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {REDUCTIONS}: packed rows have padding, and the terms of pairs and lists belong to no single "
                f"token. Received: reduction={reduction!r}"
            )
        super().__init__(name=name, reduction=reduction, dtype=dtype or default_dtype())
        check_dtype(self.dtype)
        self.from_logits = bool(from_logits)
        self._looked = False

    def check(self, y_true: Any, sample_weight: Any) -> None:
        """Check labels and weights in arrays, packed or plain.

        Raises:
            ValueError: a label that counts out of range, or a weight that is negative or not finite.
        """
        check_arrays(y_true, sample_weight, self.largest_label, self.smallest_label)

    def read(self, y_true: Any, y_pred: Any, sample_weight: Any, lists: bool) -> Observed:
        """The batch as tensors (B, T). `lists`: items of a request are compared, so that plain rows of one item are an error."""
        reading = Reading(self.largest_label, lists, self.from_logits, values=not self._looked, smallest_label=self.smallest_label)
        observed = unpack(y_true, y_pred, sample_weight, self.boundaries, self.dtype, reading)
        if not self.from_logits:
            observed = self._of_probabilities(observed, look=not self._looked or is_host(y_pred))
        if not self._looked and not is_host(y_true):
            self._looked = known(observed.wrong_label) is not None
        return observed

    def _of_probabilities(self, observed: Observed, look: bool) -> Observed:
        """With logits in place of probabilities.

        Raises:
            ValueError: a probability outside [0, 1], where it is known; else the loss is NaN.
        """
        counted, p = observed.weight > 0, observed.logit
        if look and known(ops.any(ops.logical_and(counted, ops.logical_not(ops.logical_and(p >= 0, p <= 1))))):
            values, rows = ops.convert_to_numpy(p), ops.convert_to_numpy(counted)
            place = tuple(int(index) for index in np.argwhere(rows & ~((values >= 0) & (values <= 1)))[0])
            raise ValueError(
                f"`y_pred` must hold probabilities from 0 to 1 with from_logits=False. Received: {values[place]} at {place}; "
                "for logits leave `from_logits` as it is"
            )
        half = ops.full_like(p, 0.5)  # its logit is 0, as that of a token without weight is
        return observed._replace(logit=logits_of(ops.where(counted, p, half)))


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
