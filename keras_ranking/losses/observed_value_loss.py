"""The loss of a task whose label is a number: squared error or Huber's loss of the tower of the observed position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import check_boundaries
from keras_ranking.losses.reduction import PackedLoss, divided, reported
from keras_ranking.losses.values import LARGEST_GRADE


@keras.saving.register_keras_serializable(package="keras_ranking")
class ObservedValueLoss(PackedLoss):
    """Mean error of the tower of the observed position, for labels that are numbers.

        d_i = y_pred[i, bucket(position_i)] - y_i
        L   = sum_i w_i f(d_i) / sum_i w_i

        f(d) = d^2                                           delta = None
        f(d) = d^2 / 2  for |d| <= delta,   delta (|d| - delta / 2)  beyond       (Huber, 1964)

    As in `ObservedTowerLoss` the divisor is the sum of the weights of the batch, the gradient of every other tower is exactly zero, and if
    all weights are 0 the loss and its gradient are 0. A task of kind 'number' is trained with it on transformed labels, see `Task`.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1. (): one tower.
        delta: where Huber's loss becomes linear, in units of the label; None: squared error.
        reduction: 'mean_with_sample_weight', or 'sum': without the divisor.
        name: name of the loss.
        dtype: dtype of the computation. None: `keras.config.floatx()`, at least float32, for outputs of any dtype.

    Call arguments:
        y_true: packed targets (B, T, 3) [label, position, request], or labels (B, N).
        y_pred: outputs (B, T, K); (B, T) for K = 1.
        sample_weight: (B, T) or (B,), >= 0; 0 = not a target: its output and its label are ignored, even if they are NaN.

    Returns:
        Scalar.

    Raises:
        ValueError: boundaries not increasing, `delta` not positive, another K, shapes that do not fit, outputs of a sigmoid, a label that
            is not finite, or a weight that is negative or not finite.

    Example:
        >>> loss = kr.losses.ObservedValueLoss(delta=1.0)
        >>> float(loss([[0.0, -1.0]], [[3.0, -1.5]]))  # (2.5 + 0.125) / 2
        1.3125
    """

    smallest_label = -LARGEST_GRADE

    def __init__(
        self,
        boundaries: Sequence[int] = (),
        delta: float | None = None,
        reduction: str = "mean_with_sample_weight",
        name: str = "observed_value_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, reduction)
        self.boundaries = check_boundaries(boundaries)
        if delta is not None and not (math.isfinite(delta) and delta > 0):
            raise ValueError(f"`delta` must be a positive number, or None. Received: delta={delta}")
        self.delta = delta

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        observed = self.read(y_true, y_pred, sample_weight, lists=False)
        apart = observed.logit - observed.label
        if self.delta is None:
            loss = ops.square(apart)
        else:
            # Of |d| = min(|d|, delta) + rest: no branch, so that no gradient of an unused one can be NaN.
            near = ops.minimum(ops.abs(apart), self.delta)
            loss = 0.5 * ops.square(near) + self.delta * (ops.abs(apart) - near)
        return reported(divided(ops.sum(observed.weight * loss), ops.sum(observed.weight), self.reduction), observed)

    def get_config(self) -> dict[str, Any]:
        return {
            "boundaries": list(self.boundaries),
            "delta": self.delta,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }
