"""Columns of ids: one id a row, one of a few values a row, or several ids a row; each with the encoding of its values for a model."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from keras_ranking.column_base import Column
from keras_ranking.id_lists import IdLists, read_lists
from keras_ranking.ops.hashing import canonical_text, hash_buckets, id_halves, vocabulary_rows
from keras_ranking.values import INT32_MAX, Faults, raise_first

MOST_IDS = 4096  # of a row: tensors have this many places in each row


class Id(Column):
    """An identifier with no order and no fixed vocabulary, hashed to rows of an embedding table.

    row = 1 + Fingerprint64(text) mod (buckets - 1); row 0 = missing. See `keras_ranking.ops.fingerprint64`. The text of an integer is in
    base 10, that of a boolean 1 or 0. float16, float32, and float64 from 2**53 on are refused: different ids would be one.

    With `buckets=None` the whole 64-bit fingerprint is kept, as two int32 halves, and embedded by quotient and remainder tables
    (`QuotientRemainderEmbedding`): no two ids share all their rows. A missing id is (0, 0).

    Args:
        name: column of the log.
        buckets: rows of the table, at least 2; None: no hashing into buckets. Our choice: 65,536.
        divisor: with `buckets=None`, m of the quotient and remainder tables. Our choice: 65,536, which has the fewest rows.
        table: ids with the same `table` share one embedding table; None: its own table.
        known: 'item', 'context', 'member' or 'after'.
        column: column of the log where that has another name; None: `name`.

    Example:
        >>> kr.Id("item_id", buckets=1000).encode(["a17", "b4", None]).tolist()
        [462, 731, 0]
    """

    kind: Literal["id"] = "id"
    buckets: int | None = Field(default=65536, ge=2, le=INT32_MAX)
    divisor: int = Field(default=65536, ge=2, le=2**30)
    table: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @property
    def dtype(self) -> str:
        return "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,) if self.buckets is None else ()

    @property
    def rows(self) -> int | None:
        """Rows of the embedding table, the one for missing values included; None where any int32 is an id."""
        return self.buckets

    def encode(self, values: Any) -> np.ndarray:
        if self.buckets is not None:
            return hash_buckets(values, self.buckets, self.name)
        return id_halves(values, self.name)


def session_column(name: str) -> Id:
    """How ids of sessions are read: hashed to 31 bits, since a model only asks which are equal.

    Args:
        name: column of the log.
    """
    made: Id = Id.model_construct(name=name, buckets=INT32_MAX)  # a column that is no feature may have any name
    return made


class Category(Column):
    """One of a few values: rows 1..n of a stated vocabulary, in its order; row 0 = missing or not in the vocabulary.

    Args:
        name: column of the log.
        vocabulary: the values as text, exactly as in the log: case and spaces count, integers are written in base 10, booleans as 1 and 0.
            None: hashed to `buckets` rows like an `Id`.
        buckets: rows where no vocabulary is given.
        table: categories with the same `table` (and the same rows) share one embedding table; None: its own table.
        known: 'item', 'context', 'member' or 'after'.
        column: column of the log where that has another name; None: `name`.

    Example:
        >>> kr.Category("device", vocabulary=["mobile", "desktop"]).encode(["desktop", "mobile", "tv", None]).tolist()
        [2, 1, 0, 0]
    """

    kind: Literal["category"] = "category"
    vocabulary: tuple[str, ...] | None = None
    buckets: int = Field(default=256, ge=2, le=INT32_MAX)
    table: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _check_vocabulary(cls, vocabulary: Any) -> Any:
        return _words(vocabulary)

    @property
    def dtype(self) -> str:
        return "int32"

    @property
    def rows(self) -> int:
        """Rows of the embedding table, the one for missing values included."""
        return self.buckets if self.vocabulary is None else len(self.vocabulary) + 1

    def encode(self, values: Any) -> np.ndarray:
        if self.vocabulary is None:
            return hash_buckets(values, self.buckets, self.name)
        return vocabulary_rows(values, self.vocabulary, self.name)


class Ids(Column):
    """Several ids a row, in no order: tags, categories, brands. A list column, or text with a separator; each id is hashed like an `Id`.

        E = pool_k E[row_k],   row_k = row of the k-th id,   k = 1 .. number of ids of the row (at most `size`)

    The embedding of a row is the mean, the sum or the maximum (of each number) of those of its ids, and zero where it has none. Rows of
    ids are those of an `Id` with these `buckets`, or of a `Category` with this `vocabulary`, so one `table` may serve all three. LiRank
    (2402.06859) states that five of the six sparse features of its feed model are such sets; how they are pooled is not stated, and all
    defaults are our choice.

    An id that stands twice in a row counts twice in mean and sum, as in an embedding bag. What is missing among the ids of a list (None,
    NaN, an empty text) is left out; an id outside the vocabulary is row 0. In tensors, ids of a row have `size` places; those without an
    id hold -1, and models read -1 at any place as none.

    Args:
        name: column of the log: lists, tuples, arrays or sets of integers or texts. None, NaN and an empty list are rows without ids.
        buckets: rows of the table, at least 2; None: the whole fingerprint, by quotient and remainder tables. See `Id`.
        vocabulary: the ids as text, in the order of their rows; None: hashed. See `Category`.
        divisor: with `buckets=None`, m of the quotient and remainder tables.
        size: most ids of a row.
        separator: text between ids, such as '|', where the column holds text; spaces beside it count as parts of ids. Lists are read too.
            None: text in the column is an error.
        pooling: 'mean', 'sum' or 'max'.
        longer: what becomes of a row with more than `size` ids: 'error', or its 'first' or 'last' ids are kept.
        table: ids and categories with the same `table` (and the same rows) share one embedding table; None: its own table.
        known: 'item', 'context', 'member' or 'after'.
        column: column of the log where that has another name; None: `name`.

    Example:
        >>> tags = kr.Ids("tags", vocabulary=["news", "sport", "art"], size=3)
        >>> tags.encode([["art", "news"], ["sport", "chess", "art"], None]).tolist()
        [[3, 1, -1], [2, 0, 3], [-1, -1, -1]]
        >>> kr.Ids("tags", buckets=1000, size=2, separator="|").encode(["a17|b4", ""]).tolist()
        [[462, 731], [-1, -1]]
    """

    kind: Literal["ids"] = "ids"
    buckets: int | None = Field(default=65536, ge=2, le=INT32_MAX)
    vocabulary: tuple[str, ...] | None = None
    divisor: int = Field(default=65536, ge=2, le=2**30)
    size: int = Field(default=8, ge=1, le=MOST_IDS)
    separator: str | None = None
    pooling: Literal["mean", "sum", "max"] = "mean"
    longer: Literal["error", "first", "last"] = "error"
    table: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _check_vocabulary(cls, vocabulary: Any) -> Any:
        return _words(vocabulary)

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, separator: str | None) -> str | None:
        if separator == "":
            raise ValueError("`separator` must have at least one character, or be None. Received: separator=''")
        return separator

    @property
    def dtype(self) -> str:
        return "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, *self.one.shape)

    @property
    def rows(self) -> int | None:
        """Rows of the embedding table, the one for unknown ids included; None where any int32 is an id."""
        return self.one.rows

    @property
    def one(self) -> Id | Category:
        """The column of single ids with the same rows."""
        if self.vocabulary is not None:
            return Category(self.name, vocabulary=self.vocabulary, table=self.table, known=self.known)
        return Id(self.name, buckets=self.buckets, divisor=self.divisor, table=self.table, known=self.known)

    def encode(self, values: Any) -> np.ndarray:
        lists = self._checked(values)
        return lists.spread(self.one.encode(lists.ids.texts), -1, self.size, self.longer == "last")

    def texts(self, values: Any) -> np.ndarray:
        """The ids as text, (n, size) objects: `encode` of these lists is that of the values; an empty text where there is no id."""
        lists = self._checked(values)
        return lists.spread(lists.ids.texts, "", self.size, self.longer == "last")

    def faults(self, values: Any) -> Faults:
        return self._faults(read_lists(values, self.separator))

    def _checked(self, values: Any) -> IdLists:
        lists = read_lists(values, self.separator)
        raise_first(self.name, lists.series, self._faults(lists))
        return lists

    def _faults(self, lists: IdLists) -> Faults:
        longer = lists.counts > self.size
        if self.longer != "error" or not longer.any():
            return lists.faults
        most = f"must hold at most size={self.size} ids in a row, and one row has {int(lists.counts.max())}"
        return [*lists.faults, (longer, f"{most}; Ids(..., longer='first') keeps the first {self.size}")]


def bare_ids(features: Any) -> Any:
    """Features, with `Id(name)` for a bare name of an id.

    Raises:
        ValueError: another bare name, whose kind it does not tell.
    """
    if not isinstance(features, list | tuple):
        return features
    for name in features:
        if isinstance(name, str) and not (name == "id" or name.endswith("_id")):
            raise ValueError(
                f"`features` must say what '{name}' is, such as Number({name!r}) or Category({name!r}); a bare name that ends in '_id' is "
                f"an `Id`. Received: {name!r}"
            )
    return tuple({"kind": "id", "name": feature} if isinstance(feature, str) else feature for feature in features)


def _words(vocabulary: Any) -> tuple[str, ...] | None:
    """A vocabulary in the form in which the log's values are looked up."""
    if vocabulary is None:
        return None
    if isinstance(vocabulary, str):
        raise ValueError(f"`vocabulary` must be a list of texts. Received: vocabulary={vocabulary!r}")
    words = tuple(canonical_text(list(vocabulary), "vocabulary"))
    if not words or len(set(words)) != len(words) or "" in words:
        raise ValueError(f"`vocabulary` must be distinct, non-empty texts. Received: vocabulary={words}")
    return words
