"""Base of the streaming metrics: reads packed or plain input of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.packed import Observed, check_boundaries, is_packed, unpack


class ObservedBase(keras.metrics.Metric):
    """A metric of the observed position's tower.

    Input forms of `update_state(y_true, y_pred, sample_weight)`:

    | form | y_true | y_pred | sample_weight |
    |---|---|---|---|
    | packed | (B, T, 3) [label, position, request] | LOGITS (B, T, K), or (B, T) for K = 1 | (B, T) |
    | plain | labels (B, N) or (B,), a row is a request | probabilities, or logits if `from_logits`, of the same shape | same or (B,) |

    A label above 0.5 is a positive. A token of weight 0 is ignored. Keras passes weights only to metrics in
    `weighted_metrics` of `compile`; in `metrics`, padding would be included.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1.
        from_logits: plain predictions are logits. Packed predictions always are.
        name: name of the metric.
        dtype: dtype of the sums, float32 or float64. None: `keras.config.floatx()`.
    """

    def __init__(self, boundaries: Sequence[int], from_logits: bool, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be float32 or float64, predictions are cast to it. Received: dtype={self.dtype!r}")
        self.boundaries = check_boundaries(boundaries)
        self.from_logits = bool(from_logits)

    def _read(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Observed, bool]:
        """The batch as tensors (B, T), and whether its `logit` holds logits (else probabilities)."""
        observed = unpack(y_true, y_pred, sample_weight, self.boundaries, self.dtype)
        packed = is_packed(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred))
        label = ops.cast(observed.label > 0.5, self.dtype)
        return observed._replace(label=label), self.from_logits or packed

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
