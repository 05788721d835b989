"""LiRank's cross layers with self-attention inside the low-rank map."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.interaction.low_rank_cross import LowRankCross

SCORES = ("softmax", "linear", "identity")


@keras.saving.register_keras_serializable(package="keras_ranking")
class AttentionLowRankCross(LowRankCross):
    """`LowRankCross` with an attention score matrix between its two low-rank maps.

        v, q, k = x_l V_l, x_l Q_l, x_l K_l              each (D, r); cut into T = r / h tokens of width h: (T, h)
        A = softmax_keys(q k^T / (tau sqrt(h)))          (T, T), within one sample; each row sums to 1 over the keys
        o = A v + v                                      "+ v": the inner skip; back to (r,)
        x_{l+1} = x_0 * a(o U_l + b_l) + x_l

    LiRank (2402.06859) states: there are three low-rank maps, for value, query and key; scaled dot-product scores are applied between
    the two low-rank maps; with the identity as scores it is the plain cross layer; a temperature and a skip connection keep training
    stable. Our choice: tokens cut from the r numbers, the softmax over keys, the place of the skip, and all sizes. It agrees with all
    that is stated, and no sample depends on the others of its batch.

    Without the skip, near-uniform scores at the start of training would map the low-rank vector to its mean, which has rank 1.

    Args:
        rank, num_layers, activation, kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer,
            bias_constraint: see `LowRankCross`; `rank` is r, an integer.
        head_dim: h, a divisor of r. 1: each of the r numbers is a token.
        temperature: tau, or its initial value if it is learned.
        learn_temperature: train log(tau), one per layer.
        inner_skip: add v to A v.
        score: 'softmax'; 'linear', A = q k^T / (tau sqrt(h)) without softmax: time and memory are linear in T, but it is a sum over
            keys and of degree three in x, so it needs normalised inputs and tau of T or more; 'identity', A = I, without queries and
            keys: the plain cross layer, for ablations.

    Call arguments:
        inputs: (B, ..., D). All leading axes are samples: nothing is mixed across them.

    Output:
        (B, ..., D).

    Raises:
        ValueError: see `LowRankCross`; `rank` None or not a multiple of `head_dim`; fewer than two tokens; `temperature` not
            positive; an unknown `score`; `learn_temperature` with score='identity'.

    Example:
        >>> kr.layers.AttentionLowRankCross(rank=8, head_dim=2)(np.ones((3, 16), "float32")).shape
        (3, 16)
    """

    def __init__(
        self,
        rank: int,
        num_layers: int = 2,
        head_dim: int = 1,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        inner_skip: bool = True,
        score: str = "softmax",
        **settings: Any,
    ) -> None:
        super().__init__(rank, num_layers, **settings)
        if rank is None:
            raise ValueError("`rank` must be a positive integer: attention is applied between two low-rank maps. Received: rank=None")
        if head_dim < 1 or rank % head_dim:
            raise ValueError(f"`head_dim` must be a positive divisor of `rank`. Received: head_dim={head_dim}, rank={rank}")
        if score not in SCORES:
            raise ValueError(f"`score` must be of {SCORES}. Received: score={score!r}")
        if score != "identity" and rank // head_dim < 2:
            reason = "the softmax of one score is 1, so attention over one token has no effect"
            raise ValueError(f"`rank` must be at least 2 * `head_dim`: {reason}. Received: rank={rank}, head_dim={head_dim}")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
        if learn_temperature and score == "identity":
            raise ValueError("`learn_temperature` must be False with score='identity', which has no temperature.")
        self.head_dim, self.temperature, self.learn_temperature = int(head_dim), float(temperature), bool(learn_temperature)
        self.inner_skip, self.score = bool(inner_skip), score

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        if self.score == "identity":
            return
        shape = (int(input_shape[-1] or 0), int(self.rank or 0))
        self.queries, self.keys = self._kernels("query", shape), self._kernels("key", shape)
        if self.learn_temperature:
            start = keras.initializers.Constant(math.log(self.temperature))
            names = [f"log_temperature_{layer}" for layer in range(self.num_layers)]
            self.log_temperatures = [self.add_weight(name=name, shape=(), initializer=start) for name in names]

    def _tokens(self, x: Any) -> Any:
        return ops.reshape(x, (*ops.shape(x)[:-1], int(self.rank or 0) // self.head_dim, self.head_dim))

    def _low(self, layer: int, x: Any) -> Any:
        value = super()._low(layer, x)
        if self.score == "identity":
            return value + value if self.inner_skip else value
        tau = ops.exp(self.log_temperatures[layer]) if self.learn_temperature else self.temperature
        query = self._tokens(ops.matmul(x, self.queries[layer]) / (tau * math.sqrt(self.head_dim)))
        key, tokens = self._tokens(ops.matmul(x, self.keys[layer])), self._tokens(value)
        if self.score == "linear":
            # k^T v first: (h, h) numbers per sample; q k^T would be (T, T)
            mixed = ops.matmul(query, ops.matmul(ops.swapaxes(key, -1, -2), tokens))
        else:
            if self.compute_dtype == "float16":  # products of large queries and keys are beyond its range
                query, key = ops.cast(query, "float32"), ops.cast(key, "float32")
            logits = ops.matmul(query, ops.swapaxes(key, -1, -2))
            # In float32 under every dtype policy: exp() turns the rounding error of a large score into a large relative error.
            weights = ops.softmax(ops.cast(logits, "float32"), axis=-1)
            mixed = ops.matmul(ops.cast(weights, tokens.dtype), tokens)
        mixed = ops.reshape(mixed, ops.shape(value))
        return mixed + value if self.inner_skip else mixed

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "head_dim": self.head_dim,
            "temperature": self.temperature,
            "learn_temperature": self.learn_temperature,
            "inner_skip": self.inner_skip,
            "score": self.score,
        }
