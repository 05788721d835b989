"""Span attention in TensorFlow for XLA: tiles with a running softmax, loops bounded by the spans.

The same algorithm as the JAX kernel. Inside a compiled program (`jit_compile=True`) it becomes part of that program; elsewhere
it is compiled separately. Batch and lengths may be unknown when traced, as in `fit`: XLA compiles once per shape, and values that
must be constants are computed from the shapes only.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # XLA's dynamic slice and in-place update have no public names

from keras_ranking.ops.spans import Spans

_GAP = 64  # a second key range that starts this far after the first is read separately
_CLOSED = -1e30  # score of a hidden pair
_SHIFTS_WHEN_UNKNOWN = 24  # doublings if B T is unknown when tracing: up to 2**24 tokens per batch
_FLOOR = -1e29  # initial running maximum: above _CLOSED, so that hidden pairs have the weight exp(-9e29) = 0


def span_attention(query: Any, key: Any, value: Any, spans: Spans, scale: float, stride: int) -> Any:
    """See `keras_ranking.ops.span_attention`."""
    return attend(query, key, value, spans, scale, stride)[0]


def attend(query: Any, key: Any, value: Any, spans: Spans, scale: float, stride: int) -> tuple[Any, Any]:
    """out (B, T, H, D) and the logarithm of the softmax's sum (B, T, H)."""
    wide = _wide(query.dtype)
    if 0 in query.shape or 0 in key.shape:
        return tf.zeros_like(query), tf.fill(tf.shape(query)[:3], tf.constant(_CLOSED, wide))
    forward, backward = _functions(scale, stride)
    parts = tuple(tf.stop_gradient(tf.cast(part, tf.int32)) for part in spans)

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def run(q: Any, k: Any, v: Any) -> Any:
        # Operands without gradient: otherwise a tape would also trace the gradient of the forward program.
        out, total = forward(*map(tf.stop_gradient, (q, k, v)), *parts)

        def gradient(grad_out: Any, grad_total: Any) -> Any:
            return backward(q, k, v, *parts, out, total, tf.cast(grad_out, q.dtype), tf.cast(grad_total, wide))

        return (out, total), gradient

    return run(query, key, value)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=64)
def _functions(scale: float, stride: int) -> tuple[Any, Any]:
    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
    return compiled(functools.partial(_forward, scale, stride)), compiled(functools.partial(_backward, scale, stride))


def _shape(values: Any) -> list[Any]:
    """Each dimension as an integer if it is known, else as a scalar tensor."""
    return [size if size is not None else tf.shape(values)[axis] for axis, size in enumerate(values.shape)]


def _wide(dtype: Any) -> Any:
    return tf.float64 if dtype == tf.float64 else tf.float32


def _slice(values: Any, begin: list[Any], size: list[int]) -> Any:
    """Part of `values` from a place that depends on data. XLA would treat the place of a `tf.slice` as a constant of the program,
    trace it back to the spans, and compile again for every batch."""
    return gen_xla_ops.xla_dynamic_slice(input=values, start_indices=tf.stack(begin), size_indices=size)


def _tile(queries: int | None) -> int:
    """Edge of a tile. Our choice from measurement: small tiles fit packed rows closely."""
    return 64 if queries is None or queries > 32 else 32


# -- spans of the concatenated rows of the batch -------------------------------------------------------------------------------


def _running(values: Any, better: Any, reverse: bool = False) -> Any:
    """Running maximum or minimum in log2(N) shifts; TensorFlow has no such scan."""
    if reverse:
        return _running(values[::-1], better)[::-1]
    known, count = values.shape[0], tf.shape(values)[0]
    for power in range(_SHIFTS_WHEN_UNKNOWN if known is None else (known - 1).bit_length()):
        shift = 2**power if known is not None else tf.minimum(2**power, count)
        values = tf.concat([values[:shift], better(values[shift:], values[: count - shift])], 0)
    return values


def _flat_spans(spans: Spans, num_keys: Any, stride: int) -> tuple[Any, Any, Any, Any]:
    """(a, b, c, d) int32 (B T,): the intervals a..b and c..d in the concatenated keys of all rows; empty ones are (B S, 0)."""
    start, end, own = spans
    batch, queries = _shape(start)
    offset = (tf.range(batch) * num_keys)[:, None]
    after = tf.broadcast_to(stride * tf.range(queries)[None] + 1, tf.shape(start))

    def clean(low: Any, high: Any) -> tuple[Any, Any]:
        low, high = tf.clip_by_value(low, 0, num_keys), tf.clip_by_value(high, 0, num_keys)
        used = low < high
        return tf.reshape(tf.where(used, low + offset, batch * num_keys), [-1]), tf.reshape(tf.where(used, high + offset, 0), [-1])

    return (*clean(start, end), *clean(own, after))


def _seen_keys(a: Any, b: Any, c: Any, d: Any, keys: Any) -> Any:
    """Boolean (keys,): whether some query sees each key. Interval ends are counted, so the cost is linear."""
    used = tf.concat([a < b, c < d], 0)
    weight = tf.cast(used, tf.int32)
    opened = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([a, c], 0), keys), keys + 1)
    closed = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([b, d], 0), keys), keys + 1)
    return tf.cumsum(opened - closed)[:-1] > 0


def _tile_ends(a: Any, b: Any, c: Any, d: Any, tile: int) -> Any:
    """int32 (N,): end of the tile that starts at each query: the last place within reach that no span crosses, else a full tile."""
    count = _shape(a)[0]
    reach = _running(tf.maximum(b, d), tf.maximum)
    back = _running(tf.minimum(a, c), tf.minimum, reverse=True)
    free = tf.concat([[True], reach[:-1] <= back[1:], [True]], 0)
    place = tf.range(count + 1)
    last = _running(tf.where(free, place, 0), tf.maximum)
    start = place[:-1]
    target = tf.minimum(start + tile, count)
    held = tf.gather(last, target)
    return tf.where(held > start, held, target)


# -- the kernel -----------------------------------------------------------------------------------------------------------------


class _Layout:
    """Operands of all rows concatenated, heads first, padded by one tile, zero where no query sees them."""

    def __init__(self, query: Any, key: Any, value: Any, spans: Spans, scale: float, stride: int) -> None:
        self.kv_heads, self.size = key.shape[2], key.shape[3]
        self.group = query.shape[2] // self.kv_heads
        batch, queries, num_keys = *_shape(query)[:2], _shape(key)[1]
        self.queries, self.keys = batch * queries, batch * num_keys
        self.tile, self.scale, self.wide = _tile(query.shape[1]), scale, _wide(query.dtype)
        self.spans = _flat_spans(spans, num_keys, stride)
        a, b, c, d = self.spans
        self.some = (a < b) | (c < d)
        self.seen = _seen_keys(a, b, c, d, self.keys)
        self.ends = _tile_ends(a, b, c, d, self.tile)
        # One tile of rows beyond the end: they see nothing.
        self.padded = tuple(
            tf.pad(part, [[0, self.tile]], constant_values=fill) for part, fill in zip(self.spans, (self.keys, 0) * 2, strict=True)
        )
        zero = tf.zeros([], query.dtype)
        self.q = self.query_rows(tf.where(self.some[:, None, None], tf.reshape(query, [self.queries, query.shape[2], self.size]), zero))
        self.k, self.v = (self.key_rows(part, zero) for part in (key, value))

    def query_rows(self, rows: Any, size: int | None = None) -> Any:
        """(N, H, D) -> (Hkv, G, N + tile, D)."""
        rows = tf.reshape(rows, [self.queries, self.kv_heads, self.group, self.size if size is None else size])
        return tf.pad(tf.transpose(rows, [1, 2, 0, 3]), [[0, 0], [0, 0], [0, self.tile], [0, 0]])

    def key_rows(self, values: Any, zero: Any) -> Any:
        """(B, S, Hkv, D) -> (Hkv, M + tile, D)."""
        rows = tf.where(self.seen[:, None, None], tf.reshape(values, [self.keys, self.kv_heads, self.size]), zero)
        return tf.pad(tf.transpose(rows, [1, 0, 2]), [[0, 0], [0, self.tile], [0, 0]])

    def take(self, rows: Any, low: Any) -> Any:
        """One tile of query rows, the heads of a group concatenated: (Hkv, G tile, .)."""
        width = rows.shape[3]
        tile = _slice(rows, [0, 0, low, 0], [self.kv_heads, self.group, self.tile, width])
        return tf.reshape(tile, [self.kv_heads, self.group * self.tile, width])

    def put(self, rows: Any, tile: Any, low: Any) -> Any:
        tile = tf.cast(tf.reshape(tile, [self.kv_heads, self.group, self.tile, rows.shape[3]]), rows.dtype)
        return gen_xla_ops.xla_dynamic_update_slice(input=rows, update=tile, indices=tf.stack([0, 0, low, 0]))

    def keys_at(self, values: Any, low: Any) -> Any:
        return _slice(values, [0, low, 0], [self.kv_heads, self.tile, self.size])

    def add_keys(self, values: Any, more: Any, low: Any) -> Any:
        return gen_xla_ops.xla_dynamic_update_slice(input=values, update=self.keys_at(values, low) + more, indices=tf.stack([0, low, 0]))

    def bounds(self, low: Any, high: Any) -> tuple[Any, Any, Any]:
        """Spans of the tile, empty for queries beyond `high`; the places of its key tiles; and their number."""
        mine = tf.range(self.tile) < high - low
        a, b, c, d = (_slice(part, [low], [self.tile]) for part in self.padded)
        a, c = tf.where(mine, a, self.keys), tf.where(mine, c, self.keys)
        b, d = tf.where(mine, b, 0), tf.where(mine, d, 0)
        first, last, own, top = tf.reduce_min(a), tf.reduce_max(b), tf.reduce_min(c), tf.reduce_max(d)
        apart = (first < last) & (own < top) & (own >= last + _GAP)
        begin = tf.where(apart, first, tf.minimum(first, own))
        stop = tf.where(apart, last, tf.maximum(last, top))
        tiles = tf.maximum(0, (stop - begin + self.tile - 1) // self.tile)
        # The last tile of the first range may reach into the second range, which then starts where that tile ends.
        second = tf.maximum(own, begin + tiles * self.tile)
        more = tf.where(apart, tf.maximum(0, (top - second + self.tile - 1) // self.tile), 0)

        def place(step: Any) -> Any:
            return tf.where(step < tiles, begin + step * self.tile, second + (step - tiles) * self.tile)

        return (a, b, c, d), place, tiles + more

    def dot(self, x: Any, y: Any, **turns: bool) -> Any:
        """Product of factors in the dtype of the inputs; sum and result in the wide dtype."""
        return tf.cast(tf.matmul(x, y, **turns), self.wide)

    def scores(self, q: Any, k: Any, at: Any, spans: Any) -> Any:
        """(Hkv, G tile, tile): scaled products, _CLOSED for hidden pairs."""
        product = self.dot(q, k, transpose_b=True) * self.scale
        a, b, c, d = (part[:, None] for part in spans)
        keys = at + tf.range(self.tile)[None]
        mask = ((keys >= a) & (keys < b)) | ((keys >= c) & (keys < d))
        shape = [self.kv_heads, self.group, self.tile, self.tile]
        return tf.reshape(tf.where(mask, tf.reshape(product, shape), tf.constant(_CLOSED, self.wide)), product.shape)


def _forward(scale: float, stride: int, query: Any, key: Any, value: Any, start: Any, end: Any, own: Any) -> tuple[Any, Any]:
    at = _Layout(query, key, value, Spans(start, end, own), scale, stride)
    rows = [at.kv_heads, at.group * at.tile, 1]

    def block(low: Any, outs: Any, totals: Any) -> Any:
        high = tf.gather(at.ends, low)
        spans, place, tiles = at.bounds(low, high)
        q = at.take(at.q, low)

        def step(number: Any, peak: Any, total: Any, out: Any) -> Any:
            where = place(number)
            scores = at.scores(q, at.keys_at(at.k, where), where, spans)
            new = tf.maximum(peak, tf.reduce_max(scores, axis=-1, keepdims=True))
            p = tf.exp(scores - new)
            fade = tf.exp(peak - new)
            out = out * fade + at.dot(tf.cast(p, at.v.dtype), at.keys_at(at.v, where))
            return number + 1, new, total * fade + tf.reduce_sum(p, axis=-1, keepdims=True), out

        empty = (tf.fill(rows, tf.constant(_FLOOR, at.wide)), tf.zeros(rows, at.wide), tf.zeros([*rows[:2], at.size], at.wide))
        _, peak, total, out = tf.while_loop(lambda number, *_: number < tiles, step, (0, *empty), parallel_iterations=1)
        safe = tf.where(total > 0, total, tf.ones([], at.wide))
        sums = tf.where(total > 0, peak + tf.math.log(safe), tf.constant(_CLOSED, at.wide))
        # Later tiles overwrite the rows of this tile beyond its end.
        return high, at.put(outs, out / safe, low), at.put(totals, sums, low)

    state = (0, tf.zeros_like(at.q), tf.zeros_like(at.q[..., :1], at.wide))
    _, outs, totals = tf.while_loop(lambda low, *_: low < at.queries, block, state, parallel_iterations=1)
    out = tf.reshape(tf.transpose(outs[:, :, : at.queries], [2, 0, 1, 3]), _shape(query))
    return out, tf.reshape(tf.transpose(totals[:, :, : at.queries, 0], [2, 0, 1]), _shape(query)[:3])


def _backward(
    scale: float,
    stride: int,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    end: Any,
    own: Any,
    out: Any,
    total: Any,
    grad_out: Any,
    grad_total: Any,
) -> tuple[Any, Any, Any]:
    at = _Layout(query, key, value, Spans(start, end, own), scale, stride)
    some = tf.reshape(at.some, _shape(query)[:2])[:, :, None, None]
    grad_out = tf.where(some, grad_out, tf.zeros([], grad_out.dtype))
    # D_i = sum(dO O); the gradient of the sum's logarithm is the same for every pair of the row.
    delta = tf.reduce_sum(tf.cast(grad_out, at.wide) * tf.cast(out, at.wide), axis=-1, keepdims=True)
    delta -= tf.where(some, grad_total[..., None], tf.zeros([], at.wide))
    grads, deltas, totals = at.query_rows(grad_out), at.query_rows(delta, 1), at.query_rows(total, 1)

    def block(low: Any, dq: Any, dk: Any, dv: Any) -> Any:
        high = tf.gather(at.ends, low)
        spans, place, tiles = at.bounds(low, high)
        q, do, drop, sums = (at.take(part, low) for part in (at.q, grads, deltas, totals))
        # Rows that see nothing have no sum: with 0 instead, every hidden pair has the weight exp(-1e30) = 0.
        sums = tf.where(sums > _FLOOR, sums, tf.zeros([], at.wide))

        def step(number: Any, tile: Any, dk: Any, dv: Any) -> Any:
            where = place(number)
            k, v = at.keys_at(at.k, where), at.keys_at(at.v, where)
            p = tf.exp(at.scores(q, k, where, spans) - sums)
            ds = tf.cast(p * (at.dot(do, v, transpose_b=True) - drop) * at.scale, q.dtype)
            tile += at.dot(ds, k)
            dk = at.add_keys(dk, at.dot(ds, q, transpose_a=True), where)
            dv = at.add_keys(dv, at.dot(tf.cast(p, do.dtype), do, transpose_a=True), where)
            return number + 1, tile, dk, dv

        state = (0, tf.zeros(q.shape, at.wide), dk, dv)
        _, tile, dk, dv = tf.while_loop(lambda number, *_: number < tiles, step, state, parallel_iterations=1)
        return high, at.put(dq, tile, low), dk, dv

    zero = tf.zeros_like(at.k, at.wide)
    _, dq, dk, dv = tf.while_loop(lambda low, *_: low < at.queries, block, (0, tf.zeros_like(at.q), zero, zero), parallel_iterations=1)
    dk, dv = (tf.cast(tf.reshape(tf.transpose(part[:, : at.keys], [1, 0, 2]), _shape(key)), key.dtype) for part in (dk, dv))
    return tf.reshape(tf.transpose(dq[:, :, : at.queries], [2, 0, 1, 3]), _shape(query)), dk, dv
