"""FeedSR: a sequential ranker of posts, one transformer over a member's impressions (LinkedIn, 2602.12354)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from keras_ranking import layers
from keras_ranking.models._sequence import SequenceParts, of_trunk, sequence_arguments
from keras_ranking.models.ranking_model import RankingModel, Tensors, builder
from keras_ranking.schema import Schema


@builder
def FeedSR(
    schema: Schema,
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    ffn_multiple: float = 4.0,
    layout: str = "interleaved",
    action_masking: float = 0.0,
    mask: str = "delay",
    delay: int | None = None,
    session_gap: int = 1800,
    max_history: int | None = None,
    gates: str | Sequence[str] = "none",
    gate_bias: float = 2.0,
    residual: str = "scalar",
    residual_initial: float | None = None,
    rotate_by: str | None = "index",
    rotary: Sequence[float] | None = (8.0, 15_552_000.0),
    rotary_base: float = 10_000.0,
    shared_index: bool = True,
    head: str = "parallel_dcn",
    head_options: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    position_offsets: int | None = None,
    offset_scale: float = 10.0,
    beyond: str = "clip",
    serving_position: int = 5,
    token_features: Sequence[str] | None = None,
    late_features: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    id_dim: int = 16,
    token_hidden: int | None = None,
    action_hidden: int | None = 64,
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "feedsr",
    sampled_delay: bool = False,
) -> RankingModel:
    """A causal transformer over a member's impressions, read at the posts; context joins late, one head has all tasks.

        tokens = x_1, a_1, x_2, a_2, ...                    post and action of every impression           (layout 'interleaved')
        Y      = RescaleAndAdd(X, W_o softmax(R(Q) R(K)^T / sqrt(d_h) + spans) V),   Q, K, V of LN(X)
        X'     = RescaleAndAdd(Y, FFN(LN(Y)))                                        num_layers times
        h_t    = [LN(X at post t) ; late context features of t]
        z_tk   = head_k(h_t);   p_tk(position) = sigmoid(z_tk + o_k[position])

    Marks: *stated* = in the paper as digests of its two versions quote it; *choice* = the paper's value is not known.

    Args:
        schema: the log's columns. Inputs are named by it.
        dim, num_layers, num_heads, num_kv_heads, ffn_multiple: size of the trunk. Choice (sibling code: 512, 12, 4, -, 4).
        layout: 'interleaved' (stated), 'fused' or 'value': see `TokenSpans`. The last two halve what is cached of a history, 'value' the
            tokens of a row too. action_masking: with 'fused', see `FuseActions`.
        mask: which events a post sees, in training and serving alike: 'delay' (choice: actions were known by then), 'session': none of
            its own session (stated as one of two remedies against leakage inside sessions), 'causal': all older ones, which
            flatters training. Posts of one request never see each other. See `EventSpans`, also for events in random order inside
            sessions, the remedy that was adopted: move what happened between slots of a session and leave times where they are;
            'causal' and 'session' also read times that do not rise inside a session.
        delay: seconds; None: the schema's `feedback_delay`, and no less. session_gap: seconds that end a session, at least `delay`.
        max_history: latest visible events that an event or candidate sees in each block (stated: 1000 are read); None: all. 0: the model
            without a past. No limit for what a request may hold, see `CADET`.
        gates: gates on attention's inputs, as in `CADET`: 'none' (stated: none), 'representation', 'qk', 'all', 'output', or a list.
        gate_bias: their initial bias.
        residual, residual_initial: kind and start of `RescaleAndAdd`: 'scalar' (stated; 0.1 of sibling code), 'layer_scale', 'rezero',
            'dense_gate' (all stated to train), 'plain'.
        rotate_by: 'index' (stated: RoPE), 'time', 'split' (half of the heads each) or None (-0.91 % long dwell AUC, stated). The index of
            an event is the number of events it sees, see `SequenceParts`. rotary: (shortest, longest) seconds of the rotation by
            time; rotary_base: of the one by index; shared_index: post and action share an index, or are neighbours. Choice.
        head, head_options, groups: `RankingHead`: 'parallel_dcn' (stated, version 2), 'mmoe' (version 1), 'stacked_dcn', 'mlp',
            'linear'; its sizes; tasks with a body (with 'mmoe' a gate) of their own, such as {"passive": ["click"], "active": ["like"]}.
        position_offsets: P, top positions with a learned offset of each logit (stated: 60), see `PositionOffset`; 0: none. None: 60 where
            the schema has a position. beyond: of positions below these, 'clip' or 'zero'. serving_position: position at which
            everything is scored (stated: 5). Position is no input: training compares the logit at the position shown. offset_scale:
            how many times faster offsets move than other weights (our choice), see `PositionOffset`.
        token_features: columns in the tokens of events and candidates (early fusion); None: all with known='item'.
        late_features: columns that join at the head (late fusion, stated for context); None: all with known='context'. A `Vector` (an
            embedding of the post or of the member's profile) may be in either.
        tasks: names of the tasks to predict; None: all.
        id_dim: width of id embeddings. token_hidden, action_hidden: hidden widths of the token MLPs. Choice.
        dropout: rate in blocks and head, in training.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.
        sampled_delay: rows have an input `delay` (B, T): each event sees what is older than its own delay, as training draws it from the
            log's (`TrainingOptions.delay_column`; our choice). Serving, and figures offline, go by `delay`.

    Returns:
        A `RankingModel` of form 'rows'.

    Raises:
        ValueError: an unknown task, column or option, an after-scoring column as an input, impossible sizes.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.FeedSR(log.schema.fit(log.events), dim=16, num_layers=1, num_heads=2)
        >>> model.compile(optimizer="adam", loss=model.losses_by_task())
    """
    if position_offsets is None:
        position_offsets = 60 if schema.position is not None else 0
    if position_offsets < 0 or (position_offsets and schema.position is None):
        received = f"position_offsets={position_offsets}, position={schema.position!r}"
        raise ValueError(f"`position_offsets` must not be negative, and need a schema with a position. Received: {received}")
    if position_offsets and not 1 <= serving_position <= position_offsets:
        raise ValueError(f"`serving_position` must be from 1 to {position_offsets}. Received: serving_position={serving_position}")
    arguments: dict[str, Any] = {
        **sequence_arguments(schema, **of_trunk(locals())),
        "head": head,
        "head_options": {option: list(value) if isinstance(value, tuple) else value for option, value in (head_options or {}).items()},
        "groups": None if groups is None else {group: list(held) for group, held in groups.items()},
        "position_offsets": int(position_offsets),
        "offset_scale": offset_scale,
        "beyond": beyond,
        "serving_position": int(serving_position),
    }
    return RankingModel(_FeedSRParts(schema, arguments), "FeedSR", schema, arguments, name=name)


class _FeedSRParts(SequenceParts):
    """The trunk, one head for all tasks, and offsets by position."""

    # Offsets explain what positions do to a logit, so items of different positions can be compared.
    loss_settings = {"same_bucket": False}
    # One score: its logits at all positions differ by constants.
    returns_towers = False

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        super().__init__(schema, arguments)
        a = arguments
        options = {"dropout": a["dropout"], **a["head_options"]}
        self.head = layers.RankingHead(a["head"], a["tasks"], groups=a["groups"], name="head", **self.policy, **options)
        self.offsets = {}
        if a["position_offsets"]:
            offset = {"positions": a["position_offsets"], "beyond": a["beyond"], "scale": a["offset_scale"], **self.policy}
            self.offsets = {task: layers.PositionOffset(name=f"offset_{task}", **offset) for task in a["tasks"]}
        self.boundaries = tuple(range(1, a["position_offsets"] + 1))
        self.serving_tower = a["serving_position"] - 1 if self.boundaries else 0

    def heads(self, hidden: Any, serving: bool) -> Tensors:
        logits = self.head(hidden)
        if not self.offsets:
            return {task: ops.expand_dims(logit, -1) for task, logit in logits.items()}
        return {task: self.offsets[task](logit) for task, logit in logits.items()}
