"""SemanticId: a column of items that a model reads as their codes, which the schema holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from keras_ranking.column_base import Column
from keras_ranking.ops.hashing import canonical_text, distinct_ids, vocabulary_rows
from keras_ranking.values import INT32_MAX, Faults, plain_series, raise_first

_MOST_HELD = 16  # columns whose tables are kept in memory
_HELD: dict[int, tuple[Any, Any, dict[str, int], np.ndarray]] = {}


class SemanticId(Column):
    """An item by its semantic id: a few codes from its content, so that items with alike content share rows of tables.

        e = sum_l E_l[ 1 + code_l ],   l = 1 .. levels;       E_l: (codebook_size + 1, dim); with `prefixes` a row for each prefix of codes

    The codes are those of a `ResidualQuantizer` on vectors of the items: `kr.training.fit_semantic_id` makes them. They are part of the
    schema, of its JSON and digest, so training, the served graph and the client encode an item alike. The log, and a request, hold the
    item's id. An item without codes, as a missing one, has codes 0, which are a row of its own in each table; or it is an error.
    Semantic ids are *stated* for LiGR v2 (2502.03417, second-hand; sizes unknown) and elsewhere (2305.05065, 2504.02137); the row of
    unknown items, and codes as a part of the schema, are our choice.

    Args:
        name: of the model's input.
        levels: codes of an item.
        codebook_size: K, number of values of a code.
        prefixes, buckets: see `SemanticIdEmbedding`; `buckets` has an effect with `prefixes` alone.
        unknown: of an item without codes: 'row': codes 0; 'error': it is refused.
        items: the items with codes, as text; None: no codes yet.
        codes: of each of them, `levels` integers from 0 to K - 1.
        table: semantic ids with the same `table` share their embedding tables; None: its own tables.
        known: 'item', 'context', 'member' or 'after'.
        column: column of the log with the items, such as 'item_id'; None: `name`.

    Example:
        >>> column = kr.SemanticId("item_codes", levels=2, codebook_size=8, column="item_id").with_codes(["a", "b"], [[3, 0], [3, 7]])
        >>> column.encode(["b", "a", "new", None]).tolist()
        [[4, 8], [4, 1], [0, 0], [0, 0]]
    """

    kind: Literal["semantic_id"] = "semantic_id"
    levels: int = Field(default=3, ge=1, le=16)
    codebook_size: int = Field(default=256, ge=2, le=65536)
    prefixes: bool = False
    buckets: int = Field(default=100_003, ge=2, le=INT32_MAX)
    unknown: Literal["row", "error"] = "row"
    items: tuple[str, ...] | None = None
    codes: tuple[tuple[int, ...], ...] | None = None
    table: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @model_validator(mode="after")
    def _check_codes(self) -> SemanticId:
        if self.prefixes and (self.codebook_size + 1) * (self.buckets + 1) > INT32_MAX:
            received = f"codebook_size={self.codebook_size}, buckets={self.buckets}"
            raise ValueError(f"(`codebook_size` + 1) * (`buckets` + 1) must be below 2^31. Received: {received}")
        if self.items is None and self.codes is None:
            return self
        if self.items is None or self.codes is None or len(self.items) != len(self.codes):
            sizes = [None if part is None else len(part) for part in (self.items, self.codes)]
            raise ValueError(f"`items` and `codes` must have one entry for each item. Received: {sizes[0]} items, {sizes[1]} codes")
        if len(set(self.items)) != len(self.items) or "" in self.items:
            raise ValueError(
                f"`items` must be distinct, non-empty texts. Received: {len(self.items)} items, {len(set(self.items))} distinct"
            )
        for item, codes in zip(self.items, self.codes, strict=True):
            if len(codes) != self.levels or not all(0 <= code < self.codebook_size for code in codes):
                allowed = f"{self.levels} integers from 0 to {self.codebook_size - 1}"
                raise ValueError(f"`codes` must be {allowed} for each item. Received: {list(codes)} for item {item!r}")
        return self

    def _unstated(self) -> tuple[str, ...]:
        return () if self.items is not None else ("items", "codes")

    @property
    def dtype(self) -> str:
        return "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.levels,)

    @property
    def rows(self) -> int:
        """Values of an encoded code, that of unknown items included."""
        return self.codebook_size + 1

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The items with codes."""
        return self.items

    @property
    def fitted(self) -> bool:
        """Whether there are codes."""
        return self.items is not None

    @property
    def shared(self) -> float:
        """Share of the items that have all codes in common with another item."""
        _, counts = np.unique(self.code_table()[1:], axis=0, return_counts=True)
        return float(counts[counts > 1].sum() / max(1, counts.sum()))

    def without_codes(self) -> SemanticId:
        """The same column without items: all that a layer needs."""
        return self.model_copy(update={"items": None, "codes": None})

    def with_codes(self, items: Any, codes: Sequence[Sequence[int]] | np.ndarray) -> SemanticId:
        """The same column with the codes of these items, in addition to those that it has.

        Args:
            items: ids of items, integers or texts.
            codes: integers (n, levels).

        Raises:
            ValueError: an item twice, missing, or with other codes than the column has; codes of another form or out of range.
        """
        texts, numbers = [str(text) for text in canonical_text(items, self.name)], np.asarray(codes)
        if numbers.dtype.kind not in "iu" or numbers.shape != (len(texts), self.levels):
            received = f"shape {numbers.shape} of {numbers.dtype}, {len(texts)} items"
            raise ValueError(f"`codes` must be integers (items, levels={self.levels}). Received: {received}")
        if len(set(texts)) != len(texts):
            raise ValueError(f"`items` must be distinct, non-empty texts. Received: {len(texts)} items, {len(set(texts))} distinct")
        held = dict(zip(self.items or (), self.codes or (), strict=True))
        added = dict(zip(texts, map(tuple, numbers.tolist()), strict=True))
        if wrong := [text for text, found in added.items() if held.get(text, found) != found]:
            received = f"{list(added[wrong[0]])} for item {wrong[0]!r}, which has {list(held[wrong[0]])}"
            raise ValueError(f"`codes` must be those that the column has, for an item that has codes. Received: {received}")
        merged = {**held, **added}
        return type(self)(**{**dict(self), "items": tuple(merged), "codes": tuple(merged.values())})

    def code_table(self) -> np.ndarray:
        """Encoded codes int32 (items + 1, levels): 0 first, of an unknown item, then 1 + code.

        Raises:
            ValueError: a column without codes.
        """
        return self._lookup()[1]

    def _lookup(self) -> tuple[dict[str, int], np.ndarray]:
        """Item -> its row of the table, and the table; kept, since a client encodes many small requests."""
        if self.items is None:
            raise ValueError(
                f"column '{self.name}' has no codes yet: `kr.training.fit_semantic_id(column, items, vectors)` or "
                "`column.with_codes(items, codes)` gives a column that has."
            )
        held = _HELD.get(id(self.codes))
        if held is None or held[0] is not self.items or held[1] is not self.codes:
            table = np.zeros((len(self.items) + 1, self.levels), dtype=np.int32)
            table[1:] = 1 + np.asarray(self.codes, dtype=np.int32).reshape(-1, self.levels)
            table.flags.writeable = False
            held = (self.items, self.codes, {item: row for row, item in enumerate(self.items, start=1)}, table)
            if len(_HELD) >= _MOST_HELD:
                _HELD.clear()
            _HELD[id(self.codes)] = held
        return held[2], held[3]

    def encode(self, values: Any) -> np.ndarray:
        rows, table = self._lookup()
        if self.unknown == "error":
            series = plain_series(values)
            raise_first(self.name, series, self.faults(series))
            values = series
        encoded: np.ndarray = table[vocabulary_rows(values, rows, self.name)]
        return encoded

    def faults(self, values: Any) -> Faults:
        found = super().faults(values)
        if self.unknown != "error" or self.items is None or any(rows.any() for rows, _ in found):
            return found
        unknown = vocabulary_rows(values, self._lookup()[0], self.name) == 0
        missing = distinct_ids(values).at_rows(distinct_ids(values).texts == "", True)
        more = f"; SemanticId('{self.name}', unknown='row') gives it a row of its own"
        reasons = [(missing, f"must not be missing{more}"), (unknown & ~missing, f"must be an item with codes{more}")]
        return [*found, *(reason for reason in reasons if reason[0].any())]
