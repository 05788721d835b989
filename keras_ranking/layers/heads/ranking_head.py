"""The prediction heads of Feed-SR: deep and cross networks, a mixture of them, or simpler ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules
from keras_ranking.layers.interaction.dcn import ParallelDCN, StackedDCN
from keras_ranking.layers.interaction.gated_mlp import GatedMLP

HEADS = ("parallel_dcn", "stacked_dcn", "mmoe", "mlp", "linear")


@keras.saving.register_keras_serializable(package="keras_ranking")
class RankingHead(PassesMask, WeightRules, keras.layers.Layer):
    """A logit for every task from a state h, by one of five heads.

    | `kind`           | r_g                                                         | z_k = w_k . r_g(k) + b_k |
    |------------------|-------------------------------------------------------------|--------------------------|
    | `'parallel_dcn'` | [cross_g(h) ; mlp_g(h)]                                     | default of version 2     |
    | `'stacked_dcn'`  | mlp_g(cross_g(h))                                           | -0.27 % long dwell AUC   |
    | `'mmoe'`         | sum_e drop(softmax(G_g h))[e] [cross_e(h) ; mlp_e(h)]       | -0.16 %; version 1's     |
    | `'mlp'`          | mlp_g(h)                                                    | -0.13 %                  |
    | `'linear'`       | h                                                           | -1.20 %                  |

    Feed-SR (2602.12354): all five heads, and the differences to the first, are stated for its second version; in the first version the
    mixture was best. Also stated: experts are shared; there is one gate for passive (click, skip, long dwell) and one for active (like,
    comment, share) tasks; dropout on the gates after the softmax prevents the collapse onto one expert. Widths, numbers, the rate, bodies
    shared within groups, and parallel experts are our choice.

    Args:
        kind: see the table.
        tasks: K names, each once.
        groups: dict, group name -> its tasks, each task in one group. None: all tasks share one body, and with 'mmoe' each task
            has its own gate.
        hidden: widths of the MLPs.
        num_layers, rank: of the cross nets, see `LowRankCross`; `rank=None`: full matrices.
        num_experts, gate_dropout, seed: of 'mmoe'; gates sum to 1 only in the mean after dropout, as in `MMoE`.
        activation, dropout: of the MLPs.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of all maps.

    Call arguments:
        inputs: h (B, ..., C).

    Output:
        dict, task -> float32 logit (B, ...), under every dtype policy.

    Raises:
        ValueError: an unknown kind, no tasks or one twice, groups that do not hold each task once, a rate outside [0, 1), sizes below 1.

    Example:
        >>> kr.layers.RankingHead("mmoe", ["click", "like"], hidden=[8], num_experts=2)(np.ones((2, 5, 6), "float32"))["like"].shape
        (2, 5)
    """

    def __init__(
        self,
        kind: str,
        tasks: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None = None,
        hidden: Sequence[int] = (128, 64),
        num_layers: int = 2,
        rank: int | None = None,
        num_experts: int = 4,
        gate_dropout: float = 0.1,
        activation: str = "silu",
        dropout: float = 0.0,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if kind not in HEADS:
            raise ValueError(f"`kind` must be one of {HEADS}. Received: kind={kind!r}")
        if isinstance(tasks, str) or not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"`tasks` must be one or more names, each once. Received: tasks={tasks!r}")
        if groups is not None and (sorted(t for held in groups.values() for t in held) != sorted(tasks) or not all(groups.values())):
            raise ValueError(f"`groups` must hold each of {list(tasks)} once, and no empty group. Received: groups={dict(groups)}")
        if num_experts < 1 or not 0 <= gate_dropout < 1:
            received = f"num_experts={num_experts}, gate_dropout={gate_dropout}"
            raise ValueError(f"`num_experts` must be a positive integer and `gate_dropout` in [0, 1). Received: {received}")
        self.kind, self.tasks = kind, tuple(tasks)
        self.groups = None if groups is None else {name: list(held) for name, held in groups.items()}
        self.hidden, self.num_layers, self.rank = tuple(int(width) for width in hidden), int(num_layers), rank
        self.num_experts, self.gate_dropout, self.seed = int(num_experts), float(gate_dropout), seed
        self.activation, self.dropout_rate = activation, float(dropout)
        shared = {"all": list(self.tasks)}
        alone = {task: [task] for task in self.tasks}
        parts = self.groups or (alone if kind == "mmoe" else shared)
        self.owner = {task: name for name, held in parts.items() for task in held}
        self.bodies: dict[str, Any] = {}
        self.gates: dict[str, Any] = {}
        if kind == "mmoe":
            self.bodies = {str(e): self._body("parallel_dcn", f"expert_{e}") for e in range(self.num_experts)}
            # Gates in float32 under every dtype policy: rounding would change which experts are used.
            self.gates = {name: self.dense(num_experts, use_bias=False, dtype="float32", name=f"gate_{name}") for name in parts}
        elif kind != "linear":
            self.bodies = {name: self._body(kind, f"body_{name}") for name in parts}
        # A sum over tasks uses the probabilities: logits stay in float32 under every dtype policy.
        self.last = {task: self.dense(1, dtype="float32", name=f"logit_{task}") for task in self.tasks}
        self.seed_generator = keras.random.SeedGenerator(seed)

    def _body(self, kind: str, name: str) -> Any:
        options: dict[str, Any] = {"activation": self.activation, "dropout": self.dropout_rate, "dtype": self.dtype_policy, "name": name}
        options |= self.rules(GatedMLP)  # those of a cross net are the same
        if kind == "mlp":
            return GatedMLP(self.hidden, gate=None, **options)
        made = ParallelDCN if kind == "parallel_dcn" else StackedDCN
        return made(self.rank, self.num_layers, hidden=self.hidden, **options)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(f"`inputs` must be (B, ..., C) with C known. Received: shape={tuple(input_shape)}")
        shape = tuple(input_shape)
        width = shape[-1]
        for body in self.bodies.values():
            body.build(shape)
            width = body.compute_output_shape(shape)[-1]
        for gate in self.gates.values():
            gate.build(shape)
        for last in self.last.values():
            last.build((*shape[:-1], width))
        self.built = True

    def _mixtures(self, x: Any, training: bool | None) -> dict[str, Any]:
        experts = ops.stack([body(x, training=training) for body in self.bodies.values()], axis=-2)
        mixed = {}
        for name, gate in self.gates.items():
            weights = ops.softmax(gate(x), axis=-1)
            if training and self.gate_dropout:
                weights = keras.random.dropout(weights, self.gate_dropout, seed=self.seed_generator)
            mixed[name] = ops.sum(ops.expand_dims(ops.cast(weights, experts.dtype), -1) * experts, axis=-2)
        return mixed

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.kind == "mmoe":
            states = self._mixtures(inputs, training)
        elif self.kind == "linear":
            states = dict.fromkeys(self.owner.values(), inputs)
        else:
            states = {name: body(inputs, training=training) for name, body in self.bodies.items()}
        return {task: ops.squeeze(self.last[task](states[self.owner[task]]), -1) for task in self.tasks}

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return {task: keras.KerasTensor(tuple(inputs.shape)[:-1], dtype="float32") for task in self.tasks}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "tasks": list(self.tasks),
            "groups": self.groups,
            "hidden": list(self.hidden),
            "num_layers": self.num_layers,
            "rank": self.rank,
            "num_experts": self.num_experts,
            "gate_dropout": self.gate_dropout,
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "seed": self.seed,
        }
