"""The schema's encoding as a TensorFlow graph: raw values of the log -> serving tensors, bit for bit as in numpy.

XLA cannot compile strings, and a compiler that fuses a product and a sum changes the last bit: everything here is placed on the
CPU and excluded from auto-clustering. Values that the schema refuses (a missing number without a replacement, a negative one under a
logarithm, a time before the epoch) become NaN, a time -1, in counted cells: `guarded` then marks the request. They are no errors of
the graph, because a server that batches calls would fail the other calls of the batch as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_ranking.columns import Category, Id, Ids, Number, SemanticId
from keras_ranking.ops import logarithm
from keras_ranking.schema import Schema
from keras_ranking.serving.protocol.model_folder import AXES
from keras_ranking.serving.protocol.raw_values import Specs, column_of, columns_of

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_INT32_MAX = 2**31 - 1
_NAN = np.float32(np.nan)


class RawEncoder:
    """Raw tensors -> serving tensors.

    Args:
        schema: of the model.
        specs: inputs of the signature `raw`, see `raw_values.raw_specs`.

    Attributes:
        tables: lookup tables of vocabularies, which the saved graph must track.
    """

    def __init__(self, schema: Schema, specs: Specs) -> None:
        self.schema, self.specs = schema, specs
        self.columns = columns_of(schema)
        self.tables: dict[str, Any] = {}
        self.codes: dict[str, Any] = {}
        for name in specs:
            column = column_of(self.columns, name)
            if isinstance(column, SemanticId):
                self.codes[column.name] = tf.constant(column.code_table())
            if isinstance(column, (Category, Ids, SemanticId)) and column.vocabulary is not None and column.name not in self.tables:
                keys = tf.constant([word.encode("utf-8") for word in column.vocabulary])
                rows = tf.range(1, len(column.vocabulary) + 1, dtype=tf.int64)
                self.tables[column.name] = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, rows), default_value=0)

    def __call__(self, raw: dict[str, Any]) -> dict[str, Any]:
        with tf.device("/CPU:0"), tf.xla.experimental.jit_scope(compile_ops=False):
            return {name: self._encoded(name, raw) for name in self.specs}

    def _encoded(self, name: str, raw: dict[str, Any]) -> Any:
        value, axis = raw[name], self.specs[name]["axis"]
        column = column_of(self.columns, name)
        if column is None and value.dtype != tf.int64:
            return tf.identity(value)
        counted = None
        if axis is not None:
            counted = tf.range(tf.shape(value)[1])[None, :] < raw[AXES[axis]][:, None]
        if column is None:
            return self._time(value, counted)
        if isinstance(column, Number):
            return self._number(column, value, counted)
        if isinstance(column, Ids):
            return _kept(_first_places(self._rows(column, value), tf.not_equal(value, "")), counted)
        if isinstance(column, (Id, Category, SemanticId)):
            return _kept(self._rows(column, _text(value)), counted)
        return _finite_or_nan(_kept(value, counted))

    def _rows(self, column: Id | Category | Ids | SemanticId, text: Any) -> Any:
        """Rows of ids given as text; of a semantic id its codes, -1 where an unknown item is refused."""
        if isinstance(column, SemanticId):
            place = tf.cast(self.tables[column.name].lookup(text), tf.int32)
            codes = tf.gather(self.codes[column.name], place)
            return tf.where((place == 0)[..., None], -1, codes) if column.unknown == "error" else codes
        if isinstance(column, (Category, Ids)) and column.vocabulary is not None:
            return tf.cast(self.tables[column.name].lookup(text), tf.int32)
        return _hashed(text, column.buckets)

    def _time(self, value: Any, counted: Any) -> Any:
        after = _kept(value - self.schema.epoch, counted)
        return tf.cast(tf.where((after >= 0) & (after <= _INT32_MAX), after, -1), tf.int32)

    def _number(self, column: Number, value: Any, counted: Any) -> Any:
        numbers = value
        if column.missing is not None:
            numbers = tf.where(tf.math.is_nan(numbers), tf.constant(column.missing, tf.float64), numbers)
        numbers = _kept(numbers, counted)
        good = tf.math.is_finite(numbers)
        if column.transform.startswith("log1p"):
            good &= numbers >= 0
            numbers = _log1p(tf.where(good, numbers, 0.0))
        if column.transform.endswith("standardise"):
            numbers = (numbers - column.mean) / column.std
        numbers = _kept(numbers, counted)
        good &= tf.abs(numbers) <= _FLOAT32_MAX
        return tf.where(good, _to_float32(tf.where(good, numbers, 0.0)), _NAN)


def _text(value: Any) -> Any:
    return tf.strings.as_string(value) if value.dtype != tf.string else value


def _hashed(text: Any, buckets: int | None) -> Any:
    """Hash as in `ops.hashing`: a row of a table, or both halves of the fingerprint; zero for the empty text."""
    empty = tf.equal(text, "")
    if buckets is not None:
        row = 1 + tf.cast(tf.strings.to_hash_bucket_fast(text, buckets - 1), tf.int32)
        return tf.where(empty, 0, row)
    prints = tf.fingerprint(tf.reshape(text, [-1]))  # farmhash64, the low byte first
    halves = tf.bitcast(tf.reshape(prints, [-1, 2, 4]), tf.int32)
    return tf.where(empty[..., None], 0, tf.reshape(halves, tf.concat([tf.shape(text), [2]], 0)))


def _first_places(rows: Any, there: Any) -> Any:
    """Rows of sets (B, [N,] size[, 2]) with those that are `there` first, in their order, and -1 in the other places."""
    order = tf.argsort(tf.cast(~there, tf.int32), axis=-1, stable=True)
    before = len(there.shape) - 1
    rows, there = (tf.gather(x, order, axis=before, batch_dims=before) for x in (rows, there))
    return tf.where(there if len(rows.shape) == len(there.shape) else there[..., None], rows, -1)


def _log1p(x: Any) -> Any:
    bits = tf.bitcast(x + 1.0, tf.int64)
    whole = tf.bitwise.bitwise_and(bits, tf.constant(logarithm.MANTISSA, tf.int64))
    mantissa = tf.bitcast(tf.bitwise.bitwise_or(whole, tf.constant(logarithm.ONE, tf.int64)), tf.float64)
    exponent = tf.bitwise.right_shift(bits, tf.constant(52, tf.int64)) - 1023
    return logarithm.series(x, exponent, mantissa, tf.where, lambda k: tf.cast(k, tf.float64))


def _to_float32(x: Any) -> Any:
    """Round as numpy does, also below 2^-126, where TensorFlow's threads would flush to zero: these bits are computed."""
    small = (tf.abs(x) < 2.0**-126) & tf.not_equal(x, 0)
    units = tf.cast(tf.round(tf.where(small, tf.abs(x), 0.0) * 2.0**149), tf.int32)
    sign = tf.where(x < 0, tf.constant(-(2**31), tf.int32), 0)
    return tf.where(small, tf.bitcast(tf.bitwise.bitwise_or(units, sign), tf.float32), tf.cast(x, tf.float32))


def _kept(value: Any, counted: Any) -> Any:
    """Zero in cells that are not counted."""
    if counted is None:
        return value
    for _ in range(len(value.shape) - 2):
        counted = counted[..., None]
    return tf.where(counted, value, tf.zeros([], value.dtype))


def _finite_or_nan(x: Any) -> Any:
    return tf.where(tf.math.is_finite(x), x, _NAN)
