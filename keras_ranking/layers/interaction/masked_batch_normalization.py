"""Batch normalisation that padding does not enter."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ranking")
class MaskedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation over the cells that count: `y = gamma (x - mean) / sqrt(var + epsilon) + beta`, by feature.

    In training, moments are those of the batch's cells with `real` not 0, and move the running moments; at scoring the
    running moments are used, so a score never depends on what it is scored with. LiRank (2402.06859) normalises its numeric
    inputs (stated; the rest is ours). Keras's own layer takes a mask too, but hands it on to all later layers.

    Args:
        momentum, epsilon and all else: see `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: (B, ..., D).
        real: (B, ...), not 0 where a cell counts; None: all do.

    Output:
        Shape of the inputs.

    Example:
        >>> layer = kr.layers.MaskedBatchNormalization()
        >>> layer(np.ones((2, 3, 4), "float32"), real=np.array([[1, 1, 0], [1, 0, 0]], "int32")).shape
        (2, 3, 4)
    """

    def call(self, inputs: Any, real: Any = None, training: bool | None = None) -> Any:
        return super().call(inputs, training=training, mask=None if real is None else ops.not_equal(real, 0))
