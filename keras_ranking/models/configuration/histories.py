"""How a ranker of requests reads a member's history: the encoder's size, mask, delay and rotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from keras_ranking.models.configuration.sequence import told_by
from keras_ranking.schema import Schema


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


def visible_after(schema: Schema, delay: int | None) -> int:
    """The delay of a model in seconds.

    Raises:
        ValueError: less than the schema's, which would show actions before they are known.
    """
    if delay is not None and delay < schema.feedback_delay:
        raise ValueError(f"`delay` must be at least the schema's feedback_delay, {schema.feedback_delay}. Received: delay={delay}")
    return schema.feedback_delay if delay is None else int(delay)
