"""LiRank's isotonic calibration, trained with the model."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask

MAX_BUCKETS = 100_000


@keras.saving.register_keras_serializable(package="keras_ranking")
class IsotonicCalibration(PassesMask, keras.layers.Layer):
    """A non-decreasing piecewise linear map of a logit, whose slopes may depend on calibration features.

        y_cali = sum_i ReLU(e_i + w_i) v_i + b,      v_i = clip(y - lower - step i, 0, step),  i = 0 .. n - 1          Eq. 1
        e      = features @ kernel

    LiRank (2402.06859), Eq. 1, stated: y is a logit; one trainable weight per bucket of fixed width; ReLU so that the map never
    decreases; e derived from the calibration features (device, channel, ids); trained with the model. The rest is our choice:

    * The range: Eq. 1 needs y >= 0, hence the shift by `lower`. -17, 8 and 0.05 (n = 500) are from later code by one of its authors.
    * Outside [lower, upper] the map continues with slope 1. A constant there would stop the gradient of the logits with the largest
      errors; the slope of the last bucket would be an estimate from few rows.
    * w starts at 1, b at `lower` and the kernel at 0: the identity, equal to the bit. (A start at w = 0.5 would give -8.5 at y = 0.)
      A slope of 0 has no gradient, so the start must be well above 0.
    * e is linear in the features: ids must be embedded first.

    Computed as y + o + sum_i (ReLU(e_i + w_i) - 1) v_i with b = lower + o, the same numbers with less rounding; the weight `bias` is o.
    Without features, slopes are summed once and each logit looks up its bucket: no (..., n) tensor is made. With features, every logit
    has its own slopes and that tensor is made: use a larger `step` if it is too large.

    In float32 it is within 2e-5 of Eq. 1 in float64 for slopes from 0 to 3, and never decreases by more than rounding, 5e-6.

    Args:
        lower, upper, step: range and width of the buckets; upper - lower must be a multiple of step.
        features_dim: C, width of the features; 0: no features; None: as in the first call.
        units: K, one calibrator for each entry of the last axis of the logits; None: one calibrator, and no such axis.

    Call arguments:
        inputs: logits (B, ...), or (B, ..., K) with `units`.
        features: (B, ..., C), in the shape of the logits without K; numbers, one-hot or embedded.

    Output:
        float32 in the shape of the logits, under every dtype policy.

    Raises:
        ValueError: a range that is not 1 to 100,000 whole buckets, `units` below 1, a last axis that is not `units`, features given to a
            layer without them, or missing for a layer with them.

    Example:
        >>> layer = kr.layers.IsotonicCalibration()
        >>> keras.ops.convert_to_numpy(layer(np.array([-40.0, -1.5, 0.25], "float32"))).tolist()
        [-40.0, -1.5, 0.25]
    """

    def __init__(
        self,
        lower: float = -17.0,
        upper: float = 8.0,
        step: float = 0.05,
        features_dim: int | None = None,
        units: int | None = None,
        **settings: Any,
    ) -> None:
        # autocast=False: a dtype policy of bfloat16 would round the logits it is given
        super().__init__(autocast=False, **settings)
        count = (upper - lower) / step if step > 0 else 0.0
        if not 1 <= round(count) <= MAX_BUCKETS or abs(count - round(count)) > 1e-6 * count:
            received = f"lower={lower}, upper={upper}, step={step}"
            raise ValueError(f"`upper` - `lower` must be 1 to {MAX_BUCKETS:,} times `step`. Received: {received}")
        if features_dim is not None and features_dim < 0:
            raise ValueError(f"`features_dim` must not be negative. Received: features_dim={features_dim}")
        if units is not None and units < 1:
            raise ValueError(f"`units` must be a positive integer or None. Received: units={units}")
        self.lower, self.upper, self.step = float(lower), float(upper), float(step)
        self.features_dim, self.units = features_dim, units
        self.buckets = round(count)

    def build(self, inputs_shape: tuple[int | None, ...], features_shape: tuple[int | None, ...] | None = None) -> None:
        if self.units is not None and (not inputs_shape or inputs_shape[-1] != self.units):
            raise ValueError(f"`inputs` must be (B, ..., {self.units}), a logit for each unit. Received: shape={tuple(inputs_shape)}")
        if self.features_dim is None:
            self.features_dim = 0 if features_shape is None else int(features_shape[-1] or 0)
        units = self.units or 1
        plain = {"dtype": "float32", "autocast": False}
        self.slopes = self.add_weight(name="slopes", shape=(units, self.buckets), initializer="ones", **plain)
        self.bias = self.add_weight(name="bias", shape=(units,), initializer="zeros", **plain)
        self.kernel = None
        if self.features_dim:
            shape = (self.features_dim, units * self.buckets)
            self.kernel = self.add_weight(name="kernel", shape=shape, initializer="zeros", **plain)
        self.built = True

    def _check(self, inputs: Any, features: Any) -> None:
        if (features is None) != (self.kernel is None):
            held = "without features" if self.kernel is None else f"for {self.features_dim} features"
            raise ValueError(f"this layer was built {held}. Received: features={'None' if features is None else 'a tensor'}")
        if features is None:
            return
        rank = len(inputs.shape) + (self.units is None)
        if len(features.shape) != rank or features.shape[-1] != self.features_dim:
            want = f"rank {rank} and {self.features_dim} wide, for logits of shape {tuple(inputs.shape)}"
            raise ValueError(f"`features` must be of {want}. Received: shape={tuple(features.shape)}")

    def call(self, inputs: Any, features: Any = None) -> Any:
        self._check(inputs, features)
        logits = ops.cast(inputs, "float32")
        y = logits if self.units is not None else ops.expand_dims(logits, -1)
        moved = self._by_sums(y) if features is None else self._by_activations(y, features)
        out = y + (moved + ops.cast(self.bias, "float32"))
        return out if self.units is not None else ops.squeeze(out, -1)

    def _by_activations(self, y: Any, features: Any) -> Any:
        """sum_i (slope_i - 1) v_i for y (..., K), with separate slopes for every row."""
        e = ops.matmul(ops.cast(features, "float32"), self.kernel)
        e = ops.reshape(e, (*ops.shape(e)[:-1], self.units or 1, self.buckets))
        left = self.step * ops.arange(self.buckets, dtype="float32")
        v = ops.clip(ops.expand_dims(y - self.lower, -1) - left, 0.0, self.step)
        return ops.sum((ops.relu(e + self.slopes) - 1.0) * v, axis=-1)

    def _by_sums(self, y: Any) -> Any:
        """The same without features: a running sum over the buckets below y, and the part of the bucket that y is in."""
        excess = ops.relu(self.slopes) - 1.0
        whole = self.step * (ops.cumsum(excess, axis=-1) - excess)  # of the buckets before
        x = ops.clip(y - self.lower, 0.0, self.upper - self.lower)
        bucket = ops.cast(ops.floor(ops.stop_gradient(x) / self.step), "int32")
        bucket = ops.clip(bucket, 0, self.buckets - 1)  # after the cast, which makes any integer of a NaN
        at = bucket + self.buckets * ops.arange(self.units or 1, dtype="int32")
        inside = x - self.step * ops.cast(bucket, "float32")
        return ops.take(ops.reshape(whole, (-1,)), at, axis=0) + ops.take(ops.reshape(excess, (-1,)), at, axis=0) * inside

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], features_shape: tuple[int | None, ...] | None = None
    ) -> tuple[int | None, ...]:
        return tuple(inputs_shape)

    def compute_output_spec(self, inputs: Any, features: Any = None) -> Any:
        self._check(inputs, features)
        return keras.KerasTensor(tuple(inputs.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "lower": self.lower,
            "upper": self.upper,
            "step": self.step,
            "features_dim": self.features_dim,
            "units": self.units,
        }
