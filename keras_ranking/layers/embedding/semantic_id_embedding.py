"""SemanticIdEmbedding: an item as the sum of embeddings of its codes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import TABLES, PassesMask, WeightRules, WholeInputs
from keras_ranking.layers.embedding.quantized_embedding import QuantizedEmbedding, tables_are_quantized
from keras_ranking.layers.embedding.table_embedding import Embedding
from keras_ranking.ops.integers import at_least

_INT32 = 2**31


@keras.saving.register_keras_serializable(package="keras_ranking")
class SemanticIdEmbedding(WholeInputs, PassesMask, WeightRules, keras.layers.Layer):
    """Embeds semantic ids, the codes of a `ResidualQuantizer`, instead of a table with a row per item.

        e = sum_l E_l[ code_l ]                                               plain: levels x codebook_size rows
        e = sum_l E_l[ prefix_l ],  prefix_l = prefix_(l-1) K + code_l  (mod B_l)      `prefixes`: codes up to and including level l

    A code has a meaning only together with the codes before it, so prefixes carry more information, with more rows: K^(l+1), or
    `buckets` if that is less (then prefixes share rows). Source: semantic ids with prefix n-grams (Zheng et al., 2504.02137, and Singh et
    al., 2306.08121); LiGR (2502.03417, v2) replaced id tables by semantic ids (stated second-hand; sizes unknown).

    Args:
        levels: number of codes per item.
        codebook_size: K, number of values of a code.
        dim: width of the output.
        prefixes: embed prefixes instead of single codes.
        buckets: maximum number of rows of a level's table, with `prefixes`; K * buckets must be below 2^31.
        quantized: tables in int8, for serving; None: True inside `quantized_tables`.

        embeddings_initializer, embeddings_regularizer, embeddings_constraint: of the tables, as in `keras.layers.Embedding`. There is no
            `mask_zero`: 0 is a code.

    Call arguments:
        inputs: int32 (..., levels), codes from 0 on; a negative code means no code: it adds nothing at its level and, with
            `prefixes`, at later levels.

    Output:
        (..., dim).

    Raises:
        ValueError: a size below 1, buckets too large, or inputs with another number of levels.

    Example:
        >>> kr.layers.SemanticIdEmbedding(levels=3, codebook_size=16, dim=8)(np.array([[1, 2, 3], [-1, -1, -1]], "int32")).shape
        (2, 8)
    """

    whole = ("inputs",)
    weight_rules = TABLES

    def __init__(
        self,
        levels: int,
        codebook_size: int,
        dim: int,
        prefixes: bool = False,
        buckets: int = 100_003,
        quantized: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        for name, value in (("levels", levels), ("codebook_size", codebook_size), ("dim", dim), ("buckets", buckets)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        if codebook_size * (buckets + 1) >= _INT32:
            raise ValueError(f"codebook_size * buckets must stay below 2^31. Received: {codebook_size} * {buckets}")
        self.levels, self.codebook_size, self.dim = int(levels), int(codebook_size), int(dim)
        self.prefixes, self.buckets = bool(prefixes), int(buckets)
        self.kind: Any = QuantizedEmbedding if (tables_are_quantized() if quantized is None else quantized) else Embedding

    @property
    def rows(self) -> list[int]:
        """Rows of each level's table."""
        sizes = [self.codebook_size ** (level + 1) if self.prefixes else self.codebook_size for level in range(self.levels)]
        return [min(size, self.buckets) if self.prefixes else size for size in sizes]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if input_shape[-1] != self.levels:
            raise ValueError(f"`inputs` must have {self.levels} codes per item. Received: shape {tuple(input_shape)}")
        self.tables = []
        for level, rows in enumerate(self.rows):
            rules = self.rules(None, TABLES) if self.kind is Embedding else {}
            table = self.kind(rows, self.dim, dtype=self.dtype_policy, name=f"level_{level}", **rules)
            table.build((None,))
            self.tables.append(table)
        self.built = True

    def call(self, inputs: Any) -> Any:
        total = None
        prefix = ops.zeros_like(inputs[..., 0])
        known = ops.ones_like(prefix, dtype="bool")
        for level, table in enumerate(self.tables):
            code = inputs[..., level]
            there = code >= 0
            known = ops.logical_and(known, there) if self.prefixes else there
            code = at_least(code, 0)
            if self.prefixes:
                prefix = (prefix * self.codebook_size + code) % self.rows[level]
                code = prefix
            part = table(code)
            part = ops.where(known[..., None], part, ops.zeros_like(part))
            total = part if total is None else total + part
        return total

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor((*inputs.shape[:-1], self.dim), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "dim": self.dim,
            "prefixes": self.prefixes,
            "buckets": self.buckets,
        }
