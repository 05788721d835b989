"""Sums over the replicas of a `tf.distribute` strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def _context() -> Any:
    """That of this replica; None outside of `strategy.run`, where there is one part alone."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def total(values: Any) -> Any:
    """See `keras_ranking.ops.replicas.total`."""
    context = _context()
    return values if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def sum_gradients(gradients: list[Any]) -> list[Any]:
    """See `keras_ranking.ops.replicas.sum_gradients`."""
    context = _context()
    if context is None:
        return gradients
    known = [gradient for gradient in gradients if gradient is not None]
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, known) if known else [])
    return [None if gradient is None else next(summed) for gradient in gradients]


def whole_array(value: Any) -> Any:
    """See `keras_ranking.ops.replicas.whole_array`: of a mirrored variable, the copy of the first replica."""
    return np.asarray(value.read_value() if isinstance(value, tf.Variable) else value)
