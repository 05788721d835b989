"""Any Keras metric on the tower of the observed position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.metrics.observed_base import ObservedBase, probability_of


@keras.saving.register_keras_serializable(package="keras_ranking")
class Observed(ObservedBase):
    """Updates a pointwise Keras metric with label, probability and weight of the observed position's tower.

        metric.update_state(y_i, sigmoid(s_{i, bucket(position_i)}), w_i)      one token = one row (B*T, 1)

    For metrics of single predictions: `keras.metrics.AUC`, `BinaryAccuracy`, `Precision`, `BinaryCrossentropy`. Ranking metrics
    of keras-rs need lists; for packed rows use `ndcg` and `mrr` on arrays.

    Args:
        metric: a `keras.metrics.Metric`, or its name as `keras.metrics.get` takes it.
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1.
        from_logits: plain predictions are logits. Packed predictions always are.
        name: name of the metric. None: that of `metric`.
        dtype: dtype of the predictions that `metric` gets. None: `keras.config.floatx()`, at least float32.

    Call arguments:
        y_true: packed targets (B, T, 3), or labels of the shape of `y_pred`.
        y_pred: logits (B, T, K), or plain probabilities (B, N) or (B,).
        sample_weight: (B, T) or (B,). It is passed only to metrics in `weighted_metrics` of `compile`.

    Raises:
        ValueError: `metric` is not a metric.

    Example:
        >>> metric = kr.metrics.Observed(keras.metrics.BinaryAccuracy())
        >>> metric.update_state([[[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]], [[[3.0], [2.0]]])
        >>> float(metric.result())
        0.5
    """

    def __init__(
        self, metric: Any, boundaries: Sequence[int] = (), from_logits: bool = False, name: str | None = None, dtype: Any = None
    ) -> None:
        inner = keras.metrics.get(metric)
        if not isinstance(inner, keras.metrics.Metric):
            raise ValueError(f"`metric` must be a keras.metrics.Metric or the name of one. Received: metric={metric!r}")
        super().__init__(boundaries=boundaries, from_logits=from_logits, name=name or inner.name, dtype=dtype)
        self.metric = inner

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        observed, logits = self._read(y_true, y_pred, sample_weight)
        label, chance = (ops.reshape(x, (-1, 1)) for x in (observed.label, probability_of(observed, logits)))
        self.metric.update_state(label, chance, sample_weight=ops.reshape(observed.weight, (-1,)))

    def result(self) -> Any:
        return keras.tree.map_structure(self._checked, self.metric.result())

    def reset_state(self) -> None:
        super().reset_state()
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "metric": keras.saving.serialize_keras_object(self.metric)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Observed:
        return cls(**{**config, "metric": keras.saving.deserialize_keras_object(config["metric"])})
