"""Span attention in TensorFlow: a while-loop over blocks of queries ('loop'), or tiles compiled by XLA ('xla').

'loop' takes unknown B and T, runs without XLA and exports. The batch is laid end to end as one row of B T queries; a block reads
the key range that its spans reach, takes the stock softmax, and its gradient recomputes the block. 'xla' needs static shapes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from keras_ranking.ops.spans import Spans

KERNELS = ("loop", "xla")

_BLOCK = 192  # queries a block
_SMALL = 96  # parts of fewer queries share a block
_GAP = 64  # a second key range this far behind the first is read apart
_CLOSED = -1e30  # finite, so that a row which sees nothing stays free of NaN


def span_attention(query: Any, key: Any, value: Any, spans: Spans, scale: float, kernel: str) -> Any:
    """See `keras_ranking.ops.span_attention`."""
    if kernel == "auto":
        kernel = "xla" if _in_xla() else "loop"
    if kernel == "xla":
        from keras_ranking.ops.backends import tensorflow_xla

        return tensorflow_xla.span_attention(query, key, value, spans, scale)
    out, _ = _attend(query, key, value, spans, scale, False)
    return out


def candidate_attention(query: Any, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """See `keras_ranking.ops.candidate_attention`."""
    spans = Spans.history_only(lengths, tf.shape(query)[1])
    if _in_xla():
        from keras_ranking.ops.backends import tensorflow_xla

        out, total = tensorflow_xla.attend(query, key, value, spans, scale)
    else:
        out, total = _attend(query, key, value, spans, scale, self_key is not None)
    return out if self_key is None else join(query, out, total, self_key, self_value, scale)


def join(query: Any, out: Any, total: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """One more key per query, joined into a softmax that is done: weights from the two sums' logarithms (B, T, H)."""
    wide = total.dtype
    group = query.shape[2] // self_key.shape[2]
    own_key, own_value = (tf.cast(tf.repeat(part, group, axis=2) if group > 1 else part, wide) for part in (self_key, self_value))
    score = tf.reduce_sum(tf.cast(query, wide) * own_key, axis=-1) * scale
    peak = tf.maximum(total, score)
    old, new = tf.exp(total - peak), tf.exp(score - peak)
    joined = (tf.cast(out, wide) * old[..., None] + own_value * new[..., None]) / (old + new)[..., None]
    return tf.cast(joined, query.dtype)


def _in_xla() -> bool:
    from tensorflow.python.ops import control_flow_util  # no public form: whether a compiled program is being traced

    return not tf.executing_eagerly() and bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


# -- spans of the whole batch, laid end to end -------------------------------------------------------------------------------


def flat_spans(spans: Spans, num_keys: Any) -> tuple[Any, Any, Any, Any]:
    """(a, b, c, d) int32 (B T,): the intervals a..b and c..d in the keys of all rows end to end; empty ones are (B S, 0)."""
    start, end, own = (tf.cast(part, tf.int32) for part in spans)
    batch, queries = tf.unstack(tf.shape(start))
    offset = (tf.range(batch) * num_keys)[:, None]
    index = tf.broadcast_to(tf.range(1, queries + 1)[None], tf.shape(start))
    far = batch * num_keys

    def clean(low: Any, high: Any) -> tuple[Any, Any]:
        low, high = tf.clip_by_value(low, 0, num_keys), tf.clip_by_value(high, 0, num_keys)
        used = low < high
        return tf.reshape(tf.where(used, low + offset, far), [-1]), tf.reshape(tf.where(used, high + offset, 0), [-1])

    return (*clean(start, end), *clean(own, index))


def seen_keys(a: Any, b: Any, c: Any, d: Any, keys: Any) -> Any:
    """Boolean (keys,): which keys some query sees. Interval ends are counted, so the cost is linear."""
    used = tf.concat([a < b, c < d], 0)
    weight = tf.cast(used, tf.int32)
    opened = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([a, c], 0), keys), keys + 1)
    closed = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([b, d], 0), keys), keys + 1)
    return tf.cumsum(opened - closed)[:-1] > 0


def cut_places(a: Any, b: Any, c: Any, d: Any, batch: Any, queries: Any, square: Any) -> Any:
    """Boolean (B T + 1,): the places between queries that no span crosses, 0 and B T among them.

    Where keys are not the queries' own (`square` false) only the ends of rows are such places.
    """
    count = batch * queries
    place = tf.range(count + 1)
    index = place[:-1]
    low = tf.where(square, tf.minimum(tf.minimum(a, c), index), index)
    high = tf.where(square, tf.maximum(tf.maximum(b, d), index + 1), index + 1)
    opened = tf.math.unsorted_segment_sum(tf.ones_like(low), low + 1, count + 2)
    closed = tf.math.unsorted_segment_sum(tf.ones_like(high), high, count + 2)
    crossed = tf.cumsum(opened - closed)[:-1] > 0
    return tf.where(square, ~crossed, place % tf.maximum(queries, 1) == 0)


def _part_ends(cuts: Any) -> Any:
    """int32 (B T,): where the part that starts at a query ends. Neighbouring small parts are taken together."""
    places = tf.cast(tf.where(cuts)[:, 0], tf.int32)
    start = tf.range(tf.shape(cuts)[0] - 1)
    last = tf.shape(places)[0] - 1
    after = tf.gather(places, tf.minimum(tf.searchsorted(places, start + 1), last))
    enough = tf.gather(places, tf.minimum(tf.searchsorted(places, start + _SMALL), last))
    filled = tf.gather(places, tf.maximum(tf.searchsorted(places, start + _BLOCK, side="right") - 1, 0))
    small = after - start < _SMALL
    return tf.where(small, tf.where(enough - start <= _BLOCK, enough, tf.maximum(after, filled)), after)


# -- the loop -------------------------------------------------------------------------------------------------------------------


def _attend(query: Any, key: Any, value: Any, spans: Spans, scale: float, with_total: bool) -> tuple[Any, Any]:
    """out (B, T, H, D) and the logarithm of the softmax's sum (B, T, H)."""
    kv_heads = key.shape[2]
    group, size = query.shape[2] // kv_heads, query.shape[3]
    wide = tf.float64 if query.dtype == tf.float64 else tf.float32
    forward, backward = _functions(query.dtype, kv_heads, group, size, scale, with_total)
    parts = tuple(tf.stop_gradient(tf.cast(part, tf.int32)) for part in spans)

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def run(q: Any, k: Any, v: Any) -> Any:
        # Unwatched operands: a tape would otherwise trace the gradient of the forward loop as well.
        out, total = forward(*map(tf.stop_gradient, (q, k, v)), *parts)

        def gradient(grad_out: Any, grad_total: Any) -> Any:
            return backward(q, k, v, *parts, tf.cast(grad_out, q.dtype), tf.cast(grad_total, wide))

        return (out, total), gradient

    out, total = run(query, key, value)
    out.set_shape(query.shape)
    total.set_shape(query.shape[:3])
    return out, total


@functools.lru_cache(maxsize=256)
def _functions(dtype: Any, kv_heads: int, group: int, size: int, scale: float, with_total: bool) -> tuple[Any, Any]:
    """Forward and backward as graph functions: traced once for all B, T and S."""
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    query = tf.TensorSpec([None, None, kv_heads * group, size], dtype)
    keys = tf.TensorSpec([None, None, kv_heads, size], dtype)
    part = tf.TensorSpec([None, None], tf.int32)
    total = tf.TensorSpec([None, None, kv_heads * group], wide)
    heads = (kv_heads, group, size, scale, with_total)

    @tf.function(input_signature=[query, keys, keys, part, part, part], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def forward(q: Any, k: Any, v: Any, start: Any, end: Any, own: Any) -> Any:
        return _forward(q, k, v, Spans(start, end, own), *heads)

    @tf.function(input_signature=[query, keys, keys, part, part, part, query, total], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def backward(q: Any, k: Any, v: Any, start: Any, end: Any, own: Any, grad_out: Any, grad_total: Any) -> Any:
        return _backward(q, k, v, Spans(start, end, own), grad_out, grad_total, *heads)

    return forward, backward


class _Block:
    """One block of queries: what it reads, its probabilities, and where its key gradients go."""

    def __init__(self, q: Any, k: Any, v: Any, spans: tuple[Any, ...], low: Any, high: Any, scale: float) -> None:
        self.kv_heads, self.group, self.size = q.shape[1:]
        self.wide = tf.float64 if q.dtype == tf.float64 else tf.float32
        self.count, self.scale = high - low, scale
        # Scaling the queries saves a pass over the scores; in half precision only a power of two does so without rounding.
        self.folded = q.dtype == self.wide or math.frexp(scale)[0] == 0.5
        a, b, c, d = (part[low:high] for part in spans)
        first, last, own, top = tf.reduce_min(a), tf.reduce_max(b), tf.reduce_min(c), tf.reduce_max(d)
        apart = (first < last) & (own < top) & (own >= last + _GAP)
        self.first = tf.where(apart, first, tf.minimum(first, own))
        self.last = tf.maximum(tf.where(apart, last, tf.maximum(last, top)), self.first)
        self.apart = apart
        self.second = tf.where(apart, own, self.last)
        self.top = tf.maximum(tf.where(apart, top, self.last), self.second)
        columns = tf.concat([tf.range(self.first, self.last), tf.range(self.second, self.top)], 0)
        mask = ((columns >= a[:, None]) & (columns < b[:, None])) | ((columns >= c[:, None]) & (columns < d[:, None]))
        self.some = ((a < b) | (c < d))[None, None, :, None]
        self.bias = tf.where(mask, tf.zeros([], self.wide), tf.constant(_CLOSED, self.wide))
        self.width = tf.size(columns)
        self.q = self.queries(q, low, high) * (scale if self.folded else 1.0)
        self.k, self.v = self.read(k), self.read(v)

    def read(self, values: Any) -> Any:
        """[Hkv, k, D]: the key ranges of this block, end to end."""
        return tf.cond(
            self.apart,
            lambda: tf.concat([values[:, self.first : self.last], values[:, self.second : self.top]], 1),
            lambda: values[:, self.first : self.last],
        )

    def queries(self, values: Any, low: Any, high: Any) -> Any:
        """[Hkv, G q, D]: this block of the rows of queries, outputs or their gradients."""
        return self.flat(tf.transpose(values[low:high], [1, 2, 0, 3]))

    def grouped(self, values: Any) -> Any:
        return tf.reshape(values, [self.kv_heads, self.group, self.count, -1])

    def scores(self) -> Any:
        product = tf.cast(tf.matmul(self.q, self.k, transpose_b=True), self.wide)
        product = tf.reshape(product, [self.kv_heads, self.group, self.count, self.width])
        return (product if self.folded else product * self.scale) + self.bias

    def key_gradient(self, ds: Any) -> Any:
        """scale dS' Q, [Hkv, k, D]."""
        gradient = tf.cast(tf.matmul(ds, self.q, transpose_a=True), self.wide)
        return gradient if self.folded else gradient * self.scale

    def flat(self, values: Any) -> Any:
        return tf.reshape(values, [self.kv_heads, self.group * self.count, -1])

    def spread(self, gradient: Any, low: Any, high: Any) -> Any:
        """Key gradients [Hkv, k, D] put at their places in the keys low..high."""
        inner = self.last - self.first
        first, second = gradient[:, :inner], gradient[:, inner:]
        middle = tf.zeros([self.kv_heads, self.second - self.last, self.size], gradient.dtype)
        joined = tf.concat([first, middle, second], 1)
        # A block that reads nothing has its empty range anywhere: clamp the paddings.
        before = tf.clip_by_value(self.first - low, 0, high - low)
        return tf.pad(joined, [[0, 0], [before, tf.maximum(high - low - before - tf.shape(joined)[1], 0)], [0, 0]])


def _laid_out(q: Any, k: Any, v: Any, spans: Spans, kv_heads: int, group: int, size: int) -> tuple[Any, ...]:
    """q [B T, Hkv, G, D], k and v [Hkv, B S, D] with zeros where nothing looks, spans and part ends of the batch laid end to end."""
    batch, queries, num_keys = tf.shape(q)[0], tf.shape(q)[1], tf.shape(k)[1]
    flat = flat_spans(spans, num_keys)
    seen = seen_keys(*flat, keys=batch * num_keys)
    a, b, c, d = flat
    some = (a < b) | (c < d)
    ends = _part_ends(cut_places(*flat, batch=batch, queries=queries, square=tf.equal(queries, num_keys)))
    q = tf.reshape(q, [-1, kv_heads, group, size])
    k, v = (tf.reshape(part, [-1, kv_heads, size]) for part in (k, v))
    # A NaN where nothing looks would meet a zero weight inside a block and spread.
    # Heads first, once: each block then reads its keys as plain runs of memory.
    k, v = (tf.transpose(_cleared(part, seen), [1, 0, 2]) for part in (k, v))
    return _cleared(q, some), k, v, flat, ends, some


def _cleared(rows: Any, used: Any) -> Any:
    """Zeros in the rows that are not used. Mostly all are, and nothing is to be done."""
    used_rows = tf.reshape(used, [-1] + [1] * (len(rows.shape) - 1))
    return tf.cond(tf.reduce_all(used), lambda: rows, lambda: tf.where(used_rows, rows, tf.zeros([], rows.dtype)))


def _forward(
    query: Any, key: Any, value: Any, spans: Spans, kv_heads: int, group: int, size: int, scale: float, with_total: bool
) -> tuple[Any, Any]:
    q, k, v, flat, ends, some = _laid_out(query, key, value, spans, kv_heads, group, size)
    count = tf.shape(q)[0]
    wide = tf.float64 if query.dtype == tf.float64 else tf.float32
    outs = tf.TensorArray(query.dtype, size=0, dynamic_size=True, infer_shape=False, element_shape=[None, kv_heads, group, size])
    totals = tf.TensorArray(wide, size=0, dynamic_size=True, infer_shape=False, element_shape=[None, kv_heads, group])

    def body(step: Any, low: Any, end: Any, outs: Any, totals: Any) -> Any:
        high = tf.minimum(low + _BLOCK, end)
        block = _Block(q, k, v, flat, low, high, scale)
        scores = block.scores()
        if with_total:
            total = tf.where(block.some[..., 0], tf.reduce_logsumexp(scores, axis=-1), tf.constant(_CLOSED, wide))
            p = tf.exp(scores - total[..., None])
            totals = totals.write(step, tf.transpose(total, [2, 0, 1]))
        else:
            p = tf.nn.softmax(scores)
        out = block.grouped(tf.matmul(block.flat(tf.cast(p, v.dtype)), block.v))
        end = tf.cond(high < end, lambda: end, lambda: ends[tf.minimum(high, count - 1)])
        return step + 1, high, end, outs.write(step, tf.transpose(out, [2, 0, 1, 3])), totals

    def run() -> tuple[Any, Any]:
        _, _, _, done, sums = tf.while_loop(lambda step, low, *_: low < count, body, (0, 0, ends[0], outs, totals), parallel_iterations=1)
        shape = tf.shape(query)
        total = tf.reshape(sums.concat(), shape[:3]) if with_total else tf.zeros(shape[:3], wide)
        return tf.reshape(_cleared(done.concat(), some), shape), total

    return tf.cond(count > 0, run, lambda: (tf.zeros_like(query), tf.zeros(tf.shape(query)[:3], wide)))  # type: ignore[no-any-return]


def _backward(
    query: Any,
    key: Any,
    value: Any,
    spans: Spans,
    grad_out: Any,
    grad_total: Any,
    kv_heads: int,
    group: int,
    size: int,
    scale: float,
    with_total: bool,
) -> tuple[Any, Any, Any]:
    q, k, v, flat, ends, some = _laid_out(query, key, value, spans, kv_heads, group, size)
    wide = tf.float64 if query.dtype == tf.float64 else tf.float32
    batch, queries, num_keys = tf.shape(query)[0], tf.shape(query)[1], tf.shape(key)[1]
    count, square = batch * queries, tf.equal(queries, num_keys)
    grad = _cleared(tf.reshape(grad_out, [-1, kv_heads, group, size]), some)
    grad_sum = tf.transpose(_cleared(tf.reshape(grad_total, [-1, kv_heads, group]), some), [1, 2, 0])

    def keys_of(low: Any, end: Any) -> tuple[Any, Any]:
        """The keys that belong to the part of queries low..end: the same places, or the whole rows."""
        width = tf.maximum(queries, 1)
        return tf.where(square, low, low // width * num_keys), tf.where(square, end, end // width * num_keys)

    def part(step: Any, low: Any, dqs: Any, dks: Any, dvs: Any) -> Any:
        end = ends[low]
        first, last = keys_of(low, end)

        def block_step(at: Any, number: Any, dqs: Any, dk: Any, dv: Any) -> Any:
            high = tf.minimum(at + _BLOCK, end)
            block = _Block(q, k, v, flat, at, high, scale)
            # A row that sees nothing has a meaningless p, but a zero gradient: nothing comes of it.
            p = tf.nn.softmax(block.scores())
            do = block.queries(grad, at, high)
            dp = block.grouped(tf.cast(tf.matmul(do, block.v, transpose_b=True), wide))
            ds = dp - tf.reduce_sum(dp * p, axis=-1, keepdims=True)
            if with_total:
                ds += grad_sum[:, :, at:high, None]
            ds = block.flat(tf.cast(ds * p, q.dtype))
            dq = block.grouped(tf.matmul(ds, block.k)) * scale
            dk += block.spread(block.key_gradient(ds), first, last)
            dv += block.spread(tf.cast(tf.matmul(block.flat(tf.cast(p, q.dtype)), do, transpose_a=True), wide), first, last)
            return high, number + 1, dqs.write(number, tf.transpose(dq, [2, 0, 1, 3])), dk, dv

        zero = tf.zeros([kv_heads, last - first, size], wide)
        free = tf.TensorShape([kv_heads, None, size])
        blocks = dqs.size()
        _, _, dqs, dk, dv = tf.while_loop(
            lambda at, *_: at < end,
            block_step,
            (low, blocks, dqs, zero, zero),
            shape_invariants=(*[tf.TensorShape([])] * 3, free, free),
            parallel_iterations=1,
        )
        turn = [1, 0, 2]
        return (
            step + 1,
            end,
            dqs,
            dks.write(step, tf.cast(tf.transpose(dk, turn), key.dtype)),
            dvs.write(step, tf.cast(tf.transpose(dv, turn), key.dtype)),
        )

    def array(shape: list[Any]) -> Any:
        return tf.TensorArray(query.dtype, size=0, dynamic_size=True, infer_shape=False, element_shape=shape)

    def run() -> tuple[Any, Any, Any]:
        state = (0, 0, array([None, kv_heads, group, size]), array([None, kv_heads, size]), array([None, kv_heads, size]))
        _, _, dqs, dks, dvs = tf.while_loop(lambda step, low, *_: low < count, part, state, parallel_iterations=1)
        return (
            tf.reshape(dqs.concat(), tf.shape(query)),
            tf.reshape(dks.concat(), tf.shape(key)),
            tf.reshape(dvs.concat(), tf.shape(value)),
        )

    nothing = (tf.zeros_like(query), tf.zeros_like(key), tf.zeros_like(value))
    return tf.cond(count > 0, run, lambda: nothing)  # type: ignore[no-any-return]
