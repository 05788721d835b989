"""Columns of a schema as one vector per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from pydantic import TypeAdapter

from keras_ranking.columns import Feature
from keras_ranking.layers.base import PassesMask, WholeInputs
from keras_ranking.layers.embedding.quantized_embedding import QuantizedEmbedding, tables_are_quantized
from keras_ranking.layers.embedding.quotient_remainder_embedding import QuotientRemainderEmbedding
from keras_ranking.layers.embedding.table_embedding import Embedding

_FEATURES: TypeAdapter[tuple[Any, ...]] = TypeAdapter(tuple[Feature, ...])


@keras.saving.register_keras_serializable(package="keras_ranking")
class FeatureConcat(WholeInputs, PassesMask, keras.layers.Layer):
    """Embeds ids and categories, and concatenates them with numbers and vectors, in schema order.

        out = [E_1[id_1] ; ... ; number_1 ; ... ; vector_1 ; ...]

    Columns with the same `table` share one embedding table. An `Id` without buckets is embedded by the two halves of its fingerprint,
    see `QuotientRemainderEmbedding`.

    Args:
        features: `Id`, `Category`, `Number`, `Vector` columns (or their dictionaries).
        id_dim: width of each id's or category's embedding. Our choice: 16 (papers: 30 in LiRank, 64 in LiGR).
        quantized: tables in int8, for serving; None: True inside `quantized_tables`, which is how a whole model gets int8 tables.

    Call arguments:
        inputs: dict of tensors by column name: int32 (B, T), float32 (B, T) or float32 (B, T, size).
        only: names of the columns to use, in schema order; None: all. With it, candidates and events of the history share tables
            even if they have different columns.

    Output:
        (B, T, width), `width` = sum over the columns: id_dim for an id or category, 1 for a number, its size for a vector.

    Raises:
        ValueError: no features, a feature given twice, `id_dim` below 1, columns of different size in one table, or a column
            missing in the inputs.

    Example:
        >>> layer = kr.layers.FeatureConcat([kr.Id("item_id", buckets=100), kr.Number("age")], id_dim=4)
        >>> layer({"item_id": np.zeros((2, 3), "int32"), "age": np.zeros((2, 3), "float32")}).shape
        (2, 3, 5)
    """

    def __init__(self, features: Sequence[Any], id_dim: int = 16, quantized: bool | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if id_dim < 1:
            raise ValueError(f"`id_dim` must be a positive integer. Received: id_dim={id_dim}")
        columns = tuple(feature if isinstance(feature, dict) else feature.model_dump() for feature in features)
        self.features = _FEATURES.validate_python(columns)
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`features` must be at least one column, each once. Received: {names}")
        self.id_dim = id_dim
        self.quantized = tables_are_quantized() if quantized is None else bool(quantized)
        self.tables: dict[str, Any] = {}
        sizes: dict[str, Any] = {}
        for feature in self.features:
            if feature.dtype != "int32":
                continue
            name, size = _table(feature), (feature.rows, None if feature.rows else feature.divisor)
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"columns of one table must have the same number of rows. Received: '{feature.name}' in table '{name}'")
            if name not in self.tables:
                self.tables[name] = self._embedding(feature, f"table_{name}")

    def _embedding(self, feature: Any, name: str) -> Any:
        settings = {"name": name, "dtype": self.dtype_policy}
        if feature.rows is None:
            return QuotientRemainderEmbedding(self.id_dim, feature.divisor, quantized=self.quantized, **settings)
        kind = QuantizedEmbedding if self.quantized else Embedding
        return kind(feature.rows, self.id_dim, **settings)

    @property
    def width(self) -> int:
        """Size of the last axis of the output for all columns."""
        return self._width(self.features)

    def _width(self, features: Sequence[Any]) -> int:
        return sum(self.id_dim if feature.dtype == "int32" else (feature.shape or (1,))[0] for feature in features)

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
        self.built = True

    def call(self, inputs: Mapping[str, Any], only: Sequence[str] | None = None) -> Any:
        parts = []
        for feature in self._wanted(only, inputs):
            value = inputs[feature.name]
            if feature.dtype == "int32":
                parts.append(self.tables[_table(feature)](value))
            else:
                value = ops.cast(value, self.compute_dtype)
                parts.append(value if feature.shape else ops.expand_dims(value, -1))
        return ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    def compute_output_shape(
        self, input_shape: Mapping[str, tuple[int | None, ...]], only: Sequence[str] | None = None
    ) -> tuple[int | None, ...]:
        wanted = self._wanted(only, input_shape)
        return (*tuple(input_shape[wanted[0].name])[:2], self._width(wanted))

    def compute_output_spec(self, inputs: Mapping[str, Any], only: Sequence[str] | None = None) -> Any:
        shapes = {name: tuple(x.shape) for name, x in inputs.items()}
        return keras.KerasTensor(self.compute_output_shape(shapes, only), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        features = [feature.model_dump(mode="json") for feature in self.features]
        return {**super().get_config(), "features": features, "id_dim": self.id_dim, "quantized": self.quantized}


def _table(feature: Any) -> str:
    return str(feature.table or feature.name)
