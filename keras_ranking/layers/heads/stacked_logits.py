"""StackedLogits: a logit from those of several models; and its fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.layers.base import PassesMask

_STEPS = 100  # of Newton's method, which needs about ten


@keras.saving.register_keras_serializable(package="keras_ranking")
class StackedLogits(PassesMask, keras.layers.Layer):
    """One logit from those of several models: `out = bias + sum_m weight_m logit_m`. The numbers are not trained; `fit_stack` finds them.

    Stacking (Wolpert, 1992) by logistic regression. It starts from the mean of the logits.

    Args:
        count: M, how many logits.

    Call arguments:
        inputs: list of M logits, each (B, ...); the others are of the first one's shape, or broadcast to it.

    Output:
        float32 (B, ...), under every dtype policy.

    Raises:
        ValueError: `count` below 1, another number of logits.

    Example:
        >>> layer = kr.layers.StackedLogits(2)
        >>> float(keras.ops.convert_to_numpy(layer([np.ones((1, 1), "float32"), np.zeros((1, 1), "float32")]))[0, 0])
        0.5
    """

    def __init__(self, count: int, **settings: Any) -> None:
        if count < 1:
            raise ValueError(f"`count` must be a positive integer. Received: count={count}")
        super().__init__(autocast=False, **settings)
        self.count = int(count)

    def build(self, inputs_shape: Any) -> None:
        plain = {"dtype": "float32", "trainable": False, "autocast": False}
        even = keras.initializers.Constant(1.0 / self.count)
        self.weight = self.add_weight(shape=(self.count,), initializer=even, name="weight", **plain)
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias", **plain)
        self.built = True

    def _check(self, inputs: Any) -> None:
        if not isinstance(inputs, (list, tuple)) or len(inputs) != self.count:
            received = f"{len(inputs)} of them" if isinstance(inputs, (list, tuple)) else type(inputs).__name__
            raise ValueError(f"`inputs` must be a list of {self.count} logits. Received: {received}")

    def call(self, inputs: Any) -> Any:
        self._check(inputs)
        total = ops.convert_to_tensor(self.bias)
        for at, logit in enumerate(inputs):
            total = total + self.weight[at] * ops.cast(logit, "float32")
        return total

    def compute_output_spec(self, inputs: Any) -> Any:
        self._check(inputs)
        return keras.KerasTensor(inputs[0].shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}


def fit_stack(labels: Any, logits: Sequence[Any], prior: float = 10.0) -> tuple[np.ndarray, float]:
    """Weights and bias of `StackedLogits` by logistic regression on rows that none of the models was fitted on.

        w, b = argmin  sum_n ( log(1 + exp(z_n)) - y_n z_n ) + prior / 2 |w - 1 / M|^2,    z_n = b + sum_m w_m logit_mn

    By Newton's method in float64. The prior, our choice, decides where two models say the same.

    Args:
        labels: (N,) in [0, 1].
        logits: M arrays (N,).
        prior: above 0.

    Returns:
        `weight` (M,) and `bias`.

    Raises:
        ValueError: no row, shapes that differ, values out of range, labels that are all 0 or all 1, a prior that is not above 0.

    Example:
        >>> weight, bias = kr.layers.fit_stack([0, 0, 1, 1] * 50, [[-2, -2, 2, 1] * 50, [1, -1, 1, -1] * 50])
        >>> bool(weight[0] > 5 * abs(weight[1]))
        True
    """
    y, z = np.asarray(labels, np.float64), np.stack([np.asarray(logit, np.float64) for logit in logits], axis=-1)
    if y.ndim != 1 or not len(y) or z.shape[:-1] != y.shape:
        raise ValueError(f"`labels` and each of `logits` must be of one shape (N,), N > 0. Received: {y.shape}, {z.shape[:-1]}")
    if not (np.isfinite(z).all() and (y >= 0).all() and (y <= 1).all()):
        raise ValueError("`labels` must be in [0, 1] and `logits` finite.")
    if y.min() == y.max():
        raise ValueError(f"`labels` must hold both outcomes. Received: {y[0]:g} alone")
    if not 0 < prior < np.inf:
        raise ValueError(f"`prior` must be above 0. Received: prior={prior}")
    x = np.concatenate([z, np.ones((len(y), 1))], axis=1)
    start = np.append(np.full(z.shape[1], 1.0 / z.shape[1]), 0.0)
    pull = np.append(np.full(z.shape[1], float(prior)), 0.0)

    def loss(at: np.ndarray) -> float:
        logit = x @ at
        return float((np.logaddexp(0.0, logit) - y * logit).sum() + (pull * (at - start) ** 2).sum() / 2)

    at = start.copy()
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ at, -700, 700)))
        slope = x.T @ (p - y) + pull * (at - start)
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(pull) + 1e-9 * np.eye(len(at)), slope)
        size = 1.0
        while loss(at - size * step) > loss(at) and size > 1e-9:
            size /= 2
        at = at - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return at[:-1], float(at[-1])
