"""Span attention in TensorFlow without XLA: a while-loop over blocks of queries, forward and gradient.

All products in the loop are of two matrices, one head at a time: without XLA, TensorFlow's own batched product takes up to three times
as long on a CPU. For the same reason keys and values are also stored as (D, S), so that no product has to transpose the probabilities
of a block. If oneDNN executes TensorFlow's operations (the default on CPUs with AVX-512), its batched products and its softmax are used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from keras_ranking.ops.backends.tensorflow_blocks import BLOCK, HIDDEN, Block, Rows, wide_dtype, zeros_where_unused
from keras_ranking.ops.spans import Spans

_UNROLLED = 8  # heads with separate products: with more, tracing the graph takes seconds


def attend(query: Any, key: Any, value: Any, spans: Spans, scale: float, stride: int, with_total: bool) -> tuple[Any, Any]:
    """out (B, T, H, D) and the logarithm of the softmax's sum (B, T, H), which is valid only if `with_total`."""
    kv_heads = key.shape[2]
    group, size = query.shape[2] // kv_heads, query.shape[3]
    stock = not with_total and (_onednn() or kv_heads > _UNROLLED)
    forward, backward = _functions(query.dtype, kv_heads, group, size, scale, stride, stock)
    parts = tuple(tf.stop_gradient(tf.cast(part, tf.int32)) for part in spans)
    given: list[Any] = []  # the outputs of `run`: a second derivative must go through these

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def run(q: Any, k: Any, v: Any) -> Any:
        # Operands without gradient: otherwise a tape would also trace the gradient of the forward loop.
        out, total = forward(*map(tf.stop_gradient, (q, k, v)), *parts)

        def gradient(grad_out: Any, grad_total: Any) -> Any:
            # While `run` is recorded, as in forward differentiation, its outputs are not known yet.
            return backward(q, k, v, *parts, *(given or (out, total)), tf.cast(grad_out, q.dtype), tf.cast(grad_total, total.dtype))

        return (out, total), gradient

    given += run(query, key, value)
    given[0].set_shape(query.shape)
    given[1].set_shape(query.shape[:3])
    return given[0], given[1]


@functools.lru_cache(maxsize=256)
def _functions(dtype: Any, kv_heads: int, group: int, size: int, scale: float, stride: int, stock: bool) -> tuple[Any, Any]:
    """Forward and backward as graph functions: traced once for all B, T and S. `stock`: batched products and `tf.nn.softmax`."""
    query = tf.TensorSpec([None, None, kv_heads * group, size], dtype)
    keys = tf.TensorSpec([None, None, kv_heads, size], dtype)
    part = tf.TensorSpec([None, None], tf.int32)
    total = tf.TensorSpec([None, None, kv_heads * group], wide_dtype(dtype))
    heads = (kv_heads, group, size, scale, stride, stock)

    @tf.function(input_signature=[query, keys, keys, part, part, part], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def forward(q: Any, k: Any, v: Any, start: Any, end: Any, own: Any) -> Any:
        return _forward(q, k, v, Spans(start, end, own), *heads)

    @tf.function(  # type: ignore[untyped-decorator, unused-ignore]
        input_signature=[query, keys, keys, part, part, part, query, total, query, total], autograph=False
    )
    def backward(q: Any, k: Any, v: Any, start: Any, end: Any, own: Any, out: Any, total: Any, grad_out: Any, grad_total: Any) -> Any:
        return _backward(q, k, v, Spans(start, end, own), out, total, grad_out, grad_total, *heads)

    return forward, backward


def _onednn() -> bool:
    from tensorflow.python.util import _pywrap_util_port  # no public function for: are oneDNN's operations switched on

    return bool(_pywrap_util_port.IsMklEnabled())


def _transposed(heads: list[Any]) -> list[Any]:
    return [tf.linalg.matrix_transpose(head) for head in heads]


def _product(a: Any, b: Any, wide: Any) -> Any:
    return tf.cast(tf.matmul(a, b), wide)


def _folds(dtype: Any, scale: float) -> bool:
    """Whether queries may be scaled before the product: in half precision only a power of two does not round."""
    return dtype == wide_dtype(dtype) or math.frexp(scale)[0] == 0.5


def _forward(
    query: Any, key: Any, value: Any, spans: Spans, kv_heads: int, group: int, size: int, scale: float, stride: int, stock: bool
) -> tuple[Any, Any]:
    rows, wide = Rows(query, key, value, spans, kv_heads, group, size, stride, stock), wide_dtype(query.dtype)
    folds = _folds(query.dtype, scale)
    q = rows.of_queries(query) * (scale if folds else 1.0)
    k, v = _transposed(rows.heads(rows.of_keys(key))), rows.heads(rows.of_keys(value))

    def array(dtype: Any, *shape: int) -> Any:
        return tf.TensorArray(dtype, size=0, dynamic_size=True, infer_shape=False, element_shape=[None, kv_heads, group, *shape])

    def body(step: Any, low: Any, end: Any, outs: Any, totals: Any) -> Any:
        high = tf.minimum(low + BLOCK, end)
        block = Block(rows, low, high, wide)
        out, total = [], []
        for queries, keys, values in zip(block.queries(q), k, v, strict=True):
            scores = _product(queries, block.keys_transposed(keys), wide)
            scores = (scores if folds else scores * scale) + block.bias
            if stock:
                p = tf.cast(tf.nn.softmax(scores), query.dtype)
                out.append(tf.matmul(p, block.keys(values)))
                total.append(tf.zeros_like(queries[..., :1], wide))
                continue
            peak = tf.reduce_max(scores, axis=-1, keepdims=True)
            p = tf.exp(scores - peak)
            share = tf.reduce_sum(p, axis=-1, keepdims=True)
            out.append(tf.cast(_product(tf.cast(p, query.dtype), block.keys(values), wide) / share, query.dtype))
            total.append(peak + tf.math.log(share))
        end = tf.cond(high < end, lambda: end, lambda: rows.ends[tf.minimum(high, rows.count - 1)])
        return step + 1, high, end, outs.write(step, block.joined(out, size)), totals.write(step, block.joined(total, 1))

    def run() -> tuple[Any, Any]:
        state = (0, 0, rows.ends[0], array(query.dtype, size), array(wide, 1))
        *_, outs, totals = tf.while_loop(lambda step, low, *_: low < rows.count, body, state, parallel_iterations=1)
        shape = tf.shape(query)
        # The values of rows that see nothing are invalid.
        total = tf.where(rows.some[:, None, None], totals.concat()[..., 0], tf.constant(HIDDEN, wide))
        return tf.reshape(zeros_where_unused(outs.concat(), rows.some), shape), tf.reshape(total, shape[:3])

    nothing = (tf.zeros_like(query), tf.fill(tf.shape(query)[:3], tf.constant(HIDDEN, wide)))
    return tf.cond(rows.count > 0, run, lambda: nothing)  # type: ignore[no-any-return]


def _backward(
    query: Any,
    key: Any,
    value: Any,
    spans: Spans,
    out: Any,
    total: Any,
    grad_out: Any,
    grad_total: Any,
    kv_heads: int,
    group: int,
    size: int,
    scale: float,
    stride: int,
    stock: bool,
) -> tuple[Any, Any, Any]:
    rows, wide = Rows(query, key, value, spans, kv_heads, group, size, stride, stock), wide_dtype(query.dtype)
    folds = _folds(query.dtype, scale)
    # On a CPU the products compute S - L and dP - D directly, by one more column of the queries and a row of ones. A GPU may round the
    # operands of a product to ten bits. In half precision D would be computed from rounded outputs.
    within = query.dtype == wide and not tf.config.list_physical_devices("GPU")
    q, do = rows.of_queries(query) * (scale if folds else 1.0), rows.of_queries(grad_out)
    sums = rows.of_queries(tf.zeros_like(total) if stock else total)  # `tf.nn.softmax` needs no sum
    k = rows.heads(rows.of_keys(key))
    k_transposed, v = _transposed(k), _transposed(rows.heads(rows.of_keys(value)))
    if within:
        # D_i = sum(dO O); the gradient of the sum's logarithm is the same for every pair of the row.
        delta = rows.of_queries(tf.reduce_sum(grad_out * out, axis=-1) - grad_total)
        q, do = tf.concat([q, -sums], -1), tf.concat([do, -delta], -1)
        k_transposed, v = ([tf.concat([head, tf.ones_like(head[..., :1, :])], -2) for head in heads] for heads in (k_transposed, v))
    else:
        more = rows.of_queries(grad_total)

    def block_step(at: Any, end: Any, first: Any, last: Any, dk: Any, dv: Any) -> Any:
        high = tf.minimum(at + BLOCK, end)
        block = Block(rows, at, high, wide)
        mine = [block.queries(part) for part in ((q, do) if within else (q, do, sums, more))]
        dq = []
        for head in range(len(k)):
            queries, grads, *others = (part[head] for part in mine)
            scores, dp = (_product(a, block.keys_transposed(b[head]), wide) for a, b in ((queries, k_transposed), (grads, v)))
            if not within:
                scores = (scores if folds else scores * scale) - others[0]
            p = tf.nn.softmax(scores + block.bias) if stock else tf.exp(scores + block.bias)
            if not within:
                dp += others[1] - tf.reduce_sum(p * dp, axis=-1, keepdims=True)
            ds, p = tf.cast(p * dp, query.dtype), tf.cast(p, query.dtype)
            queries, grads = queries[..., :size], grads[..., :size]
            dq.append(tf.cast(_product(ds, block.keys(k[head]), wide) * scale, query.dtype))
            more_k = tf.cast(tf.matmul(queries, ds, transpose_a=True), wide) * (1.0 if folds else scale)
            dk[head] += block.spread(more_k, first, last)
            dv[head] += block.spread(tf.cast(tf.matmul(grads, p, transpose_a=True), wide), first, last)
        return high, block.joined(dq, size), dk, dv

    def part(step: Any, low: Any, dqs: Any, dks: Any, dvs: Any) -> Any:
        end = rows.ends[low]
        first, last = rows.keys_of(low, end)

        def body(at: Any, number: Any, dqs: Any, dk: Any, dv: Any) -> Any:
            high, dq, dk, dv = block_step(at, end, first, last, list(dk), list(dv))
            return high, number + 1, dqs.write(number, dq), tuple(dk), tuple(dv)

        outer = [kv_heads, size] if stock else [size]
        zero = (tf.zeros([*outer, last - first], wide),) * len(k)
        free = (tf.TensorShape([*outer, None]),) * len(k)
        _, _, dqs, dk, dv = tf.while_loop(
            lambda at, *_: at < end,
            body,
            (low, dqs.size(), dqs, zero, zero),
            shape_invariants=(*[tf.TensorShape([])] * 3, free, free),
            parallel_iterations=1,
        )
        dk, dv = (tf.cast(tf.transpose(part[0] if stock else tf.stack(part), [2, 0, 1]), key.dtype) for part in (dk, dv))
        return step + 1, end, dqs, dks.write(step, dk), dvs.write(step, dv)

    def array(*shape: Any) -> Any:
        return tf.TensorArray(query.dtype, size=0, dynamic_size=True, infer_shape=False, element_shape=[None, *shape])

    def run() -> tuple[Any, Any, Any]:
        state = (0, 0, array(kv_heads, group, size), array(kv_heads, size), array(kv_heads, size))
        _, _, dqs, dks, dvs = tf.while_loop(lambda step, low, *_: low < rows.count, part, state, parallel_iterations=1)
        return (
            tf.reshape(dqs.concat(), tf.shape(query)),
            tf.reshape(dks.concat(), tf.shape(key)),
            tf.reshape(dvs.concat(), tf.shape(value)),
        )

    nothing = (tf.zeros_like(query), tf.zeros_like(key), tf.zeros_like(value))
    return tf.cond(rows.count > 0, run, lambda: nothing)  # type: ignore[no-any-return]
