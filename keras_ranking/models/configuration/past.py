"""What a candidate reads of a member's past next to the trunk of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from keras_ranking.configuration import as_arguments
from keras_ranking.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Past:
    """Target attention, linear sums and exact matches over the events that an event or candidate sees; all off by default.

    Their outputs join the trunk's state at the heads; in `LiRank` and `AmortizedDLRM` they join the features that the trunk reads. The
    events are those that the trunk's history shows: old enough, and the latest `max_history` of these. None of it is stated in a paper of
    the models. See `HistoryAttention`, `LinearHistory`, `MatchingHistory`.

    "History columns" are the `token_features` of `CADET` and `FeedSR`, and the `history_features` of the models on requests.

    Attributes:
        past_heads: heads of the attention; 0: none.
        past_linear: heads of the linear sums; 0: none.
        past_matches: id and category columns of the history columns whose exact matches are summed.
        past_keys: history columns that make an item's vector; None: its ids and categories. Their tables are the trunk's.
        past_numbers: actions that are numbers, averaged and summed as they are, such as outcomes and residuals; None: all of them.
        past_dim: width of a head.
        past_decay: whether attention and linear sums fade with the time gap.
        past_logit: whether the linear sums are also added to each task's logit, before calibration and offsets, by a weight for each head
            and number that starts at 0: the score of a factor model next to that of the trunk.

    Raises:
        ValueError: a negative number of heads, a width below 1, or `past_logit` without linear sums.

    Example:
        >>> kr.models.Past(past_heads=4, past_matches=("item_id",)).reads
        True
    """

    past_heads: int = 0
    past_linear: int = 0
    past_matches: Sequence[str] = ()
    past_keys: Sequence[str] | None = None
    past_numbers: Sequence[str] | None = None
    past_dim: int = 16
    past_decay: bool = True
    past_logit: bool = False

    NEWER: ClassVar[tuple[str, ...]] = ("past_logit",)  # than the first version with this class, see `as_arguments`

    def __post_init__(self) -> None:
        if self.past_logit and not self.past_linear:
            raise ValueError(f"`past_logit` adds linear sums to logits: it needs `past_linear`. Received: past_linear={self.past_linear}")
        if self.past_heads < 0 or self.past_linear < 0 or self.past_dim < 1:
            received = f"past_heads={self.past_heads}, past_linear={self.past_linear}, past_dim={self.past_dim}"
            raise ValueError(f"`past_heads` and `past_linear` must not be negative, and `past_dim` positive. Received: {received}")

    @property
    def reads(self) -> bool:
        """Whether anything of the past is read."""
        return bool(self.past_heads or self.past_linear or self.past_matches)

    def arguments(self) -> dict[str, Any]:
        """The fields as a saved model holds them: none if nothing is read."""
        return as_arguments(self) if self.reads else {}

    def of(self, schema: Schema, columns: Sequence[str], option: str = "token_features") -> Past:
        """The same with columns written out.

        Args:
            schema: the log's columns.
            columns: those that the model reads of an event.
            option: of the model, that names them.

        Raises:
            ValueError: columns that the model does not read of an event, or of another kind, no actions, nothing to read.
        """
        if not self.reads:
            return replace(self, past_keys=[], past_numbers=[], past_matches=[])
        if not schema.actions:
            raise ValueError("reading the past needs at least one action in the schema. Received: actions=()")
        tokens = {feature.name: feature for feature in schema.inputs(columns)}
        if not tokens:
            raise ValueError(f"reading the past needs a history: `{option}` must name its columns. Received: {option}=[]")
        ids = [name for name, feature in tokens.items() if feature.dtype == "int32"]
        keys = ids if self.past_keys is None else list(self.past_keys)
        numbers = [action.name for action in schema.actions if action.dtype == "float32" and not action.shape]
        if unknown := [name for name in (*keys, *self.past_matches) if name not in tokens]:
            raise ValueError(f"`past_keys` and `past_matches` must be of `{option}`, {list(tokens)}. Received: {unknown}")
        if wrong := [name for name in self.past_matches if name not in ids or tokens[name].shape]:
            raise ValueError(f"`past_matches` must name columns of one id with `buckets`, or categories. Received: {wrong}")
        chosen = numbers if self.past_numbers is None else list(self.past_numbers)
        if wrong := [name for name in chosen if name not in numbers]:
            raise ValueError(f"`past_numbers` must name actions that are numbers, of {numbers}. Received: {wrong}")
        if (self.past_heads or self.past_linear) and not keys:
            raise ValueError("`past_keys` must name at least one column. Received: none")
        if not chosen:
            raise ValueError("reading the past needs an action that is a number: `past_numbers`. Received: none")
        return replace(
            self,
            past_heads=int(self.past_heads),
            past_linear=int(self.past_linear),
            past_matches=list(self.past_matches),
            past_keys=keys,
            past_numbers=chosen,
            past_dim=int(self.past_dim),
            past_decay=bool(self.past_decay),
            past_logit=bool(self.past_logit),
        )
