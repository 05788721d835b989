"""LiGR: a transformer ranker of few features, gated blocks and set-wise attention (LinkedIn, 2502.03417)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.configuration import as_arguments, gather
from keras_ranking.models.amortized_history import AmortizedHistory
from keras_ranking.models.configuration import Calibration, Choice, Features, GatedBlocks, Interaction, Numbers, Past, Setwise, TaskHeads
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.task_logits import TaskLogits
from keras_ranking.models.wiring import Tensors, builder, policy_name, task_names, without_prefix
from keras_ranking.schema import Schema

_CONFIGURATION = (GatedBlocks, Setwise, Features, TaskHeads, Past, Numbers, Choice)


@builder(*_CONFIGURATION)
def LiGR(
    schema: Schema,
    *configuration: GatedBlocks | Setwise | Features | TaskHeads | Past | Numbers | Choice,
    tasks: Sequence[str] | None = None,
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "ligr",
    **options: Any,
) -> RankingModel:
    """Gated blocks over history and candidates, then gated blocks over the best of the list.

        c_n    = candidate's token, h_j = item and action of a past event
        u_n    = LN(LiGRBlock^num_layers(h, c))            a candidate sees the history and itself, the history once for all
        s_n    = head([u_n ; p_n])                         point-wise logits; p_n: what `Past` reads, if it reads anything
        v_n    = SetwiseAttention(u)_n, t_n = set head([v_n ; p_n])    for the `top_k` items of the request with the highest s
        logit  = t_n for these, s_n for all others (merge='replace');    s_n + t_n for these ('add')

    LiGR was withdrawn by its authors; no figure of it is used. Form, second-hand: gates read from the un-normalised stream, SwiGLU,
    a history that is processed once, set-wise attention within a session after it, on about ten items, multi-task heads.
    Everything else, such as how logits are merged, is ours. Both logits are trained, the point-wise one by
    `pointwise_weight` times the same loss, so both are probabilities of the same event; merged lists are in order of them.

    It is trained on requests (`PackedRequests`). No label, position or action of the request itself is an input of its scores, so
    set-wise training cannot leak. `history_mask='sessions'` hides events of one session from each other; from a candidate
    what is younger than `delay` is hidden, so it sees older events of its own session.

    Args:
        schema: the log's columns. Inputs are named by it.
        configuration: objects of `GatedBlocks`, `Setwise`, `Features`, `TaskHeads` (of each of the two logits), `Past`, `Numbers` and
            `Choice` (of both logits, with one logit of no choice), each at most once.
        tasks: names of the tasks to predict; None: all.
        dropout: rate in blocks and heads.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.
        options: fields of these classes one by one: `dim=32` is `GatedBlocks(dim=32)`.

    Returns:
        A `RankingModel` of form 'requests'.

    Raises:
        ValueError: an unknown task, column or option value, an after-scoring column as an input, impossible sizes.
        TypeError: an unknown option, or one that is given twice.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> blocks = kr.models.GatedBlocks(dim=16, num_layers=1, num_heads=2, max_history=8)
        >>> model = kr.models.LiGR(log.schema.fit(log.events), blocks, top_k=None)
        >>> model.form
        'requests'
    """
    blocks, setwise, features, heads, past, numbers, choice = gather(LiGR, _CONFIGURATION, configuration, options)
    names, dtype, dropout = task_names(schema, tasks), policy_name(dtype), float(dropout)
    blocks, setwise = blocks.of(schema), setwise.of(names)
    features = features.of(schema, reads_history=True, id_dim=16)
    if features.list_pooling:
        raise ValueError(
            f"`list_pooling` is not for LiGR, whose `setwise_layers` read the list. Received: list_pooling={features.list_pooling}"
        )
    past = past.of(schema, features.history_features or (), "history_features")
    numbers = numbers.of(schema, *features.read(schema))
    heads, choice = heads.of(names, head=heads.head or "grouped"), choice.of(names)
    arguments = as_arguments(blocks, setwise, features, heads) | {"tasks": names, "dropout": dropout, "dtype": dtype}
    for option in ("shared_tables", "batch_norm_momentum"):  # written where they are chosen, as checkpoints of earlier versions have it
        if arguments[option] == as_arguments(Features().of(schema, True, 16))[option]:
            del arguments[option]
    arguments |= past.arguments() | choice.arguments() | (as_arguments(numbers) if numbers.embeds else {})
    wiring = LigrWiring(schema, blocks, setwise, features, numbers, heads, past, choice, names, dropout, dtype)
    return RankingModel(wiring, "LiGR", schema, arguments, name=name)


class LigrWiring(AmortizedHistory):
    """An amortised history over whole candidates, in gated blocks, and the set-wise part on their states."""

    def __init__(
        self,
        schema: Schema,
        blocks: GatedBlocks,
        setwise: Setwise,
        features: Features,
        numbers: Numbers,
        heads: TaskHeads,
        past: Past,
        choice: Choice,
        tasks: Sequence[str],
        dropout: float,
        dtype: str,
    ) -> None:
        encoder = {"max_history": blocks.max_history, "dropout": dropout, **blocks.encoder_options()}
        super().__init__(schema, features, numbers, encoder, blocks.delay or 0, (), past, choice, dtype)
        self.tasks, self.setwise = tasks, setwise
        # Made for its head. Its MLP takes part in no graph: it is made since weights at a fixed seed depend on what was made before.
        mlp = Interaction().of(cross="none", gate=None, shared_trunk=True)
        self.logits = TaskLogits(schema, mlp, heads, Calibration(calibration=False), tasks, {}, (), dropout, dtype)
        self.make_steps()
        policy: dict[str, Any] = {"dtype": dtype}
        options = {"ffn_multiple": blocks.ffn_multiple, "dropout": dropout, **policy}
        if self.history is None:
            # Without a history a candidate's blocks see the candidate alone.
            self.token = keras.layers.Dense(blocks.dim, name="token", **policy)
            head_dim = blocks.dim // blocks.num_heads
            own = {"rotary": None, **options, **blocks.block_options}
            self.alone = [layers.LiGRBlock(blocks.num_heads, head_dim, **own, name=f"block_{i}") for i in range(blocks.num_layers)]
            self.norm_alone = keras.layers.LayerNormalization(epsilon=1e-6, name="norm", **policy)
            self.alone_spans = layers.AloneSpans(name="alone_spans")
        self.sets: Any = None
        if setwise.setwise_layers:
            sizes: dict[str, Any] = {"num_layers": setwise.setwise_layers, "num_heads": blocks.num_heads, "top_k": setwise.top_k}
            further: dict[str, Any] = {"block_options": blocks.block_options} if blocks.block_options != blocks.gates else {}
            self.sets = layers.SetwiseAttention(**sizes, **blocks.gates, **further, name="setwise", **options)
            self.set_norm = keras.layers.LayerNormalization(epsilon=1e-6, name="set_norm", **policy)
            kind: Any = heads.head
            of_head = {"dropout": dropout, **({"groups": heads.groups} if heads.head == "grouped" else {}), **(heads.head_options or {})}
            self.set_head = layers.MultiTaskHead(kind, tasks, name="set_head", **policy, **of_head)
            self.slots = layers.OneSet(name="one_set")

    @property
    def auxiliary(self) -> dict[str, tuple[str, float]]:
        """Outputs of the training graph that are trained next to the tasks: name -> (task, weight of its loss)."""
        weight = self.setwise.pointwise_weight
        return {f"{task}_pointwise": (task, weight) for task in self.tasks} if self.sets is not None and weight else {}

    def candidate_inputs(self) -> Tensors:
        inputs = super().candidate_inputs()
        if self.sets is not None and "candidate_count" not in inputs:
            inputs["candidate_count"] = keras.Input((), dtype="int32", name="candidate_count")
        return inputs

    # -- the three graphs --------------------------------------------------------------------------------------------------

    def row(self, inputs: Tensors) -> Tensors:
        inputs = self._at_slots(inputs)
        slot = inputs["request_slot"]
        alone = self.history is None
        states, past = (self._alone(without_prefix(inputs, "candidate_"), slot), []) if alone else self._read_packed(inputs)
        logits, first = self._merged(states, past, slot, whole=False)
        named = {**logits, **({f"{task}_pointwise": value for task, value in first.items()} if self.auxiliary else {})}
        return {name: ops.expand_dims(value, -1) for name, value in named.items()}

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        candidates = self.members.at_candidates(candidates)
        columns = {name.removeprefix("candidate_"): x for name, x in candidates.items()}
        states, past = (self._alone(columns), []) if self.history is None else self._read(cache, candidates, columns)
        slot = None if self.sets is None else self.slots(states, count=candidates["candidate_count"])
        slot = self.one_list(states, count=candidates["candidate_count"]) if slot is None and self.choices.tasks else slot
        return {task: ops.expand_dims(value, -1) for task, value in self._merged(states, past, slot, whole=True)[0].items()}

    def last_inputs(self, inputs: Tensors) -> Tensors:
        raise ValueError("LiGR has no posterior of its last layer.")

    def _candidate_token(self, columns: Tensors, real: Any = None) -> Any:
        """All features of a candidate: blocks read these against the history."""
        return self._joined(self._features(columns, real))

    def _alone(self, columns: Tensors, real: Any = None) -> Any:
        """States of candidates without a history, (B, N, D)."""
        x = self.token(self._candidate_token(columns, real))
        spans = self.alone_spans(x)
        for block in self.alone:
            x = block(x, spans=tuple(spans))
        return self.norm_alone(x)

    def _merged(self, states: Any, past: list[Any], slot: Any, whole: bool) -> tuple[Tensors, Tensors]:
        """Logits (B, N) by task, and point-wise ones."""
        first: Any = self._plus(self.logits.head(self._joined([states, *past])), past)
        if self.sets is None:
            return (self.choices(first, slot),) * 2
        moved, chosen = self.sets(states, slot=slot, score=ops.stop_gradient(first[self.setwise.choose_by]), whole=whole)
        second = self.set_head(self._joined([self.set_norm(moved), *past]))
        if self.setwise.merge == "replace":  # else the point-wise logit has it
            second = self._plus(second, past)
        merged = {}
        for task, logit in first.items():
            best = second[task] + logit if self.setwise.merge == "add" else second[task]
            merged[task] = ops.where(chosen > 0, best, logit)
        return self.choices(merged, slot), self.choices(first, slot)

    def _plus(self, logits: Tensors, past: list[Any]) -> Tensors:
        """Logits (B, N) with what the past adds to them."""
        return logits if self.reader is None else self.reader.plus(logits, past)
