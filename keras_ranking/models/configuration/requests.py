"""Features, history encoders and cross nets of the models trained on requests: `LiRank`, `AmortizedDLRM` and `LiGR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from keras_ranking.layers.interaction.dcn import CROSSES
from keras_ranking.models.configuration.sequence import OF_MODEL, told_by
from keras_ranking.schema import Schema

_MERGES = ("replace", "add")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is read of a candidate and of past events, and how.

    Attributes:
        features: columns of the candidate; None: all with known='item', 'context' or 'member'.
        history_features: columns of past events that are read, next to all actions of the schema; None: those known='item' where the
            model's preset reads a history and the schema has actions; (): no history.
        id_dim: width of id embeddings; None: 30 (LiRank's feed ranker: stated), 16 for `LiGR`.
        action_dim: width of the embedding of what was done with an event. Choice.
        shared_tables: table name -> the id and category columns that share it (LiRank's jobs ranker: five tables, stated).
        batch_norm: batch normalisation of the candidate's numbers (stated for LiRank), frozen at scoring.
        batch_norm_momentum: of its running moments.
        list_context: next to each number of a candidate also its difference to the mean and the maximum of the request, its rank in it, and
            the size of the request, see `ListContext`. A candidate's score then depends on the others of its request. Choice.
        list_pooling: width of a state of each candidate, made of all that is joined of it, that reads the mean and the maximum of the
            states of its request, see `ListPooling`, and joins the trunk's inputs; 0: none. A candidate's score then depends on the
            others of its request. Not for `LiGR`, which has set-wise blocks. Choice.
        id_dropout: rate at which numbers of the embeddings of ids and categories are dropped in training. Choice.

    Raises:
        ValueError: a negative width, or a rate out of range.

    Example:
        >>> kr.models.Features(features=("topic", "age_hours"), history_features=()).batch_norm
        True
    """

    features: Sequence[str] | None = None
    history_features: Sequence[str] | None = None
    id_dim: int | None = None
    action_dim: int = 16
    shared_tables: Mapping[str, Sequence[str]] | None = None
    batch_norm: bool = True
    batch_norm_momentum: float = 0.95
    list_context: bool = False
    list_pooling: int = 0
    id_dropout: float = 0.0

    NEWER: ClassVar[tuple[str, ...]] = ("list_context", "list_pooling", "id_dropout")

    def __post_init__(self) -> None:
        if self.list_pooling < 0:
            raise ValueError(f"`list_pooling` must be a positive width, or 0. Received: list_pooling={self.list_pooling}")
        if not 0 <= self.id_dropout < 1:
            raise ValueError(f"`id_dropout` must be from 0 to below 1. Received: id_dropout={self.id_dropout}")

    def of(self, schema: Schema, reads_history: bool, id_dim: int) -> Features:
        """The same with columns written out.

        Raises:
            ValueError: a history without actions, or of columns that are not known with the item.
        """
        past = self.history_features
        if past is None:
            past = [feature.name for feature in schema.features_known("item")] if reads_history and schema.actions else []
        elif past and not schema.actions:
            raise ValueError("`history_features` need at least one action in the schema. Received: actions=()")
        for feature in schema.inputs(past):
            if feature.known != "item":
                raise ValueError(f"`history_features` must be known='item'. Received: '{feature.name}', known='{feature.known}'")
        return replace(
            self,
            features=[feature.name for feature in schema.inputs(self.features)],
            history_features=list(past),
            id_dim=id_dim if self.id_dim is None else int(self.id_dim),
            action_dim=int(self.action_dim),
            shared_tables={table: list(columns) for table, columns in (self.shared_tables or {}).items()},
            batch_norm=bool(self.batch_norm),
            batch_norm_momentum=float(self.batch_norm_momentum),
            list_context=bool(self.list_context),
            list_pooling=int(self.list_pooling),
            id_dropout=float(self.id_dropout),
        )

    def read(self, schema: Schema) -> tuple[list[str], list[str], list[str]]:
        """Names of the columns of a candidate, of past events, and of their actions, once columns are written out."""
        past = list(self.history_features or ())
        return list(self.features or ()), past, [action.name for action in schema.actions] if past else []


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The trunk of a point-wise ranker: a cross net in parallel with a gated MLP.

    Attributes:
        cross: 'residual', 'low_rank' or 'attention', or 'none': the MLP alone; None: the preset's. 'model': the preset's for `LiRank`,
            'low_rank' for `AmortizedDLRM`.
        rank: of the cross layers; None: full matrices.
        cross_layers: number of cross layers (2: stated).
        cross_options: further arguments of the cross layers.
        hidden: widths of the MLP (4 x 100 before the large one, 4 x 3500 the largest: stated).
        gate: 'dense' or None: gates of the MLP's layers; 'preset': the preset's.
        gate_rank: rank of the gates' matrices; 'auto': see `DenseGate`; None: full.
        shared_trunk: one trunk for all tasks, or one a group with a linear logit for each task; None: the preset's.

    Raises:
        ValueError: an unknown cross net.

    Example:
        >>> kr.models.Interaction(cross="residual", rank=16, hidden=(256, 128)).cross_layers
        2
    """

    cross: str | None = OF_MODEL
    rank: int | None = 32
    cross_layers: int = 2
    cross_options: Mapping[str, Any] | None = None
    hidden: Sequence[int] = (100, 100, 100, 100)
    gate: str | None = "preset"
    gate_rank: int | str | None = "auto"
    shared_trunk: bool | None = None

    def __post_init__(self) -> None:
        if self.cross not in (None, OF_MODEL, *CROSSES, "none"):
            raise ValueError(f"`cross` must be of {(*CROSSES, 'none')}. Received: cross={self.cross!r}")

    def of(self, *, cross: str, gate: str | None, shared_trunk: bool, of_model: str | None = None) -> Interaction:
        """The same with the preset's values where none were chosen; `of_model` is the model's own cross net."""
        return replace(
            self,
            cross=cross if self.cross is None else (of_model or cross) if self.cross == OF_MODEL else self.cross,
            cross_options=dict(self.cross_options or {}),
            hidden=list(self.hidden),
            gate=gate if self.gate == "preset" else self.gate,
            shared_trunk=shared_trunk if self.shared_trunk is None else bool(self.shared_trunk),
        )


@dataclass(frozen=True, kw_only=True)
class History:
    """The history encoder of `LiRank`, which joins each candidate to every event ("TransAct").

    Attributes:
        max_history: latest visible events that are read (the paper's gains: 25, 50, 100).
        delay: seconds after which an event is visible; None: the schema's `feedback_delay`, and no less.
        history_options: further arguments of `HistoryEncoder`.

    Example:
        >>> kr.models.History(max_history=100, history_options={"latest": 5}).delay is None
        True
    """

    max_history: int = 50
    delay: int | None = None
    history_options: Mapping[str, Any] | None = None

    def of(self, schema: Schema) -> History:
        """The same with the delay written out."""
        return replace(
            self,
            max_history=int(self.max_history),
            delay=visible_after(schema, self.delay),
            history_options=dict(self.history_options or {}),
        )


@dataclass(frozen=True, kw_only=True)
class HistoryBlocks:
    """The history encoder of `AmortizedDLRM`: blocks that read the history once for all candidates.

    Attributes:
        fusion: 'append_cross' (stated), 'append_falcon': a candidate sees itself too, or, for comparison, 'concat': LiRank's encoder,
            which does not amortise, and 'append_self', which is wrong for more than one candidate; or 'convolution': filters over time
            and one weighting by the candidate, without blocks; see `HistoryEncoder`.
        dim, num_layers, num_heads, ffn_multiple: size of the encoder. Choice.
        max_history: latest visible events that are read.
        delay: seconds after which an event is visible; None: the schema's `feedback_delay`, and no less.
        history_mask: 'bidirectional': past events see each other both ways, and a cache holds for one request time. 'causal' or
            'sessions', without `pool` and `latest`: a cache serves later requests too, and `extend` adds events to it. `encode` then
            does not read the time of a request and keeps the latest `max_history` events of all that it is given: give it those that
            are visible. A request in one piece reads the latest visible ones.
        session_gap: seconds without an event that end a session, where sessions are told by it.
        session_by: how history_mask='sessions' tells sessions: 'column': by the ids in the schema's session column; 'gap': by pauses.
            None: 'column' where the schema names one.
        pool, latest: parts of the encoded history that join next to the candidate's own state, see `HistoryEncoder`.
        rotary: (shortest, longest) period of the rotation by time, in seconds; None: no rotation.
        rotate_by: 'time' or 'index'. `convolution` has no rotation.
        widths, over_time: of the filters of `convolution`, and how it pools.

    Raises:
        ValueError: `pool` or a mask with fusion='concat'; `latest` or a mask with 'convolution'.

    Example:
        >>> kr.models.HistoryBlocks(dim=32, max_history=200, history_mask="causal").num_layers
        2
    """

    NEWER: ClassVar[tuple[str, ...]] = ("session_by", "widths", "over_time")

    fusion: str = "append_cross"
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    ffn_multiple: float = 2.0
    max_history: int = 100
    delay: int | None = None
    history_mask: str = "bidirectional"
    session_gap: int = 1800
    session_by: str | None = None
    pool: bool = False
    latest: int = 0
    rotary: Sequence[float] | None = (8.0, 15_552_000.0)
    rotate_by: str = "time"
    widths: Sequence[int] = (1, 3, 7)
    over_time: str = "max"

    def __post_init__(self) -> None:
        if self.fusion == "concat" and (self.pool or self.history_mask != "bidirectional"):
            received = f"pool={self.pool}, history_mask={self.history_mask!r}"
            raise ValueError(f"`pool` and `history_mask` are of an appended history; fusion='concat' always pools. Received: {received}")
        if self.fusion == "convolution" and (self.latest or self.history_mask != "bidirectional"):
            received = f"latest={self.latest}, history_mask={self.history_mask!r}"
            raise ValueError(f"`latest` and `history_mask` are of an appended history, not of fusion='convolution'. Received: {received}")

    def of(self, schema: Schema) -> HistoryBlocks:
        """The same with the delay written out."""
        return replace(
            self,
            dim=int(self.dim),
            num_layers=int(self.num_layers),
            num_heads=int(self.num_heads),
            ffn_multiple=float(self.ffn_multiple),
            max_history=int(self.max_history),
            delay=visible_after(schema, self.delay),
            session_gap=int(self.session_gap),
            session_by=told_by(self.session_by, schema, self.history_mask == "sessions"),
            pool=bool(self.pool),
            latest=int(self.latest),
            rotary=None if self.rotary is None or self.fusion == "convolution" else [float(end) for end in self.rotary],
            widths=tuple(int(width) for width in self.widths),
        )

    def encoder_options(self) -> dict[str, Any]:
        """Arguments of `HistoryEncoder`, but for `max_history` and `dropout`."""
        sizes = {name: getattr(self, name) for name in ("num_layers", "num_heads", "ffn_multiple", "rotary", "rotate_by", "latest")}
        if self.fusion == "concat":
            return {"fusion": "concat", **sizes, "projection": self.dim}
        if self.fusion == "convolution":
            return {name: getattr(self, name) for name in ("fusion", "dim", "pool", "widths", "over_time")}
        own = {name: getattr(self, name) for name in ("fusion", "dim", "history_mask", "session_gap", "pool")}
        return {**own, **sizes, "session_ids": self.session_by == "column"}


@dataclass(frozen=True, kw_only=True)
class GatedBlocks:
    """The gated blocks of `LiGR`, which read the history once and each candidate against it.

    Attributes:
        dim, num_layers, num_heads, ffn_multiple: size of the blocks. Choice.
        gate: gates on the residual sums, see `GatedResidual`; False: plain blocks.
        gate_bias: their initial bias.
        max_history: latest visible events that are read.
        delay: seconds after which an event is visible; None: the schema's `feedback_delay`, and no less.
        history_mask: 'sessions': a past event sees earlier sessions and itself, so events of one session do not see each other's
            labels; 'causal' or 'bidirectional', see `HistoryBlocks`.
        session_gap: seconds without an event that end a session, where sessions are told by it.
        session_by: how history_mask='sessions' tells sessions: 'column': by the ids in the schema's session column; 'gap': by pauses.
            None: 'column' where the schema names one.
        rotary: (shortest, longest) period of the rotation by time, in seconds; None: no rotation.
        rotate_by: 'time' or 'index'.
        qkv_bias, attention_dropout, ffn_bias, epsilon: of the `LiGRBlock`s, set-wise ones too. A public re-implementation has
            `qkv_bias=True`, `epsilon=1e-5` and dropped attention weights.

    Raises:
        ValueError: sizes that are not positive, heads that do not divide `dim`, or a rate out of range.

    Example:
        >>> kr.models.GatedBlocks(dim=128, num_heads=8).history_mask
        'sessions'
    """

    OF_BLOCKS: ClassVar[tuple[str, ...]] = ("qkv_bias", "attention_dropout", "ffn_bias", "epsilon")
    NEWER: ClassVar[tuple[str, ...]] = ("session_by", *OF_BLOCKS)

    dim: int = 64
    num_layers: int = 2
    num_heads: int = 4
    ffn_multiple: float = 4.0
    gate: bool = True
    gate_bias: float = 0.0
    max_history: int = 100
    delay: int | None = None
    history_mask: str = "sessions"
    session_gap: int = 1800
    session_by: str | None = None
    rotary: Sequence[float] | None = (8.0, 15_552_000.0)
    rotate_by: str = "time"
    qkv_bias: bool = False
    attention_dropout: float = 0.0
    ffn_bias: bool = False
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim < 1 or self.num_heads < 1 or self.dim % self.num_heads or self.num_layers < 1:
            raise ValueError(
                "`dim` must be a positive multiple of `num_heads`, and `num_layers` positive. "
                f"Received: dim={self.dim}, num_heads={self.num_heads}, num_layers={self.num_layers}"
            )
        if not 0 <= self.attention_dropout < 1 or self.epsilon <= 0:
            received = f"attention_dropout={self.attention_dropout}, epsilon={self.epsilon}"
            raise ValueError(f"`attention_dropout` must be from 0 to below 1, and `epsilon` positive. Received: {received}")

    def of(self, schema: Schema) -> GatedBlocks:
        """The same with the delay written out."""
        return replace(
            self,
            dim=int(self.dim),
            num_layers=int(self.num_layers),
            num_heads=int(self.num_heads),
            ffn_multiple=float(self.ffn_multiple),
            gate=bool(self.gate),
            gate_bias=float(self.gate_bias),
            max_history=int(self.max_history),
            delay=visible_after(schema, self.delay),
            session_gap=int(self.session_gap),
            session_by=told_by(self.session_by, schema, self.history_mask == "sessions"),
            rotary=None if self.rotary is None else [float(end) for end in self.rotary],
            qkv_bias=bool(self.qkv_bias),
            attention_dropout=float(self.attention_dropout),
            ffn_bias=bool(self.ffn_bias),
            epsilon=float(self.epsilon),
        )

    def encoder_options(self) -> dict[str, Any]:
        """Arguments of `HistoryEncoder`, but for `max_history` and `dropout`."""
        names = ("dim", "num_layers", "num_heads", "ffn_multiple", "history_mask", "session_gap", "rotary", "rotate_by")
        own = {name: getattr(self, name) for name in names}
        own["session_ids"] = self.session_by == "column"
        return {"fusion": "append_falcon", **own, "pool": False, "latest": 0, "block": "ligr", "block_options": self.block_options}

    @property
    def gates(self) -> dict[str, Any]:
        """The gates as arguments of a `LiGRBlock`."""
        return {"gate": self.gate, "gate_bias": self.gate_bias}

    @property
    def block_options(self) -> dict[str, Any]:
        """Gates and, where they were chosen, the newer options, as arguments of a `LiGRBlock`."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name in self.OF_BLOCKS}
        return {**self.gates, **{name: value for name, value in kept.items() if value != getattr(GatedBlocks, name)}}


@dataclass(frozen=True, kw_only=True)
class Setwise:
    """The set-wise part of `LiGR`: gated blocks in which the best items of a request see each other.

    Attributes:
        setwise_layers: number of blocks; 0: none, every candidate is scored alone.
        top_k: how many items of each request see each other (about ten: stated second-hand); None: all.
        choose_by: task whose point-wise logit chooses them; None: the first.
        merge: 'replace': the set-wise logit replaces the point-wise one of the chosen items; 'add': the two are added. Choice.
        pointwise_weight: weight of the point-wise logits' loss, next to that of the merged ones. Choice.

    Raises:
        ValueError: a negative number of blocks, an unknown `merge`, or a negative weight.

    Example:
        >>> kr.models.Setwise(top_k=None, merge="add").setwise_layers
        1
    """

    setwise_layers: int = 1
    top_k: int | None = 10
    choose_by: str | None = None
    merge: str = "replace"
    pointwise_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.merge not in _MERGES:
            raise ValueError(f"`merge` must be one of {_MERGES}. Received: merge={self.merge!r}")
        if self.setwise_layers < 0:
            raise ValueError(f"`setwise_layers` must not be negative. Received: setwise_layers={self.setwise_layers}")
        if self.pointwise_weight < 0:
            raise ValueError(f"`pointwise_weight` must not be negative. Received: pointwise_weight={self.pointwise_weight}")

    def of(self, tasks: Sequence[str]) -> Setwise:
        """The same with the choosing task written out."""
        chosen = tasks[0] if self.choose_by is None else self.choose_by
        if chosen not in tasks:
            raise ValueError(f"`choose_by` must be of {list(tasks)}. Received: choose_by={self.choose_by!r}")
        return replace(self, setwise_layers=int(self.setwise_layers), choose_by=chosen, pointwise_weight=float(self.pointwise_weight))


def visible_after(schema: Schema, delay: int | None) -> int:
    """The delay of a model in seconds.

    Raises:
        ValueError: less than the schema's, which would show actions before they are known.
    """
    if delay is not None and delay < schema.feedback_delay:
        raise ValueError(f"`delay` must be at least the schema's feedback_delay, {schema.feedback_delay}. Received: delay={delay}")
    return schema.feedback_delay if delay is None else int(delay)
