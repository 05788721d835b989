"""IsotonicCalibration of the towers of a model, with the position bucket as the calibration feature."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask
from keras_ranking.layers.heads.isotonic_calibration import IsotonicCalibration


@keras.saving.register_keras_serializable(package="keras_ranking")
class TowerCalibration(PassesMask, keras.layers.Layer):
    """One non-decreasing map of logits for all towers, whose slopes may depend on the tower.

        z'_k = IsotonicCalibration(z_k, features = one-hot(k)),     k = 1 .. K;  no features for K = 1

    The calibration of CADET (2602.11410) is unknown. The isotonic layer is LiRank's (2402.06859, stated); position as a calibration
    feature is stated for a later layer by one of its authors.

    Args:
        step: width of the buckets of logits. Our choice: 0.5, because each of the B T K logits has its own slopes.
        lower, upper: see `IsotonicCalibration`.

    Call arguments:
        inputs: logits (B, T, K).

    Output:
        float32 (B, T, K), under every dtype policy; equal to the inputs before training.

    Raises:
        ValueError: see `IsotonicCalibration`; or an unknown last axis.

    Example:
        >>> kr.layers.TowerCalibration()(np.zeros((2, 5, 3), "float32")).shape
        (2, 5, 3)
    """

    def __init__(self, step: float = 0.5, lower: float = -17.0, upper: float = 8.0, **settings: Any) -> None:
        # autocast=False: a dtype policy of bfloat16 would round the logits it is given
        super().__init__(autocast=False, **settings)
        self.isotonic = IsotonicCalibration(lower, upper, step, dtype=self.dtype_policy, name="isotonic")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if input_shape[-1] is None:
            raise ValueError(f"the last axis of the inputs must be known. Received: shape={tuple(input_shape)}")
        self.towers = int(input_shape[-1])
        self.isotonic.build(tuple(input_shape), (*input_shape, self.towers) if self.towers > 1 else None)
        self.built = True

    def call(self, inputs: Any) -> Any:
        if self.towers == 1:
            return self.isotonic(inputs)
        which = ops.eye(self.towers, dtype="float32")
        return self.isotonic(inputs, features=ops.broadcast_to(which, (*ops.shape(inputs), self.towers)))

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(tuple(inputs.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        isotonic = self.isotonic.get_config()
        return {**super().get_config(), **{name: isotonic[name] for name in ("step", "lower", "upper")}}
