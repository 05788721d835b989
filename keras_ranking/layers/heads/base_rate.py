"""BaseRate: an offset of a logit that follows the share of positives; and its fit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.layers.base import PassesMask


@keras.saving.register_keras_serializable(package="keras_ranking")
class BaseRate(PassesMask, keras.layers.Layer):
    """Adds one number to a logit: `out = logit + offset`. It starts at 0, is not trained, and is set by `fit_base_rate`.

    The share of positives moves from day to day while what tells items apart stays. An offset fitted on the newest outcomes follows it,
    without a training, and changes no order. Our choice.

    Call arguments:
        inputs: logits (B, ...).

    Output:
        float32 (B, ...), under every dtype policy.

    Example:
        >>> layer = kr.layers.BaseRate()
        >>> _ = layer(np.zeros((1, 1), "float32"))
        >>> _ = layer.offset.assign(0.5)
        >>> float(keras.ops.convert_to_numpy(layer(np.ones((1, 1), "float32")))[0, 0])
        1.5
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(autocast=False, **settings)

    def build(self, inputs_shape: Any) -> None:
        self.offset = self.add_weight(shape=(), initializer="zeros", name="offset", dtype="float32", trainable=False)
        self.built = True

    def call(self, inputs: Any) -> Any:
        return ops.cast(inputs, "float32") + self.offset

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype="float32")


def fit_base_rate(labels: Any, logits: Any, prior: float = 100.0, start: float = 0.0, weights: Any = None) -> float:
    """The offset of logits that agrees with outcomes, drawn to an earlier one.

        b = argmin_b  sum_n w_n ( log(1 + exp(z_n + b)) - y_n (z_n + b) ) + prior / 2 v (b - start)^2,    v = mean_n w_n p_n (1 - p_n)

    with p_n = sigmoid(z_n + start): the prior weighs as much as `prior` rows of these. By Newton's method, with bisection where a step
    leaves the bracket, in float64. The form is our choice.

    Args:
        labels: (N,) in [0, 1].
        logits: (N,), without an offset.
        prior: rows that the earlier offset weighs as much as; not negative. Our choice: 100.
        start: the earlier offset.
        weights: (N,) not negative; None: 1 everywhere.

    Returns:
        The offset.

    Raises:
        ValueError: no row, shapes that differ, values out of range, or with `prior=0` labels that are all 0 or all 1.

    Example:
        >>> round(kr.layers.fit_base_rate([1, 1, 1, 0], logits=[0.0, 0.0, 0.0, 0.0], prior=0.0), 4)
        1.0986
    """
    y, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, np.float64)
    if y.ndim != 1 or not len(y) or z.shape != y.shape or w.shape != y.shape:
        raise ValueError(f"`labels`, `logits` and `weights` must be of one shape (N,), N > 0. Received: {y.shape}, {z.shape}, {w.shape}")
    if not (np.isfinite(z).all() and np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0 and (y >= 0).all() and (y <= 1).all()):
        raise ValueError("`labels` must be in [0, 1], `logits` finite, and `weights` not negative, with one above 0.")
    if not 0 <= prior < np.inf:
        raise ValueError(f"`prior` must be a finite number of rows, at least 0. Received: prior={prior}")
    positives = float((w * y).sum())
    if prior == 0 and not 0 < positives < w.sum():
        raise ValueError("with `prior=0` there must be positive and negative labels. Received: one kind alone")
    p = _sigmoid(z + start)
    pull = prior * float((w * p * (1 - p)).mean())

    def slope(b: float) -> tuple[float, float]:
        p = _sigmoid(z + b)
        return float((w * p).sum()) - positives + pull * (b - start), float((w * p * (1 - p)).sum()) + pull

    low, high = -100.0 - float(np.abs(z).max()), 100.0 + float(np.abs(z).max())
    b = float(start)
    for _ in range(200):
        first, second = slope(b)
        low, high = (b, high) if first < 0 else (low, b)
        after = b - first / second if second > 0 else (low + high) / 2
        after = after if low < after < high else (low + high) / 2
        if abs(after - b) <= 1e-12 * (1 + abs(b)):
            return after
        b = after
    return b


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))
