"""A mixture of experts with one gate per task."""

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
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of all MLPs and, of
            kernels, the gates.
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
