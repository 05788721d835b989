"""Columns of a schema as one vector per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from pydantic import TypeAdapter

from keras_ranking.columns import Feature, Ids, Number, SemanticId
from keras_ranking.layers.base import TABLES, PassesMask, WeightRules, WholeInputs
from keras_ranking.layers.embedding.numeric_embedding import NumericEmbedding
from keras_ranking.layers.embedding.quantized_embedding import QuantizedEmbedding, tables_are_quantized
from keras_ranking.layers.embedding.quotient_remainder_embedding import QuotientRemainderEmbedding
from keras_ranking.layers.embedding.semantic_id_embedding import SemanticIdEmbedding
from keras_ranking.layers.embedding.table_embedding import Embedding
from keras_ranking.ops.integers import int32
from keras_ranking.ops.pooling import pooled

_FEATURES: TypeAdapter[tuple[Any, ...]] = TypeAdapter(tuple[Feature, ...])


@keras.saving.register_keras_serializable(package="keras_ranking")
class FeatureConcat(WholeInputs, PassesMask, WeightRules, keras.layers.Layer):
    """Embeds ids and categories, and concatenates them with numbers and vectors, in schema order.

        out = [E_1[id_1] ; ... ; number_1 ; ... ; vector_1 ; ...]

    With `numbers`, numbers have vectors, which come after all other columns, in schema order.

    Columns with the same `table` share one embedding table. An `Id` without buckets is embedded by the two halves of its fingerprint,
    see `QuotientRemainderEmbedding`. A set of ids, a column of `Ids`, has one vector: the mean, the sum or the maximum of those of its
    ids, and zero without any; a place with -1 holds none. A `SemanticId` has the sum of the vectors of its codes, see
    `SemanticIdEmbedding`; the layer needs none of its items.

    Args:
        features: `Id`, `Category`, `Ids`, `SemanticId`, `Number`, `Vector` columns (or their dictionaries).
        id_dim: width of each id's or category's embedding. Our choice: 16 (papers: 30 in LiRank, 64 in LiGR).
        id_dropout: rate at which numbers of the embeddings of ids and categories are dropped in training.
        numbers: which numbers have vectors: their names as `columns`, whether the number itself stays as `plain`, and arguments of
            `NumericEmbedding`; edges are those of the columns. None: numbers are read as they are.
        embeddings_initializer, embeddings_regularizer, embeddings_constraint: of the tables, where they are no int8 ones.
        quantized: tables in int8, for serving; None: True inside `quantized_tables`, which is how a whole model gets int8 tables.

    Call arguments:
        inputs: dict of tensors by column name: int32 (B, T), of `Ids` (B, T, size), of `SemanticId` (B, T, levels); float32 (B, T) or
            (B, T, size); `Id` and `Ids` without buckets have two int32 for each id.
        only: names of the columns to use, in schema order; None: all. With it, candidates and events of the history share tables
            even if they have different columns.

    Output:
        (B, T, width), `width` = sum over the columns: id_dim for an id, category or set of ids, 1 for a number that stays as it
        is, its size for a vector; and what `NumericEmbedding` gives for the numbers that have vectors.

    Raises:
        ValueError: no features, a feature given twice, `id_dim` below 1, columns of different size in one table, `numbers` of a column that
            is no number or has no edges, or a column missing in the inputs.

    Example:
        >>> layer = kr.layers.FeatureConcat([kr.Id("item_id", buckets=100), kr.Number("age")], id_dim=4)
        >>> layer({"item_id": np.zeros((2, 3), "int32"), "age": np.zeros((2, 3), "float32")}).shape
        (2, 3, 5)
    """

    weight_rules = TABLES

    def __init__(
        self,
        features: Sequence[Any],
        id_dim: int = 16,
        quantized: bool | None = None,
        numbers: Mapping[str, Any] | None = None,
        id_dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**whole_numbers_in(numbers, settings))
        if id_dim < 1:
            raise ValueError(f"`id_dim` must be a positive integer. Received: id_dim={id_dim}")
        columns = tuple(feature if isinstance(feature, dict) else feature.model_dump() for feature in features)
        read = _FEATURES.validate_python(columns)
        self.features = tuple(one.without_codes() if isinstance(one, SemanticId) else one for one in read)
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`features` must be at least one column, each once. Received: {names}")
        self.id_dim, self.numbers = id_dim, None if numbers is None else dict(numbers)
        self.id_dropout = float(id_dropout)
        self.drop: Any = None
        if id_dropout:
            self.drop = keras.layers.Dropout(self.id_dropout, name="id_dropout", dtype=self.dtype_policy)
        self.embedded = _embedded(self.features, numbers)
        self.vectors: Any = None
        if numbers is not None:
            own = {name: value for name, value in numbers.items() if name not in ("columns", "plain")}
            edges = [feature.edges for feature in self.embedded] if numbers.get("kind") == "piecewise_linear" else None
            self.vectors = NumericEmbedding(**own, edges=edges, flatten=True, name="numbers", dtype=self.dtype_policy)
        self.quantized = tables_are_quantized() if quantized is None else bool(quantized)
        self.tables: dict[str, Any] = {}
        sizes: dict[str, Any] = {}
        for feature in self.features:
            if feature.dtype != "int32":
                continue
            name, size = _table(feature), _size(feature)
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"columns of one table must have the same number of rows. Received: '{feature.name}' in table '{name}'")
            if name not in self.tables:
                self.tables[name] = self._embedding(feature, f"table_{name}")

    def _embedding(self, feature: Any, name: str) -> Any:
        settings = {"name": name, "dtype": self.dtype_policy, **({} if self.quantized else self.rules(None, TABLES))}
        if isinstance(feature, SemanticId):
            sizes = (feature.levels, feature.rows, self.id_dim, feature.prefixes, feature.buckets)
            return SemanticIdEmbedding(*sizes, quantized=self.quantized, **settings)
        if feature.rows is None:
            return QuotientRemainderEmbedding(self.id_dim, feature.divisor, quantized=self.quantized, **settings)
        kind = QuantizedEmbedding if self.quantized else Embedding
        return kind(feature.rows, self.id_dim, **settings)

    @property
    def width(self) -> int:
        """Size of the last axis of the output for all columns."""
        return self._width(self.features)

    def _width(self, features: Sequence[Any]) -> int:
        width = sum(self.id_dim if feature.dtype == "int32" else (feature.shape or (1,))[0] for feature in features if self._stays(feature))
        places = self._places(features)
        return width + (int(self.vectors.compute_output_shape((None, len(places)), places)[-1]) if places else 0)

    def _places(self, features: Sequence[Any]) -> list[int]:
        """Places of some features among those with vectors."""
        names = {feature.name for feature in features}
        return [place for place, feature in enumerate(self.embedded) if feature.name in names]

    def _stays(self, feature: Any) -> bool:
        """Whether a column is read as it is, or by a table."""
        return self.numbers is None or bool(self.numbers.get("plain")) or feature.name not in self.numbers["columns"]

    def _wanted(self, only: Sequence[str] | None, given: Mapping[str, Any]) -> list[Any]:
        wanted = [feature for feature in self.features if only is None or feature.name in only]
        missing = [feature.name for feature in wanted if feature.name not in given]
        if missing or not wanted or (only is not None and len(wanted) < len(only)):
            names = [feature.name for feature in wanted]
            received = f"Missing: {missing}" if missing else f"Received: only={only}, columns {[feature.name for feature in self.features]}"
            raise ValueError(f"inputs must have the columns {names}. {received}")
        return wanted

    def _whole(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features if feature.dtype == "int32")

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        for feature in self.features:
            if feature.dtype == "int32" and not self.tables[_table(feature)].built:
                self.tables[_table(feature)].build((None, None, *feature.shape))
        if self.vectors is not None and not self.vectors.built:
            self.vectors.build((None, None, len(self.embedded)))
        self.built = True

    def call(self, inputs: Mapping[str, Any], only: Sequence[str] | None = None, training: bool | None = None) -> Any:
        parts, wanted = [], self._wanted(only, inputs)
        for feature in wanted:
            if not self._stays(feature):
                continue
            value = inputs[feature.name]
            if feature.dtype == "int32":
                embedded = self._looked_up(feature, value)
                parts.append(embedded if self.drop is None else self.drop(embedded, training=training))
            else:
                value = ops.cast(value, self.compute_dtype)
                parts.append(value if feature.shape else ops.expand_dims(value, -1))
        if places := self._places(wanted):
            numbers = ops.stack([ops.cast(inputs[self.embedded[place].name], "float32") for place in places], axis=-1)
            parts.append(self.vectors(numbers, columns=None if len(places) == len(self.embedded) else tuple(places)))
        return ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    def _looked_up(self, feature: Any, value: Any) -> Any:
        """(B, T, id_dim): the vector of an id, or of all ids of a set."""
        table = self.tables[_table(feature)]
        if not isinstance(feature, Ids):
            return table(value)
        there = ops.not_equal(value, int32(-1))
        real = ops.any(there, axis=-1) if feature.rows is None else there
        ids = ops.where(real[..., None] if feature.rows is None else real, value, ops.zeros_like(value))
        return pooled(table(ids), real, feature.pooling)

    def compute_output_shape(
        self, input_shape: Mapping[str, tuple[int | None, ...]], only: Sequence[str] | None = None
    ) -> tuple[int | None, ...]:
        wanted = self._wanted(only, input_shape)
        return (*tuple(input_shape[wanted[0].name])[:2], self._width(wanted))

    def compute_output_spec(self, inputs: Mapping[str, Any], only: Sequence[str] | None = None, training: bool | None = None) -> Any:
        shapes = {name: tuple(x.shape) for name, x in inputs.items()}
        return keras.KerasTensor(self.compute_output_shape(shapes, only), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        features = [feature.model_dump(mode="json") for feature in self.features]
        made = {"features": features, "id_dim": self.id_dim, "quantized": self.quantized}
        made |= {"id_dropout": self.id_dropout} if self.id_dropout else {}
        return {**super().get_config(), **made, **({} if self.numbers is None else {"numbers": dict(self.numbers)})}


def _table(feature: Any) -> str:
    return str(feature.table or feature.name)


def _size(feature: Any) -> tuple[Any, ...]:
    """What columns of one table have in common."""
    if isinstance(feature, SemanticId):
        return ("codes", feature.rows, feature.levels, feature.prefixes, feature.buckets)
    return (feature.rows, None if feature.rows else feature.divisor)


def _embedded(features: Sequence[Any], numbers: Mapping[str, Any] | None) -> list[Any]:
    """The features that have vectors, in schema order."""
    if numbers is None:
        return []
    names = list(numbers.get("columns", ()))
    found = [feature for feature in features if feature.name in names and isinstance(feature, Number)]
    if not names or len(found) < len(names):
        columns = [feature.name for feature in features if isinstance(feature, Number)]
        raise ValueError(f"`numbers` must have `columns` that are numbers, of {columns}. Received: columns={names}")
    without = [feature.name for feature in found if feature.edges is None]
    if without and numbers.get("kind") == "piecewise_linear":
        raise ValueError(f"kind='piecewise_linear' needs numbers with fitted edges: Number(..., bins=16).fit(values). Received: {without}")
    return found


def whole_numbers_in(numbers: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a layer that gives numbers to a `NumericEmbedding`: they arrive in float32 under every policy."""
    return {**settings} if numbers is None else {**settings, "autocast": False}
