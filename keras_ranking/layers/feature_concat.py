"""Columns of a schema as one vector a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from pydantic import TypeAdapter

from keras_ranking.schema import Feature

_FEATURES: TypeAdapter[tuple[Any, ...]] = TypeAdapter(tuple[Feature, ...])


@keras.saving.register_keras_serializable(package="keras_ranking")
class FeatureConcat(keras.layers.Layer):
    """Embeds ids and categories, and concatenates them with numbers and vectors, in schema order.

        out = [E_1[id_1] ; ... ; number_1 ; ... ; vector_1 ; ...]

    Args:
        features: `Id`, `Category`, `Number`, `Vector` columns (or their dictionaries).
        id_dim: width of each id's or category's embedding. Our choice: 16 (papers: 30 in LiRank, 64 in LiGR).

    Call arguments:
        inputs: dict of tensors by column name: int32 (B, T), float32 (B, T) or float32 (B, T, size).

    Output:
        (B, T, width), `width` = id_dim a column of ids, 1 a number, size a vector.

    Raises:
        ValueError: no features, one of them twice, `id_dim` below 1, or inputs without one of the columns.

    Example:
        >>> layer = FeatureConcat([kr.Id("item_id", buckets=100), kr.Number("age")], id_dim=4)
        >>> layer({"item_id": np.zeros((2, 3), "int32"), "age": np.zeros((2, 3), "float32")}).shape
        (2, 3, 5)
    """

    def __init__(self, features: Sequence[Any], id_dim: int = 16, **settings: Any) -> None:
        super().__init__(**settings)
        if id_dim < 1:
            raise ValueError(f"`id_dim` must be a positive integer. Received: id_dim={id_dim}")
        columns = tuple(feature if isinstance(feature, dict) else feature.model_dump() for feature in features)
        self.features = _FEATURES.validate_python(columns)
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`features` must be at least one column, each once. Received: {names}")
        self.id_dim = id_dim
        self.tables = {
            feature.name: keras.layers.Embedding(feature.rows, id_dim, name=f"table_{feature.name}", dtype=self.dtype_policy)
            for feature in self.features
            if feature.dtype == "int32"
        }

    @property
    def width(self) -> int:
        """Size of the last axis of the output."""
        return sum(self.id_dim if feature.dtype == "int32" else (feature.shape or (1,))[0] for feature in self.features)

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        missing = [feature.name for feature in self.features if feature.name not in input_shape]
        if missing:
            raise ValueError(f"inputs must have the columns {[feature.name for feature in self.features]}. Missing: {missing}")
        for name, table in self.tables.items():
            table.build(input_shape[name])
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Any:
        parts = []
        for feature in self.features:
            value = inputs[feature.name]
            if feature.dtype == "int32":
                parts.append(self.tables[feature.name](value))
            else:
                value = ops.cast(value, self.compute_dtype)
                parts.append(value if feature.shape else ops.expand_dims(value, -1))
        return ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    def compute_output_shape(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> tuple[int | None, ...]:
        return (*tuple(input_shape[self.features[0].name])[:2], self.width)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "features": [feature.model_dump(mode="json") for feature in self.features], "id_dim": self.id_dim}
