"""Embeddings of 64-bit ids without a vocabulary."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import TABLES, PassesMask, WeightRules, WholeInputs
from keras_ranking.layers.embedding.quantized_embedding import QuantizedEmbedding
from keras_ranking.layers.embedding.table_embedding import Embedding
from keras_ranking.ops.integers import int32

SPACE = 2**32


@keras.saving.register_keras_serializable(package="keras_ranking")
class QuotientRemainderEmbedding(WholeInputs, PassesMask, WeightRules, keras.layers.Layer):
    """Quotient and remainder tables for the two 32-bit halves (B, C) of an id's 64-bit fingerprint.

        E(id) = Q_b[B // m] + R_b[B % m]   (+)   Q_c[C // m] + R_c[C % m]         B, C in 0 .. 2^32 - 1, (+) sum or concatenation

    LiRank (2402.06859), stated: no vocabulary and so no unknown ids; separate tables for the halves; the sum inside a half (products
    do not converge). The reason for two halves is derived: (B, C) has almost no collisions, one half alone has. How the halves are
    combined is not stated: `join` offers both. The paper's compression by 1000 is m = 1000: 4,294,968 + 1000 rows per half; the
    fewest rows are at m = 65,536: 131,072 per half. The initial values, uniform in +-0.05 as in Keras, are our choice.

    Halves are given as int32 **bit patterns**, because JAX has no 64-bit integers by default and torch little unsigned arithmetic.
    They are divided as unsigned numbers, in int32 only: with u = 2 h + b, h = h' m + r', the quotient is 2 h' + (2 r' + b) // m.
    Floats would lose bits above 2^24.

    Args:
        dim: D, width of each table.
        divisor: m, from 2 to 2^30.
        join: 'sum' or 'concat': how the halves are combined.
        initializer, or embeddings_initializer: of all tables.
        embeddings_regularizer, embeddings_constraint: of all tables, as in `keras.layers.Embedding`.
        mask_zero: whether ids whose two halves are 0 are padding: the outputs then have a Keras mask. They are embedded all the same.
        quantized: tables in int8, see `QuantizedEmbedding`.

    Call arguments:
        inputs: int32 (B, ..., 2) from `keras_ranking.ops.hashing.split_fingerprint`.

    Output:
        (B, ..., D), or (B, ..., 2 D) with 'concat'.

    Raises:
        ValueError: `dim`, `divisor` or `join` out of range, a last axis that is not 2, or inputs that are not int32.

    Example:
        >>> from keras_ranking.ops.hashing import split_fingerprint
        >>> layer = kr.layers.QuotientRemainderEmbedding(4, divisor=65_536)
        >>> layer(split_fingerprint(kr.ops.fingerprint64(["member:1", "member:2", "member:3"]))).shape
        (3, 4)
    """

    whole = ("inputs",)
    weight_rules = TABLES

    def __init__(
        self,
        dim: int,
        divisor: int,
        join: str = "sum",
        initializer: Any = "uniform",
        quantized: bool = False,
        mask_zero: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        for rule in ("embeddings_regularizer", "embeddings_constraint"):
            if quantized and getattr(self, rule) is not None:
                raise ValueError(f"`quantized` tables are not trained: no {rule}. Received: quantized=True and one.")
        if dim < 1:
            raise ValueError(f"`dim` must be a positive integer. Received: dim={dim}")
        if not 2 <= divisor <= 2**30:
            raise ValueError(f"`divisor` must be from 2 to 2**30. Received: divisor={divisor}")
        if join not in ("sum", "concat"):
            raise ValueError(f"`join` must be 'sum' or 'concat'. Received: join={join!r}")
        self.dim, self.divisor, self.join = int(dim), int(divisor), join
        self.initializer, self.quantized = keras.initializers.get(self.embeddings_initializer or initializer), bool(quantized)
        self.mask_zero = bool(mask_zero)
        rows = {"quotient": -(-SPACE // self.divisor), "remainder": self.divisor}
        self.tables = [self._table(size, f"{half}_{part}") for half in ("low", "high") for part, size in rows.items()]

    def _table(self, size: int, name: str) -> Any:
        if self.quantized:
            return QuantizedEmbedding(size, self.dim, dtype=self.dtype_policy, name=name)
        # cloned: an initializer that is called twice returns the same numbers twice
        drawn = self.initializer.clone() if isinstance(self.initializer, keras.initializers.Initializer) else self.initializer
        rules = self.rules(None, ("embeddings_regularizer", "embeddings_constraint"))
        return Embedding(size, self.dim, embeddings_initializer=drawn, **rules, dtype=self.dtype_policy, name=name)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if input_shape[-1] != 2:
            raise ValueError(f"`inputs` must be (B, ..., 2), the two halves of each id. Received: shape={tuple(input_shape)}")
        for table in self.tables:
            table.build(tuple(input_shape)[:-1])
        self.built = True

    def rows(self, inputs: Any) -> tuple[Any, Any]:
        """Quotient and remainder by m of int32 bit patterns read as unsigned numbers; int32 of the same shape."""
        bit = ops.bitwise_and(inputs, int32(1))
        rest = ops.bitwise_and(ops.right_shift(inputs, int32(1)), int32(0x7FFFFFFF))  # the mask clears the copied sign
        high = ops.floor_divide(rest, int32(self.divisor))
        low = 2 * (rest - high * self.divisor) + bit  # below 2 m
        carry = ops.cast(low >= self.divisor, "int32")
        return 2 * high + carry, low - carry * self.divisor

    def call(self, inputs: Any) -> Any:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype != "int32":
            raise ValueError(f"`inputs` must be int32 halves, as `split_fingerprint` makes them. Received: dtype={dtype}")
        quotient, remainder = self.rows(inputs)
        halves = [self.tables[2 * i](quotient[..., i]) + self.tables[2 * i + 1](remainder[..., i]) for i in range(2)]
        return halves[0] + halves[1] if self.join == "sum" else ops.concatenate(halves, axis=-1)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Keras's hook: which ids are no padding, with `mask_zero`."""
        passed = super().compute_mask(inputs, previous_mask)
        if not self.mask_zero or inputs is None:  # None: masks of several inputs alone
            return passed
        real = ops.any(ops.not_equal(inputs, 0), axis=-1)
        return real if passed is None else ops.logical_and(real, passed[0])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.dim * (1 if self.join == "sum" else 2))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "divisor": self.divisor,
            "join": self.join,
            "initializer": keras.initializers.serialize(self.initializer),
            "quantized": self.quantized,
            "mask_zero": self.mask_zero,
        }
