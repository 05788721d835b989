"""Mixtures of experts with one gate per task: dense and sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.multi_task.multi_task import MultiTask


@keras.saving.register_keras_serializable(package="keras_ranking")
class MMoE(MultiTask):
    """Multi-gate mixture of experts.

        g_k = dropout(softmax(x G_k))                                       (E,), task k = 1..K
        logit_k = tower_k( sum_e g_k[e] expert_e(x) )

    LiRank (2402.06859): +1.19 % contributions over hard sharing, 3 to 10 times the parameters (stated). Dropout on the
    gates after the softmax, against the collapse onto one expert, is stated for Feed-SR. The remaining gates are divided by
    1 - rate, as in any dropout, and not normalised again, so they sum to 1 only in the mean. With `renormalise=True`
    they sum to 1 in each draw (if all gates are dropped: the softmax without dropout). Numbers, widths and rate are our choice.

    Args:
        tasks, tower, activation, dropout: K task names; hidden widths of each tower; activation and dropout of all MLPs.
        num_experts: E.
        expert: widths of each expert.
        gate_dropout: rate at which a gate is dropped, in training.
        renormalise: divide the remaining gates by their sum.
        seed: of the gates' dropout.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        dict, task -> float32 logit (B, ...).

    Raises:
        ValueError: see `SharedBottom`; `num_experts` below 1, or `gate_dropout` outside [0, 1).

    Example:
        >>> kr.layers.MMoE(["click", "like"], num_experts=3)(np.ones((2, 5, 8), "float32"))["like"].shape
        (2, 5)
    """

    def __init__(
        self,
        tasks: Sequence[str],
        num_experts: int = 4,
        expert: Sequence[int] = (128,),
        gate_dropout: float = 0.0,
        renormalise: bool = False,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(tasks, **settings)
        if num_experts < 1:
            raise ValueError(f"`num_experts` must be a positive integer. Received: num_experts={num_experts}")
        if not 0 <= gate_dropout < 1:
            raise ValueError(f"`gate_dropout` must be in [0, 1). Received: gate_dropout={gate_dropout}")
        self.num_experts, self.gate_dropout, self.renormalise, self.seed = num_experts, float(gate_dropout), renormalise, seed
        self.experts = self._bank(num_experts, expert, "experts")
        # Gates in float32 under every dtype policy: they cost little, and rounding would change which experts are chosen.
        self.gates = self._bank(len(self.tasks), (num_experts,), "gates", last_activation="linear", use_bias=False, dtype="float32")
        self.seed_generator = keras.random.SeedGenerator(seed)

    def _build_states(self, width: int) -> tuple[int | None, ...]:
        self.experts.build((None, width))
        self.gates.build((None, width))
        return (None, len(self.tasks), self.experts.widths[-1])

    def _weights(self, x: Any, training: bool | None) -> Any:
        """Gates, float32 (N, K, E)."""
        gates = ops.softmax(self.gates(x), axis=-1)
        if not training or self.gate_dropout == 0.0:
            return gates
        kept = keras.random.dropout(gates, self.gate_dropout, seed=self.seed_generator)
        if not self.renormalise:
            return kept
        total = ops.sum(kept, axis=-1, keepdims=True)
        return ops.where(total > 0, kept / ops.where(total > 0, total, 1.0), gates)

    def _states(self, x: Any, training: bool | None) -> Any:
        experts = self.experts(x, training=training)
        return ops.matmul(ops.cast(self._weights(x, training), experts.dtype), experts)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "expert": list(self.experts.widths),
            "gate_dropout": self.gate_dropout,
            "renormalise": self.renormalise,
            "seed": self.seed,
        }


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
        tasks, tower, activation, dropout, num_experts, expert, seed: see `MMoE`.
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
            share = ops.mean(ops.cast(chosen, "float32"), axis=0)
            probability = ops.mean(ops.softmax(scores, axis=-1), axis=0)
            balance = ops.mean(ops.sum(share * probability, axis=-1)) * (self.num_experts / self.top_k)
            self.add_loss(self.balance * balance)
        return ops.where(chosen, ops.softmax(ops.where(chosen, scores, -1e30), axis=-1), 0.0)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "top_k": self.top_k, "noise": self.noise, "balance": self.balance}
        del config["gate_dropout"], config["renormalise"]
        return config
