"""Popularity of an id as a logit added to the global one: the layer, and the fit of its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.layers.base import PassesMask, WholeInputs
from keras_ranking.ops.keys import as_keys, distinct_keys, same_kind


@dataclass(frozen=True)
class RandomEffectFit:
    """Fitted effects, as `fit_random_effect` returns them.

    Attributes:
        ids: (U,) sorted, each once.
        effects: float64 (U,), logits.
        precision: float64 (U,), second derivative of the penalised loss at the effect; 1 / precision is the Laplace variance.
        iterations: number of Newton steps.

    Example:
        >>> fit = kr.layers.fit_random_effect([7, 7, 9], labels=[1, 1, 0], offsets=[0.0, 0.0, 0.0], l2=1.0)
        >>> fit.ids.tolist(), fit.effects.round(3).tolist()
        ([7, 9], [0.675, -0.401])
    """

    ids: np.ndarray
    effects: np.ndarray
    precision: np.ndarray
    iterations: int

    def rows(self, ids: Any) -> np.ndarray:
        """Rows of `RandomEffect.from_fit(self)` for ids: 1 + index, and 0 for an id that was not in the fit. int32.

        Raises:
            ValueError: a missing id, ids as floats so large that different ones may be equal, or ids of another kind than the fitted ones.
        """
        given = as_keys("ids", ids)
        known = distinct_keys("ids", given.reshape(-1))
        if not same_kind(self.ids, known.values):
            raise ValueError(
                f"`ids` must be of the kind of the fitted ids, such as {self.ids[:1].tolist()}. Received: {given.reshape(-1)[0]!r}"
            )
        found = self._places(known.values)
        return found[known.places].reshape(given.shape) if found.size else np.zeros(given.shape, dtype=np.int32)

    def _places(self, keys: np.ndarray) -> np.ndarray:
        """Row of each key, 0 for one that was not in the fit; exact between int64, uint64 and floats."""
        kinds = self.ids.dtype.kind, keys.dtype.kind
        if set(kinds) <= set("iu"):
            limits = np.iinfo(self.ids.dtype)
            # Compared as Python's integers: numpy would compare int64 with uint64 as floats.
            inside = np.array([limits.min <= key <= limits.max for key in (int(keys.min()), int(keys.max()))]).all() if keys.size else True
            if inside:
                keys = keys.astype(self.ids.dtype)
                at = np.minimum(np.searchsorted(self.ids, keys), len(self.ids) - 1)
                return np.where(self.ids[at] == keys, at + 1, 0).astype(np.int32)
        if kinds[0] == kinds[1] and kinds[0] in "USMm":
            at = np.minimum(np.searchsorted(self.ids, keys), len(self.ids) - 1)
            return np.where(self.ids[at] == keys, at + 1, 0).astype(np.int32)
        rows = {key: row for row, key in enumerate(self.ids.tolist(), 1)}
        return np.array([rows.get(key, 0) for key in keys.tolist()], dtype=np.int32)


def _columns(ids: Any, **columns: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    ids = as_keys("ids", ids)
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"`ids` must be one-dimensional with at least one id. Received: shape={ids.shape}")
    arrays = []
    for name, column in columns.items():
        array = np.asarray(column, np.float64)
        if array.shape != ids.shape or not np.isfinite(array).all():
            raise ValueError(f"`{name}` must be finite and of the shape of `ids`, {ids.shape}. Received: shape={array.shape}")
        arrays.append(array)
    return ids, arrays


def fit_random_effect(
    ids: Any,
    labels: Any,
    offsets: Any,
    l2: float,
    weights: Any = None,
    max_iterations: int = 100,
    tolerance: float = 1e-12,
) -> RandomEffectFit:
    """Fits one logistic intercept per id, added to a fixed global logit, for all ids at once in float64.

        b_id = argmin_b  sum_{rows n of id} w_n ( log(1 + exp(o_n + b)) - y_n (o_n + b) ) + l2 / 2 b^2

    LiRank (2402.06859) fits the residual of the main model every 8 hours (stated); logistic intercepts with the global logit
    as offset and an L2 prior are our interpretation. The derivative is monotone in b and its root lies in
    [-sum w (1 - y), sum w y] / l2: Newton's method, with bisection if a step leaves the bracket or does not shrink.

    Args:
        ids: (N,) integers or strings; none missing.
        labels: (N,) in [0, 1].
        offsets: (N,) global logits.
        l2: positive, precision of the prior; the effect of an id with few rows stays near 0.
        weights: (N,) not negative; None: 1 everywhere.
        max_iterations: maximum number of Newton steps.
        tolerance: the fit stops when all steps are below tolerance * (1 + |b|).

    Returns:
        `RandomEffectFit`: the ids, each once, and the effect and the precision of each.

    Raises:
        ValueError: arguments outside these bounds.
        RuntimeError: not converged.

    Example:
        >>> fit = kr.layers.fit_random_effect([7, 7, 9], labels=[1, 1, 0], offsets=[0.0, 0.0, 0.0], l2=1.0)
        >>> fit.effects.round(3).tolist(), fit.rows([9, 8]).tolist()
        ([0.675, -0.401], [2, 0])
    """
    if not l2 > 0:
        raise ValueError(f"`l2` must be positive. Received: l2={l2}")
    ids, (y, offset, w) = _columns(ids, labels=labels, offsets=offsets, weights=np.ones(len(ids)) if weights is None else weights)
    if y.min() < 0 or y.max() > 1:
        raise ValueError(f"`labels` must be in [0, 1]. Received: from {y.min()} to {y.max()}")
    if w.min() < 0:
        raise ValueError(f"`weights` must not be negative. Received: {w.min()}")
    unique, index = distinct_keys("ids", ids)

    def total(rows: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=rows, minlength=len(unique))

    low, high = -total(w * (1 - y)) / l2, total(w * y) / l2
    b = np.zeros(len(unique))
    step_before = high - low
    for iteration in range(1, max_iterations + 1):
        p, q = _sigmoids(offset + b[index])
        slope = total(w * (p - y)) + l2 * b
        precision = total(w * p * q) + l2
        low, high = np.where(slope <= 0, b, low), np.where(slope >= 0, b, high)
        newton = b - slope / precision
        bisect = (newton < low) | (newton > high) | (2 * np.abs(newton - b) > np.abs(step_before))
        # A step at the level of rounding does not shrink further; bisection would undo it.
        small = np.abs(newton - b) <= tolerance * (1 + np.abs(b))
        after = np.where(bisect & ~small, (low + high) / 2, newton)
        step_before, b = after - b, after
        if (np.abs(step_before) <= tolerance * (1 + np.abs(b))).all():
            p, q = _sigmoids(offset + b[index])
            return RandomEffectFit(unique, b, total(w * p * q) + l2, iteration)
    raise RuntimeError(f"not converged after max_iterations={max_iterations}; largest step {np.abs(step_before).max()}")


def _sigmoids(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sigmoid(z) and sigmoid(-z), each to full relative precision."""
    return np.exp(-np.logaddexp(0, -z)), np.exp(-np.logaddexp(0, z))


@keras.saving.register_keras_serializable(package="keras_ranking")
class RandomEffect(WholeInputs, PassesMask, keras.layers.Layer):
    """Adds a logit per id: `out = logit + effect[row]`, and exactly `logit` for row 0 or a row outside the table.

    LiRank's wide popularity (2402.06859): y = sigmoid(logit_global + logit_random_effect), for short-lived ids, fitted every
    8 hours and attached to the click and like towers (stated): one layer per task. An id that was not fitted changes nothing.

    Args:
        rows: number of rows, including row 0, which is for ids that were not fitted and for padding.

    Call arguments:
        inputs: global logits (B, ...).
        ids: int32 (B, ...), rows as `RandomEffectFit.rows` gives them.

    Output:
        float32 (B, ...), under every dtype policy.

    Raises:
        ValueError: `rows` below 2, or `ids` that do not have the shape of the logits.

    Example:
        >>> fit = kr.layers.fit_random_effect([7, 7, 9], labels=[1, 1, 0], offsets=[0.0, 0.0, 0.0], l2=1.0)
        >>> layer = kr.layers.RandomEffect.from_fit(fit)
        >>> keras.ops.convert_to_numpy(layer(np.zeros(2, "float32"), fit.rows([9, 8]))).astype("float64").round(3).tolist()
        [-0.401, 0.0]
    """

    whole = ("ids",)

    def __init__(self, rows: int, **settings: Any) -> None:
        # autocast=False: a dtype policy of bfloat16 would round the logits it is given
        super().__init__(autocast=False, **settings)
        if rows < 2:
            raise ValueError(f"`rows` must be at least 2 (row 0 is for ids that were not fitted). Received: rows={rows}")
        self.rows = int(rows)

    @classmethod
    def from_fit(cls, fit: RandomEffectFit, **settings: Any) -> RandomEffect:
        """The layer with fitted effects; not trainable by default."""
        layer = cls(len(fit.ids) + 1, **{"trainable": False, **settings})
        layer.build((None,))
        layer.effects.assign(np.concatenate([[0.0], fit.effects]).astype("float32"))
        return layer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if hasattr(self, "effects"):  # by `from_fit`
            return
        self.effects = self.add_weight(name="effects", shape=(self.rows,), initializer="zeros", dtype="float32", autocast=False)
        self.built = True

    def call(self, inputs: Any, ids: Any) -> Any:
        if len(ids.shape) != len(inputs.shape):
            raise ValueError(f"`ids` must be of the shape of the logits, {tuple(inputs.shape)}. Received: shape={tuple(ids.shape)}")
        known = ops.logical_and(ids > 0, ids < self.rows)
        effect = ops.take(self.effects, ops.where(known, ids, 0), axis=0)
        return ops.cast(inputs, "float32") + ops.where(known, effect, 0.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...], ids_shape: Any = None) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def compute_output_spec(self, inputs: Any, ids: Any) -> Any:
        return keras.KerasTensor(tuple(inputs.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rows": self.rows}
