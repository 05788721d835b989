"""Batch normalisation without padding."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.ops.masks import mask_of
from keras_ranking.ops.replicas import anywhere, refuse_replicas, together, total


@keras.saving.register_keras_serializable(package="keras_ranking")
class MaskedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation over the cells that are not padding: `y = gamma (x - mean) / sqrt(var + epsilon) + beta`, by feature.

    In training, the moments of the cells of the batch with `real` not 0 are used, and update the running moments; a batch without any
    such cell leaves these as they are. At inference the running moments are used, so a score never depends on the rest of its batch.
    LiRank (2402.06859) normalises its numeric inputs (stated; the rest is our choice). Unlike the mask of Keras's layer, `real` is not
    passed on to later layers.

    Args:
        momentum, epsilon and all other arguments: see `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: (B, ..., D).
        real: (B, ...), 0 for padding, else not 0. None: the Keras mask of the inputs; if there is none, no padding.

    Output:
        Shape of the inputs.

    Example:
        >>> layer = kr.layers.MaskedBatchNormalization()
        >>> layer(np.ones((2, 3, 4), "float32"), real=np.array([[1, 1, 0], [1, 0, 0]], "int32")).shape
        (2, 3, 4)
    """

    def call(self, inputs: Any, real: Any = None, training: bool | None = None) -> Any:
        mask = mask_of(inputs) if real is None else ops.not_equal(real, 0)
        if mask is None or not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        before = [(weight, ops.copy(weight.value)) for weight in self.non_trainable_variables]
        outputs = super().call(inputs, training=training, mask=mask)
        some = anywhere(ops.any(mask))
        for weight, value in before:
            weight.assign(ops.where(some, ops.convert_to_tensor(weight.value), value))
        return outputs

    def _moments(self, inputs: Any, mask: Any) -> Any:
        refuse_replicas("MaskedBatchNormalization", "each replica would take the moments of its own part of the batch")
        if together() > 1:
            return self._moments_of_all(inputs, mask)
        if mask is not None:  # a factor of 0 would keep NaN and infinity
            inputs = ops.where(ops.expand_dims(mask, -1), inputs, ops.zeros_like(inputs))
        # Of a single feature Keras's moments under a mask are scalars, which some backends do not take.
        return tuple(ops.reshape(moment, (inputs.shape[-1],)) for moment in super()._moments(inputs, mask))

    def _moments_of_all(self, inputs: Any, mask: Any) -> Any:
        """The moments of the parts of all replicas."""
        width = inputs.shape[-1]
        x = ops.reshape(inputs, (-1, width))
        real = ops.ones_like(x[:, :1]) if mask is None else ops.reshape(ops.cast(mask, x.dtype), (-1, 1))
        x = ops.where(real > 0, x, ops.zeros_like(x))
        count = total(ops.sum(real)) + (0.0 if mask is None else keras.config.epsilon())  # as Keras divides
        mean = total(ops.sum(x, axis=0)) / count
        away = ops.where(real > 0, x - mean, ops.zeros_like(x))
        return mean, total(ops.sum(ops.square(away), axis=0)) / count
