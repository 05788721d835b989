"""MeanProbability: the logit of a mean of probabilities."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask


@keras.saving.register_keras_serializable(package="keras_ranking")
class MeanProbability(PassesMask, keras.layers.Layer):
    """The logit of the mean of several models' probabilities, from their logits.

        out = logit( mean_m sigmoid(z_m) ) = logsumexp_m log sigmoid(z_m) - logsumexp_m log sigmoid(-z_m)

    The right side is exact where probabilities are too near 0 or 1 for a float32. A mean of probabilities is calibrated where each
    model is; a mean of logits would be too sure. Our choice.

    Call arguments:
        inputs: list of logits, each (B, ...), of one shape.

    Output:
        float32 (B, ...), under every dtype policy.

    Raises:
        ValueError: no list, or an empty one.

    Example:
        >>> out = kr.layers.MeanProbability()([np.zeros((1, 1), "float32"), np.full((1, 1), 40.0, "float32")])
        >>> round(float(keras.ops.sigmoid(out)[0, 0]), 4)
        0.75
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(autocast=False, **settings)

    def call(self, inputs: Any) -> Any:
        if not isinstance(inputs, (list, tuple)) or not inputs:
            raise ValueError(f"`inputs` must be a list of logits. Received: {type(inputs).__name__}")
        z = ops.stack([ops.cast(logit, "float32") for logit in inputs], axis=0)
        return ops.logsumexp(ops.log_sigmoid(z), axis=0) - ops.logsumexp(ops.log_sigmoid(-z), axis=0)

    def compute_output_spec(self, inputs: Any) -> Any:
        if not isinstance(inputs, (list, tuple)) or not inputs:
            raise ValueError(f"`inputs` must be a list of logits. Received: {type(inputs).__name__}")
        return keras.KerasTensor(inputs[0].shape, dtype="float32")
