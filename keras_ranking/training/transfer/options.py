"""Transfer: what of a trained model is kept on another surface, and what begins anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from keras_ranking.configuration import check_types

WAYS = ("heads", "all", "heads-then-all")
TRUNK_SHARE = 0.1
"""Of the heads' learning rate: that of a trunk that is trained further. Our choice."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Options of `transfer` next to those of the model, `TrainingOptions` and `Recipe`, given by name in `options` all the same.

    Attributes:
        heads: 'new': layers of tasks begin anew. 'kept': those of a task that the source has, with the same sizes, begin from its weights.
        heads_epochs: of 'heads-then-all': epochs in which the heads alone are trained. None: `epochs`.
        columns: column of the log -> column of the source, where their names differ: the trunk reads the one as the other, by its table and
            with its constants.
        new_tables: ids and categories of the log whose embedding table begins anew, because the values are others than the source's. They
            are trained with the heads.

    Raises:
        ValueError: an unknown word, or no epoch.

    Example:
        >>> kr.training.Transfer(columns={"clip_id": "item_id"}).heads
        'new'
    """

    heads: str = "new"
    heads_epochs: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    new_tables: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_types(get_type_hints(type(self)), {one.name: getattr(self, one.name) for one in fields(self)})
        if self.heads not in ("new", "kept"):
            raise ValueError(f"`heads` must be 'new' or 'kept'. Received: heads={self.heads!r}")
        if self.heads_epochs is not None and self.heads_epochs < 1:
            raise ValueError(f"`heads_epochs` must be a positive integer. Received: heads_epochs={self.heads_epochs}")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError(f"`columns` must give each column of the source once. Received: columns={dict(self.columns)}")


def split_transfer(options: Mapping[str, Any]) -> tuple[dict[str, Any], Transfer]:
    """The other options, and those of `Transfer`."""
    names = {one.name for one in fields(Transfer)}
    return (
        {name: value for name, value in options.items() if name not in names},
        Transfer(**{name: value for name, value in options.items() if name in names}),
    )
