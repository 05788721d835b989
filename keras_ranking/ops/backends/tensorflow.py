"""Span attention in TensorFlow: a while-loop over blocks of queries ('loop'), or tiles compiled by XLA ('xla').

'loop' takes unknown B and T, runs without XLA and exports. The rows of the batch are concatenated to one row of B T queries; a block
reads the key range that its spans reach; its gradient recomputes the block from the saved logarithm of the softmax's sum
(`tensorflow_loop.py`, `tensorflow_blocks.py`). 'xla' needs static shapes (`tensorflow_xla.py`).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_ranking.ops.backends import tensorflow_loop
from keras_ranking.ops.spans import Spans

KERNELS = ("loop", "xla")


def span_attention(query: Any, key: Any, value: Any, spans: Spans, scale: float, kernel: str, stride: int = 1) -> Any:
    """See `keras_ranking.ops.span_attention`."""
    if kernel == "auto":
        kernel = "xla" if _in_xla() else "loop"
    dtype = query.dtype
    query, key, value = _summed_in_float32(query, key, value)
    if kernel == "xla":
        from keras_ranking.ops.backends import tensorflow_xla

        return tf.cast(tensorflow_xla.span_attention(query, key, value, spans, scale, stride), dtype)
    return tf.cast(tensorflow_loop.attend(query, key, value, spans, scale, stride, with_total=False)[0], dtype)


def candidate_attention(query: Any, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """See `keras_ranking.ops.candidate_attention`."""
    spans = Spans.history_only(lengths, tf.shape(query)[1])
    dtype = query.dtype
    query, key, value, self_key, self_value = _summed_in_float32(query, key, value, self_key, self_value)
    if _in_xla():
        from keras_ranking.ops.backends import tensorflow_xla

        out, total = tensorflow_xla.attend(query, key, value, spans, scale, 1)
    else:
        out, total = tensorflow_loop.attend(query, key, value, spans, scale, 1, with_total=True)
    return tf.cast(out if self_key is None else join(query, out, total, self_key, self_value, scale), dtype)


def _summed_in_float32(*parts: Any) -> list[Any]:
    """float16 as float32: TensorFlow's product of two float16 matrices is float16 too, whose largest number, 65,504, a logit may pass."""
    return [tf.cast(part, tf.float32) if part is not None and part.dtype == tf.float16 else part for part in parts]


def join(query: Any, out: Any, total: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """Adds one key per query to a finished softmax: weights from the logarithms (B, T, H) of the two sums."""
    wide = total.dtype
    group = query.shape[2] // self_key.shape[2]
    own_key, own_value = (tf.cast(tf.repeat(part, group, axis=2) if group > 1 else part, wide) for part in (self_key, self_value))
    score = tf.reduce_sum(tf.cast(query, wide) * own_key, axis=-1) * scale
    peak = tf.maximum(total, score)
    old, new = tf.exp(total - peak), tf.exp(score - peak)
    joined = (tf.cast(out, wide) * old[..., None] + own_value * new[..., None]) / (old + new)[..., None]
    return tf.cast(joined, query.dtype)


def _in_xla() -> bool:
    from tensorflow.python.ops import control_flow_util  # no public function for: is a compiled program being traced

    return not tf.executing_eagerly() and bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
