"""A linear head that keeps a posterior of its weights, for exploration by Thompson sampling."""

from __future__ import annotations

import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.layers.base import PassesMask
from keras_ranking.ops.seeded_normal import seeded_normal


def _parts(values: np.ndarray) -> np.ndarray:
    """A float64 array as two of float32 that sum to it within 2^-48: JAX has no float64 by default."""
    head = values.astype(np.float32)
    return np.stack([head, (values - head).astype(np.float32)])


@keras.saving.register_keras_serializable(package="keras_ranking")
class BayesianLinear(PassesMask, keras.layers.Layer):
    """The last layer `mu . z` of a task, and the Gaussian posterior N(mu, Lambda^-1) of its weights.

        s  = mu . z                                                                   greedy
        s~ = (mu + nu L^-T eps) . z,    Lambda = L L^T,   eps ~ N(0, I) by request    Thompson sampling, with `seed`

        logistic:  Lambda += sum w p (1 - p) z z^T,   p = sigmoid(mu . z),   mu the trained kernel        (Laplace)
        gaussian:  Lambda += sum w z z^T / sigma^2,   eta += sum w z y / sigma^2,   mu = Lambda^-1 eta    (exact)

    LiRank (2402.06859, section 3.8), stated: Bayesian linear regression on the input of the last layer, no separate training of the
    representation, an update of the posterior at the end of each training, Thompson sampling. No formulas are given: these are the
    standard ones. The logistic form, one sample per request, prior, sigma, nu and the discount are our choice.

    All candidates of a request share one draw. It is a function of the seed only (`seeded_normal`), so a reply can be reproduced and
    the graph has no state. L^-1 is stored at the last `update`, so the graph has no Cholesky decomposition.

    Args:
        kind: 'logistic' or 'gaussian'.
        use_bias: add a bias, an input that is always 1; it is part of the posterior.
        prior_precision: of every weight, around 0 ('gaussian') or around the trained kernel ('logistic'); Lambda before any update.
        noise: sigma, standard deviation of the targets; 'gaussian' only.
        discount: factor of `update` on earlier evidence, in (0, 1]; below 1 if the representation z changes between trainings. The
            prior is not discounted.
        exploration: nu; 0 is greedy.
        stream: makes the draws of layers with the same seed independent, 0 to 2^32 - 1. None: CRC-32 of the layer's name.
        kernel_initializer: of the kernel (D, 1); the bias starts at 0.

    Call arguments:
        inputs: z (B, ..., D).
        seed: int32 (B,), or None for the mean.
        exploration: nu instead of the layer's; a number, or a tensor of shape () or (B,).

    Output:
        float32 logits (B, ...), under every dtype policy.

    Raises:
        ValueError: arguments outside these bounds, or a seed that is not int32 (B,).

    Example:
        >>> layer = kr.layers.BayesianLinear(name="click")
        >>> z = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
        >>> layer(z).shape
        (2, 5)
        >>> layer.update(z)
        >>> layer.sample(z, seed=np.array([7, 8], "int32")).shape
        (2, 5)
    """

    def __init__(
        self,
        kind: str = "logistic",
        use_bias: bool = True,
        prior_precision: float = 1.0,
        noise: float = 1.0,
        discount: float = 1.0,
        exploration: float = 1.0,
        stream: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **settings: Any,
    ) -> None:
        # autocast=False: a dtype policy of bfloat16 would round the inputs
        super().__init__(autocast=False, **settings)
        if kind not in ("logistic", "gaussian"):
            raise ValueError(f"`kind` must be 'logistic' or 'gaussian'. Received: kind={kind!r}")
        if not prior_precision > 0 or not noise > 0:
            received = f"prior_precision={prior_precision}, noise={noise}"
            raise ValueError(f"`prior_precision` and `noise` must be positive. Received: {received}")
        if not exploration >= 0:
            raise ValueError(f"`exploration` must not be negative. Received: exploration={exploration}")
        if stream is not None and not 0 <= stream < 2**32:
            raise ValueError(f"`stream` must be from 0 to 2**32 - 1. Received: stream={stream}")
        self.kind, self.use_bias = kind, bool(use_bias)
        self.prior_precision, self.noise = float(prior_precision), float(noise)
        self.discount, self.exploration, self.stream = _discount(discount), float(exploration), stream
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.width = int(input_shape[-1] or 0)
        size = self.width + self.use_bias
        plain = {"dtype": "float32", "autocast": False}
        self.kernel = self.add_weight(name="kernel", shape=(self.width, 1), initializer=self.kernel_initializer, **plain)
        self.bias = self.add_weight(name="bias", shape=(1,), initializer="zeros", **plain) if self.use_bias else None
        state = {"trainable": False, **plain}
        prior = np.eye(size) * self.prior_precision

        def constant(values: np.ndarray) -> Any:
            return lambda shape, dtype=None: ops.convert_to_tensor(values.astype("float32"))

        self.precision_parts = self.add_weight(name="precision", shape=(2, size, size), initializer=constant(_parts(prior)), **state)
        self.factor = self.add_weight(name="factor", shape=(size, size), initializer=constant(prior / self.prior_precision**1.5), **state)
        self.evidence_parts = None
        if self.kind == "gaussian":
            self.evidence_parts = self.add_weight(name="evidence", shape=(2, size), initializer="zeros", **state)
        self.built = True

    # -- scores ----------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any, seed: Any = None, exploration: Any = None, training: bool | None = None) -> Any:
        z = ops.cast(inputs, "float32")
        mean = ops.squeeze(ops.matmul(z, self.kernel), -1)
        if self.bias is not None:
            mean = mean + self.bias
        if seed is None:
            return mean
        _check_seed(seed)
        size = self.width + self.use_bias
        # rows of eps^T L^-1 = (L^-T eps)^T
        draw = ops.matmul(seeded_normal(seed, size, self._stream()), self.factor)
        scale = ops.cast(self.exploration if exploration is None else exploration, "float32")
        draw = draw * (ops.expand_dims(scale, -1) if len(scale.shape) else scale)
        middle = (1,) * (len(inputs.shape) - 2)
        moved = ops.reshape(draw[:, : self.width], (-1, *middle, self.width))
        moved = ops.sum(z * moved, axis=-1) if len(inputs.shape) == 2 else _products(z, moved)
        if self.bias is not None:
            moved = moved + ops.reshape(draw[:, self.width], (-1, *middle))
        return mean + moved

    def sample(self, inputs: Any, seed: Any, exploration: Any = None) -> Any:
        """Logits with weights drawn once for each entry of the first axis: a call with `seed`."""
        return self(inputs, seed=seed, exploration=exploration)

    def _stream(self) -> int:
        return zlib.crc32(self.name.encode()) if self.stream is None else self.stream

    # -- the posterior ---------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> np.ndarray:
        """mu, float64 (D',): the kernel, and the bias if there is one. D' = D + use_bias."""
        parts = [self.kernel, *([] if self.bias is None else [self.bias])]
        return np.concatenate([ops.convert_to_numpy(part.value).reshape(-1) for part in parts]).astype(np.float64)

    @property
    def precision(self) -> np.ndarray:
        """Lambda, float64 (D', D')."""
        return np.asarray(ops.convert_to_numpy(self.precision_parts.value).astype(np.float64).sum(axis=0))

    @property
    def evidence(self) -> np.ndarray:
        """eta, float64 (D',); 'gaussian' only."""
        if self.evidence_parts is None:
            raise ValueError("`evidence` exists only with kind='gaussian'. Received: kind='logistic'")
        return np.asarray(ops.convert_to_numpy(self.evidence_parts.value).astype(np.float64).sum(axis=0))

    def update(self, inputs: Any, targets: Any = None, sample_weight: Any = None, discount: float | None = None) -> None:
        """Adds rows to the posterior, in float64. The result does not depend on how the rows are split into calls.

        'logistic' leaves the mean, and so all scores without a seed, unchanged. 'gaussian' replaces trained kernel and bias by the
        posterior mean.

        Args:
            inputs: z (..., D).
            targets: y (...); 'gaussian' only ('logistic': not read).
            sample_weight: (...), not negative; 0 for padding. None: 1 everywhere.
            discount: instead of the layer's. If one training needs several calls, give the discount to the first and 1 to the others.

        Raises:
            ValueError: rows that are not finite, shapes that do not fit, negative weights, a missing target.
        """
        discount = self.discount if discount is None else _discount(discount)
        z = np.asarray(ops.convert_to_numpy(inputs), np.float64)
        if not self.built:
            self.build(z.shape)
        if z.ndim < 2 or z.shape[-1] != self.width:
            raise ValueError(f"`inputs` must be (..., {self.width}). Received: shape={z.shape}")
        rows = z.shape[:-1]
        weight = np.ones(rows) if sample_weight is None else _column("sample_weight", sample_weight, rows)
        if weight.size and weight.min() < 0:
            raise ValueError(f"`sample_weight` must not be negative. Received: {weight.min()}")
        z, weight = z.reshape(-1, self.width), weight.reshape(-1)
        if not np.isfinite(z[weight > 0]).all():
            raise ValueError("`inputs` must be finite where their weight is positive.")
        z, weight, seen = z[weight > 0], weight[weight > 0], weight > 0
        z = np.column_stack([z, np.ones(len(z))]) if self.use_bias else z
        if self.kind == "logistic":
            p = 0.5 * (1.0 + np.tanh(0.5 * (z @ self.mean)))
            curvature = weight * p * (1.0 - p)
        else:
            if targets is None:
                raise ValueError("`targets` must be given with kind='gaussian'. Received: targets=None")
            y = _column("targets", targets, rows).reshape(-1)[seen]
            curvature = weight / self.noise**2
        prior = np.eye(self.width + self.use_bias) * self.prior_precision
        precision = prior + discount * (self.precision - prior) if discount < 1 else self.precision
        precision = precision + (z * curvature[:, None]).T @ z
        precision = (precision + precision.T) / 2
        lower = np.linalg.cholesky(precision)
        self.precision_parts.assign(_parts(precision))
        self.factor.assign(np.linalg.solve(lower, np.eye(len(lower))).astype("float32"))
        if self.evidence_parts is not None:
            evidence = discount * self.evidence + z.T @ (curvature * y)
            mean = np.linalg.solve(precision, evidence)
            self.evidence_parts.assign(_parts(evidence))
            self.kernel.assign(mean[: self.width, None].astype("float32"))
            if self.bias is not None:
                self.bias.assign(mean[self.width :].astype("float32"))

    # -- keras -----------------------------------------------------------------------------------------------------------

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)[:-1]

    def compute_output_spec(self, inputs: Any, seed: Any = None, exploration: Any = None, training: bool | None = None) -> Any:
        if seed is not None:
            _check_seed(seed)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "use_bias": self.use_bias,
            "prior_precision": self.prior_precision,
            "noise": self.noise,
            "discount": self.discount,
            "exploration": self.exploration,
            "stream": self.stream,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _discount(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"`discount` must be above 0 and at most 1. Received: discount={value}")
    return float(value)


def _column(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(ops.convert_to_numpy(values), np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite and of shape {shape}. Received: shape={array.shape}")
    return array


def _check_seed(seed: Any) -> None:
    dtype = keras.backend.standardize_dtype(seed.dtype)
    if dtype != "int32" or len(seed.shape) != 1:
        raise ValueError(f"`seed` must be int32 (B,). Received: dtype={dtype}, shape={tuple(seed.shape)}")


def _products(z: Any, weights: Any) -> Any:
    """z (B, ..., N, D) times weights (B, ..., 1, D), as one matrix product per row."""
    return ops.squeeze(ops.matmul(z, ops.swapaxes(weights, -1, -2)), -1)
