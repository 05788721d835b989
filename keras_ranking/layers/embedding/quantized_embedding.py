"""An int8 embedding table for serving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.layers.base import PassesMask, WholeInputs

_CHUNK = 65_536
_FAR = 2.0**126
_QUANTIZED: ContextVar[bool] = ContextVar("quantized", default=False)


@contextlib.contextmanager
def quantized_tables() -> Iterator[None]:
    """Context in which new layers hold their embedding tables in int8. With it a trained model is rebuilt for serving.

    Yields:
        None.

    Example:
        >>> with kr.layers.quantized_tables():
        ...     layer = kr.layers.FeatureConcat([kr.Id("item_id", buckets=100)], id_dim=4)
        >>> layer.quantized
        True
    """
    token = _QUANTIZED.set(True)
    try:
        yield
    finally:
        _QUANTIZED.reset(token)


def tables_are_quantized() -> bool:
    """Whether the caller is inside `quantized_tables`."""
    return _QUANTIZED.get()


def quantize_rows(table: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row-wise middle-max int8 codes of a float table (rows, D): `x ~ middle + code * scale`.

        scale = (max - min) / 255,   middle = (128 max + 127 min) / 255,   code = round((x - middle) / scale) in [-128, 127]

    LiRank (2402.06859), stated. The error of `dequantize_rows` is at most scale / 2 + 2^-22 max|row| for a row: half a step of
    the grid, and float32 rounding. A constant row has scale 0 and is restored exactly. A row with a value beyond 2^126 has 254 steps
    about the middle of its range instead, (max + min) / 2, so that it decodes to finite numbers.

    Args:
        table: (rows, D), floats.

    Returns:
        int8 (rows, D), float32 middle (rows,), float32 scale (rows,).

    Raises:
        ValueError: a table that is not (rows, D) with D at least 1, or has values that are not finite in float32.

    Example:
        >>> codes, middle, scale = kr.layers.quantize_rows(np.array([[-1.28, 0.0, 1.27], [0.5, 0.5, 0.5]]))
        >>> codes.tolist()
        [[-128, 0, 127], [0, 0, 0]]
    """
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[1] < 1:
        raise ValueError(f"`table` must be (rows, dim). Received: shape={table.shape}")
    codes = np.empty(table.shape, np.int8)
    middle, scale = (np.empty(len(table), np.float32) for _ in range(2))
    for start in range(0, len(table), _CHUNK):  # in chunks: a float64 copy of a whole production table would not fit
        part = slice(start, start + _CHUNK)
        rows = table[part].astype(np.float64)
        wrong = ~(np.abs(rows) <= np.finfo(np.float32).max).all(axis=1)
        if wrong.any():
            row = start + int(np.flatnonzero(wrong)[0])
            raise ValueError(f"`table` must be finite in float32. Received: {table[row]} at row {row}")
        low, high = rows.min(axis=1), rows.max(axis=1)
        # A row that reaches the end of float32's range: 255 steps from 128 below the middle would pass it while they are added up.
        far = np.maximum(np.abs(low), np.abs(high)) > _FAR
        middle[part] = np.where(far, (high / 2 + low / 2), (128 * high + 127 * low) / 255)
        scale[part] = np.where(far, (high / 254 - low / 254) * (1 - 2**-22), (high - low) / 255)
        # From the stored float32 numbers, with which the codes are decoded.
        step = scale[part].astype(np.float64)[:, None]
        offset = rows - middle[part].astype(np.float64)[:, None]
        steps = np.divide(offset, step, out=np.zeros_like(offset), where=step > 0)
        codes[part] = np.clip(np.rint(steps), np.where(far, -127, -128)[:, None], 127)
    return codes, middle, scale


def dequantize_rows(codes: Any, middle: Any, scale: Any) -> np.ndarray:
    """The float32 table of int8 codes: `middle + code * scale`.

    Args:
        codes: int8 (rows, D), from `quantize_rows`, as are the others.
        middle: (rows,).
        scale: (rows,).

    Returns:
        float32 (rows, D).

    Example:
        >>> codes, middle, scale = kr.layers.quantize_rows(np.array([[-1.28, 0.0, 1.27], [0.5, 0.5, 0.5]]))
        >>> kr.layers.dequantize_rows(codes, middle, scale)[1].tolist()
        [0.5, 0.5, 0.5]
    """
    step = np.asarray(scale, np.float32)[:, None]
    return np.asarray(middle, np.float32)[:, None] + np.asarray(codes).astype(np.float32) * step


@keras.saving.register_keras_serializable(package="keras_ranking")
class QuantizedEmbedding(WholeInputs, PassesMask, keras.layers.Layer):
    """Embedding look-up in an int8 table: `E(id) = middle[id] + codes[id] * scale[id]`.

    Made by `from_table` after training, for serving; it has no trainable weights (LiRank 2402.06859, stated). Rows are gathered as
    int8 and scaled afterwards, so the float32 table never exists. With D = 128 a row has 136 bytes instead of 512, 73.4 % less.

    Args:
        rows: number of rows.
        dim: D.

    Call arguments:
        inputs: integer ids (B, ...), in 0 .. rows - 1.

    Output:
        (B, ..., D).

    Raises:
        ValueError: `rows` or `dim` below 1.

    Example:
        >>> layer = kr.layers.QuantizedEmbedding.from_table(np.array([[-1.28, 0.0, 1.27], [0.5, 0.5, 0.5]]))
        >>> keras.ops.convert_to_numpy(layer(np.array([1]))).tolist()
        [[0.5, 0.5, 0.5]]
    """

    whole = ("inputs",)

    def __init__(self, rows: int, dim: int, **settings: Any) -> None:
        super().__init__(**settings)
        if rows < 1 or dim < 1:
            raise ValueError(f"`rows` and `dim` must be positive integers. Received: rows={rows}, dim={dim}")
        self.rows, self.dim = int(rows), int(dim)

    @classmethod
    def from_table(cls, table: Any, **settings: Any) -> QuantizedEmbedding:
        """The layer with the rows of a float table (rows, D), such as `convert_to_numpy(embedding.embeddings)`."""
        codes, middle, scale = quantize_rows(table)
        layer = cls(*codes.shape, **settings)
        layer.build((None,))
        layer.codes.assign(codes)
        layer.middle.assign(middle)
        layer.scale.assign(scale)
        return layer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if hasattr(self, "codes"):  # by `from_table`
            return
        # float32 under every dtype policy: the error of bfloat16 would be larger than that of the codes.
        numbers = {"initializer": "zeros", "trainable": False, "dtype": "float32", "autocast": False}
        self.codes = self.add_weight(name="codes", shape=(self.rows, self.dim), initializer="zeros", trainable=False, dtype="int8")
        self.middle = self.add_weight(name="middle", shape=(self.rows,), **numbers)
        self.scale = self.add_weight(name="scale", shape=(self.rows,), **numbers)
        self.built = True

    def call(self, inputs: Any) -> Any:
        codes = ops.cast(ops.take(self.codes, inputs, axis=0), "float32")
        middle, scale = (ops.expand_dims(ops.take(part, inputs, axis=0), -1) for part in (self.middle, self.scale))
        return ops.cast(middle + codes * scale, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*tuple(input_shape), self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rows": self.rows, "dim": self.dim}
