"""A mixture of experts in which each token and task uses only some of the experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.multi_task.mmoe import MMoE
from keras_ranking.ops.replicas import refuse_replicas


@keras.saving.register_keras_serializable(package="keras_ranking")
class SparseMMoE(MMoE):
    """MMoE in which each token and task uses only the k best experts.

        s_k = x G_k + eps * softplus(x W_k),   eps ~ N(0, 1)                in training; s_k = x G_k otherwise
        g_k = softmax(top(s_k)),   top keeps the `top_k` largest; the others' gates are exactly 0
        loss = balance * mean_k( E / top_k * sum_e f_ke P_ke ),   f, P: share of tokens that use e, mean of softmax(s_k)[e]

    LiRank (2402.06859) states a sparsely gated MMoE, +4.14 % in its table 6, and cites noisy top-k gating; its configuration is
    not given. Our choice: one router per task, W = 0 at the start, ties go to the lower index, and the balance loss, whose value
    is `balance` if all experts are used equally. It is added only in training, and includes every token, padding too.

    All experts are computed and weighted by the gates: shapes stay static on all three backends. The sparsity saves no time; its
    purpose is that experts specialise. A `top_k` of 1 is an error: the gate would be the constant 1, without a gradient.

    Args:
        tasks, tower, activation, dropout, num_experts, expert, seed, kernel_initializer, kernel_regularizer, kernel_constraint,
            bias_initializer, bias_regularizer, bias_constraint: see `MMoE`.
        top_k: number of experts that a token uses for a task, 2 to `num_experts`.
        noise: add the noise in training.
        balance: weight of the balance loss.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        dict, task -> float32 logit (B, ...).

    Raises:
        ValueError: see `MMoE`; `top_k` outside 2..E, or a negative `balance`.

    Example:
        >>> kr.layers.SparseMMoE(["click", "like"], num_experts=4, top_k=2)(np.ones((2, 5, 8), "float32"))["like"].shape
        (2, 5)
    """

    def __init__(
        self,
        tasks: Sequence[str],
        num_experts: int = 8,
        top_k: int = 2,
        noise: bool = True,
        balance: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(tasks, num_experts=num_experts, **settings)
        if not 2 <= top_k <= num_experts:
            raise ValueError(f"`top_k` must be from 2 to num_experts={num_experts}. Received: top_k={top_k}")
        if balance < 0:
            raise ValueError(f"`balance` must not be negative. Received: balance={balance}")
        if self.gate_dropout or self.renormalise:
            raise ValueError("`gate_dropout` and `renormalise` are arguments of MMoE only: a sparse gate already drops experts.")
        self.top_k, self.noise, self.balance = top_k, noise, float(balance)
        options = {"last_activation": "softplus", "use_bias": False, "zeros": True, "dtype": "float32"}
        self.deviation = self._bank(len(self.tasks), (num_experts,), "deviation", **options) if noise else None

    def _build_states(self, width: int) -> tuple[int | None, ...]:
        if self.deviation is not None:
            self.deviation.build((None, width))
        return super()._build_states(width)

    def selected(self, scores: Any) -> Any:
        """Whether each expert is among the `top_k` of scores (N, K, E); bool of that shape, `top_k` true in each row."""
        # Counts the better experts instead of ops.top_k, in which the backends break ties differently.
        index = ops.arange(self.num_experts, dtype="int32")
        mine, other = ops.expand_dims(scores, -1), ops.expand_dims(scores, -2)
        tied_before = ops.logical_and(other == mine, (index[None, :] < index[:, None])[None, None])
        ahead = ops.sum(ops.cast(ops.logical_or(other > mine, tied_before), "int32"), axis=-1)
        return ahead < self.top_k

    def _weights(self, x: Any, training: bool | None) -> Any:
        scores = self.gates(x)
        if training and self.deviation is not None:
            draw = keras.random.normal(ops.shape(scores), dtype="float32", seed=self.seed_generator)
            scores = scores + draw * self.deviation(x)
        chosen = self.selected(scores)
        if training and self.balance > 0:
            refuse_replicas("balance", "it is no sum over the parts of a batch; set balance=0", always=True)
            share = ops.mean(ops.cast(chosen, "float32"), axis=0)
            probability = ops.mean(ops.softmax(scores, axis=-1), axis=0)
            balance = ops.mean(ops.sum(share * probability, axis=-1)) * (self.num_experts / self.top_k)
            self.add_loss(self.balance * balance)
        return ops.where(chosen, ops.softmax(ops.where(chosen, scores, -1e30), axis=-1), 0.0)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "top_k": self.top_k, "noise": self.noise, "balance": self.balance}
        del config["gate_dropout"], config["renormalise"]
        return config
