"""Base of the streaming metrics: reads packed or plain input of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import Observed, Reading, check_boundaries, is_packed, unpack
from keras_ranking.losses.reduction import default_dtype
from keras_ranking.losses.values import LARGEST_GRADE, is_host, known, label_rule

_LABEL, _WEIGHT, _PROBABILITY = 1.0, 2.0, 3.0  # what a metric remembers of a wrong batch


class ObservedBase(keras.metrics.Metric):
    """A metric of the observed position's tower.

    Input forms of `update_state(y_true, y_pred, sample_weight)`:

    | form | y_true | y_pred | sample_weight |
    |---|---|---|---|
    | packed | (B, T, 3) [label, position, request] | LOGITS (B, T, K), or (B, T) for K = 1 | (B, T) |
    | plain | labels (B, N) or (B,), a row is a request | probabilities, or logits if `from_logits`, of the same shape | same or (B,) |

    A label above 0.5 is a positive. A token of weight 0 is ignored. Keras passes weights only to metrics in
    `weighted_metrics` of `compile`; in `metrics`, padding would be included.

    A label, a weight or a plain probability out of range is an error: at once in arrays; of tensors and in compiled steps, `result`
    raises it, so that no step waits for a device.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1.
        from_logits: plain predictions are logits. Packed predictions always are.
        name: name of the metric.
        dtype: dtype of the sums, float32 or float64. None: `keras.config.floatx()`, at least float32.
    """

    _ranks = False  # whether it compares items of a request, by any monotone score and by grades

    def __init__(self, boundaries: Sequence[int], from_logits: bool, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype or default_dtype())
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be float32 or float64, predictions are cast to it. Received: dtype={self.dtype!r}")
        self.boundaries = check_boundaries(boundaries)
        self.from_logits = bool(from_logits)
        self._wrong = self.add_variable(shape=(), initializer="zeros", name="wrong_input")

    def _read(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Observed, bool]:
        """The batch as tensors (B, T), and whether its `logit` holds logits (else probabilities)."""
        packed = is_packed(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred))
        logits = self.from_logits or packed
        ranks = self._ranks
        reading = Reading(LARGEST_GRADE if ranks else 1.0, lists=ranks, logits=logits and not ranks, values=False)
        observed = unpack(y_true, y_pred, sample_weight, self.boundaries, self.dtype, reading)
        self._watch(observed, probabilities=not logits, host=is_host(y_pred))
        label = ops.cast(observed.label > 0.5, self.dtype)
        return observed._replace(label=label), logits

    def _watch(self, observed: Observed, probabilities: bool, host: bool = False) -> None:
        """Remember a value out of range, for `result`."""
        nothing = ops.zeros((), dtype=self.dtype)
        found = ops.where(observed.wrong_label, nothing + _LABEL, nothing)
        found = ops.maximum(found, ops.where(observed.wrong_weight, nothing + _WEIGHT, nothing))
        if probabilities:
            outside = ops.any(ops.logical_or(observed.logit < 0, observed.logit > 1))
            if host and known(outside):
                raise ValueError(self._rule(_PROBABILITY))
            found = ops.maximum(found, ops.where(outside, nothing + _PROBABILITY, nothing))
        self._wrong.assign(ops.maximum(ops.convert_to_tensor(self._wrong), found))

    def _checked(self, value: Any) -> Any:
        """A result: an error, or NaN inside a compiled step, after a batch with a value out of range."""
        wrong = ops.convert_to_tensor(self._wrong)
        if known(wrong > 0):
            raise ValueError(self._rule(float(ops.convert_to_numpy(wrong))))
        return ops.where(wrong > 0, ops.full_like(value, float("nan")), value)

    def _rule(self, wrong: float) -> str:
        if wrong == _PROBABILITY:
            return (
                f"`y_pred` of '{self.name}' must be probabilities from 0 to 1. Received: others; if these are logits, "
                f"use {type(self).__name__}(..., from_logits=True)"
            )
        if wrong == _WEIGHT:
            return f"`sample_weight` of '{self.name}' must hold finite numbers >= 0. Received: others"
        return f"`y_true` of '{self.name}' {label_rule(LARGEST_GRADE if self._ranks else 1.0)} Received: another label"

    def get_config(self) -> dict[str, Any]:
        return {"boundaries": list(self.boundaries), "from_logits": self.from_logits, "name": self.name, "dtype": self.dtype}


def probability_of(observed: Observed, logits: bool) -> Any:
    """Probabilities (B, T)."""
    return ops.sigmoid(observed.logit) if logits else observed.logit


def quotient(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator, NaN where the denominator is 0 (nothing has been counted yet)."""
    nothing = ops.equal(denominator, 0)
    safe = ops.where(nothing, ops.ones_like(denominator), denominator)
    return ops.where(nothing, ops.full_like(numerator, float("nan")), numerator / safe)
