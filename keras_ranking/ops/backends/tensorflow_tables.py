"""Rows of tables in TensorFlow: `IndexedSlices` and scattered writes to the variable's own memory.

XLA on CPU copies a variable that it writes to, so the writes of a compiled step stand outside of it (`models/table_steps.py`).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_ranking.ops.backends.tensorflow import _in_xla


def look_up(table: Any, ids: Any, half: bool) -> Any:
    """See `keras_ranking.ops.tables.look_up`."""
    ids = tf.convert_to_tensor(ids)
    ids = tf.where(ids < 0, ids + tf.cast(table.shape[0], ids.dtype), ids)
    return tf.gather(table.value, ids)  # of the variable, not of its value: reads these rows alone


def split(gradient: Any) -> tuple[Any, Any] | None:
    """(ids, gradients of these rows) of `IndexedSlices`; None for a gradient of the whole table."""
    return (gradient.indices, gradient.values) if isinstance(gradient, tf.IndexedSlices) else None


def distinct(ids: Any, gradients: Any, rows: int) -> tuple[Any, Any]:
    """Each row once, with the sum of its gradients. In XLA, whose shapes are fixed, ids from `rows` on fill up: it ignores them."""
    ids = tf.cast(ids, tf.int32)
    if not _in_xla():
        unique, place = tf.unique(ids)
        return unique, tf.math.unsorted_segment_sum(gradients, place, tf.size(unique))
    order = tf.argsort(ids, stable=True)
    ordered = tf.gather(ids, order)
    place = tf.cumsum(tf.cast(tf.concat([[False], ordered[1:] != ordered[:-1]], axis=0), tf.int32))
    size = tf.size(ids)
    sums = tf.math.unsorted_segment_sum(tf.gather(gradients, order), place, size)
    unique = tf.math.unsorted_segment_max(ordered, place, size)
    return tf.where(tf.range(size) <= place[-1], unique, rows + tf.range(size)), sums


def read(variable: Any, ids: Any) -> Any:
    """Rows of a variable."""
    return tf.gather(_resource(variable), ids)


def write(variable: Any, ids: Any, values: Any) -> None:
    """Set rows of a variable, in place outside XLA."""
    resource = _resource(variable)
    resource.scatter_update(tf.IndexedSlices(tf.cast(values, resource.dtype), ids))


def _resource(variable: Any) -> Any:
    return variable.value if hasattr(variable, "value") and not callable(variable.value) else variable


def compiled(function: Any) -> Any:
    """The function compiled by XLA; not a `tf.function`, which a SavedModel of its owner would contain."""
    compiled_function = tf.function(function, jit_compile=True, reduce_retracing=True, autograph=False)
    return lambda data: compiled_function(data)


def fill(variable: Any, start: int, rows: Any) -> None:
    """Set the rows from `start` on. An assignment to a slice would copy the variable at the second time."""
    write(variable, tf.range(start, start + rows.shape[0]), rows)
