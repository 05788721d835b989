"""Tokens, trunk, attention and visibility of the models that read a member's events as one sequence: `CADET` and `FeedSR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from keras_ranking.schema import Schema

GATES: dict[str, tuple[str, ...]] = {
    "none": (),
    "representation": ("representation",),
    "qk": ("query", "key"),
    "all": ("representation", "query", "key"),
    "output": ("output",),
}
ROTATIONS = ("time", "index", "split", None)
OF_MODEL = "model"
"""Value of an option whose default differs from model to model."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How events and candidates become tokens.

    Attributes:
        layout: 'interleaved': an item token and an action token for each event (Feed-SR, stated). 'fused': one token for each event,
            and a query without its action where it is scored. 'value': one token for each event, actions added to the values of
            attention only, strictly older events visible (sibling code of CADET); half as long. See `TokenSpans`.
        token_features: columns in the tokens of events and candidates (early fusion); None: all with known='item'. Context columns
            may be named too.
        late_features: columns that join at the heads (late fusion); None: all with known='context' or 'member'.
        id_dim: width of id embeddings. Choice.
        token_hidden: hidden width of the MLP of item tokens; None: a linear map. Choice.
        action_hidden: hidden width of the MLP of action tokens; None: a linear map. Choice.
        action_masking: with layout='fused', the rate at which actions are hidden in training, see `FuseActions`.
        id_dropout: rate at which numbers of the embeddings of ids and categories are dropped in training, in tokens, late features and
            what `Past` reads. Choice.
        list_context: at the heads a candidate also reads each number of `token_features` and `late_features` against those of its
            request: difference to mean and maximum, rank, and the size of the request, see `ListContext`. Choice.
        list_pooling: width of a state of each candidate, made of what its heads read, that reads the mean and the maximum of the states of
            its request, see `ListPooling`, and joins it; 0: none. With either, a candidate's score depends on the others of its request.
            Histories and caches stay as they are: nothing of a list enters the blocks. Choice.

    Raises:
        ValueError: `action_masking` with another layout, a rate out of range, or a negative width.

    Example:
        >>> kr.models.Tokens(layout="value", id_dim=8).layout
        'value'
    """

    layout: str = "interleaved"
    token_features: Sequence[str] | None = None
    late_features: Sequence[str] | None = None
    id_dim: int = 16
    token_hidden: int | None = None
    action_hidden: int | None = 64
    action_masking: float = 0.0
    id_dropout: float = 0.0
    list_context: bool = False
    list_pooling: int = 0

    NEWER: ClassVar[tuple[str, ...]] = ("id_dropout", "list_context", "list_pooling")

    def __post_init__(self) -> None:
        if self.action_masking and self.layout != "fused":
            received = f"action_masking={self.action_masking}, layout={self.layout!r}"
            raise ValueError(f"`action_masking` is for layout='fused'. Received: {received}")
        if not 0 <= self.id_dropout < 1:
            raise ValueError(f"`id_dropout` must be from 0 to below 1. Received: id_dropout={self.id_dropout}")
        if self.list_pooling < 0:
            raise ValueError(f"`list_pooling` must be a positive width, or 0. Received: list_pooling={self.list_pooling}")

    def of(self, schema: Schema) -> Tokens:
        """The same with columns written out.

        Raises:
            ValueError: a column of the member in the tokens.
        """
        for name in self.token_features or ():
            if name in schema.of_member:
                raise ValueError(
                    f"`token_features` are of items and their context. Received: '{name}', known='member'; `late_features` take it, "
                    "once a request"
                )
        return replace(
            self,
            token_features=[feature.name for feature in schema.inputs(self.token_features, known=("item",))],
            late_features=[feature.name for feature in schema.inputs(self.late_features, known=("context", "member"))],
            action_masking=float(self.action_masking),
            id_dropout=float(self.id_dropout),
            list_context=bool(self.list_context),
            list_pooling=int(self.list_pooling),
        )


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Size of the transformer and what adds a block's output to its input.

    Attributes:
        dim: D, width of tokens and states. Choice (sibling code: 512).
        num_layers: number of blocks. Choice (sibling code: 12).
        num_heads: attention heads of a block, a divisor of `dim`. Choice (sibling code: 4).
        num_kv_heads: heads of keys and values, a divisor of `num_heads`; None: `num_heads`. Choice.
        ffn_multiple: width of the feed-forward layer over `dim`. Choice (sibling code: 4).
        residual: kind of `RescaleAndAdd`: 'scalar', 'layer_scale', 'rezero', 'dense_gate' (Feed-SR: all stated to train) or 'plain';
            'model': 'scalar' for `FeedSR` (stated), 'plain' for `CADET` (choice).
        residual_initial: initial value of its weights, see `RescaleAndAdd`.
        dropout: rate in blocks and heads, in training.

    Raises:
        ValueError: sizes that are not positive, or heads that do not divide `dim`.

    Example:
        >>> kr.models.Trunk(dim=128, num_layers=4).num_heads
        4
    """

    dim: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int | None = None
    ffn_multiple: float = 4.0
    residual: str = OF_MODEL
    residual_initial: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dim < 1 or self.num_layers < 1 or self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(
                f"`dim` must be a positive multiple of `num_heads`, and `num_layers` positive. "
                f"Received: dim={self.dim}, num_heads={self.num_heads}, num_layers={self.num_layers}"
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Gates and rotations of attention.

    Attributes:
        gates: which of 'representation', 'query', 'key' (CADET: all three, stated second-hand) and 'output' (for comparison) are
            gated; or one word: 'none', 'representation', 'qk', 'all', 'output'. 'model': all three for `CADET`, none for `FeedSR`.
        gate_bias: initial bias of the gates. Choice.
        rotate_by: 'time' (CADET: stated second-hand), 'index' (Feed-SR: RoPE, stated), 'split': half of the heads each (TO-RoPE), or
            None: no rotation. 'model': 'time' for `CADET`, 'index' for `FeedSR`. The index of an event is the number of events that it
            sees, see `CausalTransformer`.
        rotary: (shortest, longest) period of the rotation by time, in seconds (CADET: "seconds to months", stated; the values:
            choice). None: no rotation by time.
        rotary_base: base of the rotation by index. Choice.
        shared_index: whether item and action of an event share an index, or are neighbours. Choice.

    Raises:
        ValueError: an unknown word, or 'split' without `rotary`.

    Example:
        >>> kr.models.Attention(gates="qk").gates
        ('query', 'key')
    """

    gates: str | Sequence[str] = OF_MODEL
    gate_bias: float = 2.0
    rotate_by: str | None = OF_MODEL
    rotary: Sequence[float] | None = (8.0, 15_552_000.0)
    rotary_base: float = 10_000.0
    shared_index: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.gates, str) and self.gates != OF_MODEL:
            if self.gates not in GATES:
                raise ValueError(f"`gates` must be one of {tuple(GATES)}, or a list of gates. Received: gates={self.gates!r}")
            object.__setattr__(self, "gates", GATES[self.gates])
        if self.rotate_by not in (*ROTATIONS, OF_MODEL):
            raise ValueError(f"`rotate_by` must be one of {ROTATIONS}. Received: rotate_by={self.rotate_by!r}")
        if self.rotate_by == "split" and self.rotary is None:
            raise ValueError("rotate_by='split' rotates half of the heads by time, and needs `rotary`. Received: rotary=None")

    def of(self, gates: Sequence[str], rotate_by: str) -> Attention:
        """The same with the model's own gates and rotation where none were chosen, and nothing that has no effect."""
        gates = gates if self.gates == OF_MODEL else list(self.gates)
        rotate_by_chosen = rotate_by if self.rotate_by == OF_MODEL else self.rotate_by
        by_time = rotate_by_chosen in ("time", "split") and self.rotary is not None
        return replace(
            self,
            gates=list(gates),
            rotate_by=rotate_by_chosen if by_time or rotate_by_chosen == "index" else None,
            rotary=[float(end) for end in self.rotary or ()] if by_time else None,
            rotary_base=float(self.rotary_base),
            shared_index=bool(self.shared_index),
        )

    @property
    def by_index(self) -> bool:
        """Whether the index of a token is read."""
        return self.rotate_by in ("index", "split")


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Which events an event or candidate sees, in training and in serving alike.

    In the blocks, items of one request never see each other; at the heads they do with `list_context`, `list_pooling` or `choice`.

    Attributes:
        mask: 'delay' (CADET: stated): events whose actions were known by then. 'session' (Feed-SR: stated as one of two remedies
            against leakage inside sessions): none of its own session. 'causal': all older ones, which makes training scores too
            good. See `EventSpans`, also for events in random order inside sessions.
        delay: seconds after which an event is visible to later ones (CADET: stated second-hand; size: choice). None: the schema's
            `feedback_delay`; less than that is refused, since it would show actions before they are known.
        session_gap: seconds without an event that end a session, at least `delay`; where sessions are told by it.
        session_by: how mask='session' tells sessions. 'column': by the ids in the schema's session column, which a request gives too
            (`Request.session`); no event younger than `delay` is seen. 'gap': by pauses. None: 'column' where the schema names one.
        max_history: latest visible events that an event or candidate sees in each block (Feed-SR: 1000, stated); None: all. 0: the
            model without a history. A request may hold more: the latest events may not be visible yet, and a second block reaches
            further back.
        sampled_delay: training rows have an input `delay` (B, T): each event sees what is older than its own delay, as training draws
            it from the log's (`TrainingOptions.delay_column`; our choice). Serving, and offline evaluation, use `delay`.

    Raises:
        ValueError: a negative `max_history`, or `sampled_delay` with another mask than 'delay'.

    Example:
        >>> kr.models.Visibility(mask="session", session_gap=3600).max_history is None
        True
    """

    NEWER: ClassVar[tuple[str, ...]] = ("session_by",)

    mask: str = "delay"
    delay: int | None = None
    session_gap: int = 1800
    session_by: str | None = None
    max_history: int | None = None
    sampled_delay: bool = False

    def __post_init__(self) -> None:
        size = self.max_history
        if size is not None and (isinstance(size, bool) or int(size) != size or size < 0):
            raise ValueError(f"`max_history` must be a number of events, or None for all. Received: max_history={size}")
        if self.sampled_delay and self.mask != "delay":
            raise ValueError(f"`sampled_delay` goes with mask='delay'. Received: mask={self.mask!r}")

    def of(self, schema: Schema) -> Visibility:
        """The same with the delay written out.

        Raises:
            ValueError: a delay below the schema's, one without meaning, or a column that is named as the input of drawn delays.
        """
        if self.sampled_delay and any(column.name == "delay" for column in (*schema.features, *schema.actions)):
            raise ValueError("`sampled_delay` gives rows an input `delay`, which is a column of the schema here: rename the column.")
        return replace(
            self,
            delay=self._delay(schema),
            session_gap=int(self.session_gap),
            session_by=told_by(self.session_by, schema, self.mask == "session"),
            max_history=None if self.max_history is None else int(self.max_history),
            sampled_delay=bool(self.sampled_delay),
        )

    @property
    def by_column(self) -> bool:
        """Whether the mask reads ids of sessions."""
        return self.session_by == "column"

    def _delay(self, schema: Schema) -> int:
        if self.mask == "causal":
            if self.delay not in (None, 1):
                raise ValueError(f"`delay` has no meaning with mask='causal', which shows all older events. Received: delay={self.delay}")
            return 1
        delay = schema.feedback_delay if self.delay is None else int(self.delay)
        if 1 <= delay < schema.feedback_delay:
            raise ValueError(f"`delay` must be at least the schema's feedback_delay, {schema.feedback_delay}. Received: delay={delay}")
        return delay


def told_by(session_by: str | None, schema: Schema, read: bool) -> str | None:
    """How sessions are told, written out; None where the mask does not read any.

    Raises:
        ValueError: another word, 'column' for a schema without a session, or a choice without effect.
    """
    if session_by not in (None, "column", "gap"):
        raise ValueError(f"`session_by` must be 'column', 'gap' or None. Received: session_by={session_by!r}")
    if session_by == "column" and schema.session is None:
        raise ValueError("`session_by` must be 'gap' or None for a schema that names no session. Received: session_by='column'")
    if session_by is not None and not read:
        raise ValueError(f"`session_by` has no effect on a mask that reads no sessions. Received: session_by={session_by!r}")
    return (session_by or ("gap" if schema.session is None else "column")) if read else None


def check_together(tokens: Tokens, attention: Attention) -> None:
    """Options of two classes that exclude each other.

    Raises:
        ValueError: neighbouring indices where item and action have no tokens of their own, or nothing rotates by index.
    """
    if not attention.shared_index and (tokens.layout != "interleaved" or not attention.by_index):
        received = f"layout={tokens.layout!r}, rotate_by={attention.rotate_by!r}"
        raise ValueError(f"`shared_index=False` is for layout='interleaved' with a rotation by index. Received: {received}")
