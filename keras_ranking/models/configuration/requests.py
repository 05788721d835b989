"""Features and cross nets of the models trained on requests: `LiRank`, `AmortizedDLRM` and `LiGR`; attention over the list of `LiGR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from keras_ranking.layers.interaction.dcn import CROSSES
from keras_ranking.models.configuration.sequence import OF_MODEL
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
