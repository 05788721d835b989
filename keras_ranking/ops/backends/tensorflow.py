"""Span attention in TensorFlow: a while-loop over blocks of queries ('loop'), or tiles compiled by XLA ('xla').

'loop' takes unknown B and T, runs without XLA and exports. The batch is laid end to end as one row of B T queries; a block reads
the key range that its spans reach; its gradient recomputes the block from the saved logarithm of the softmax's sum. 'xla' needs
static shapes.

All products in the loop are of two matrices, a head at a time: outside XLA TensorFlow's own batched product takes up to three times as
long on a CPU. For the same reason keys and values also lie as (D, S), so that no product has to turn the probabilities of a block around.
Where oneDNN does TensorFlow's work (it is switched on by itself on CPUs with AVX-512) its batched products and its softmax are better.
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
_UNROLLED = 8  # heads with products of their own: a graph of more of them takes seconds to trace
_CLOSED = -1e30  # finite, so that a row which sees nothing stays free of NaN


def span_attention(query: Any, key: Any, value: Any, spans: Spans, scale: float, kernel: str, stride: int = 1) -> Any:
    """See `keras_ranking.ops.span_attention`."""
    if kernel == "auto":
        kernel = "xla" if _in_xla() else "loop"
    if kernel == "xla":
        from keras_ranking.ops.backends import tensorflow_xla

        return tensorflow_xla.span_attention(query, key, value, spans, scale, stride)
    return _attend(query, key, value, spans, scale, stride, with_total=False)[0]


def candidate_attention(query: Any, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """See `keras_ranking.ops.candidate_attention`."""
    spans = Spans.history_only(lengths, tf.shape(query)[1])
    if _in_xla():
        from keras_ranking.ops.backends import tensorflow_xla

        out, total = tensorflow_xla.attend(query, key, value, spans, scale, 1)
    else:
        out, total = _attend(query, key, value, spans, scale, 1, with_total=True)
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


def _onednn() -> bool:
    from tensorflow.python.util import _pywrap_util_port  # no public form: whether oneDNN's operations are switched on

    return bool(_pywrap_util_port.IsMklEnabled())


def _in_xla() -> bool:
    from tensorflow.python.ops import control_flow_util  # no public form: whether a compiled program is being traced

    return not tf.executing_eagerly() and bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


# -- spans of the whole batch, laid end to end -------------------------------------------------------------------------------


def flat_spans(spans: Spans, num_keys: Any, stride: int) -> tuple[Any, Any, Any, Any]:
    """(a, b, c, d) int32 (B T,): the intervals a..b and c..d in the keys of all rows end to end; empty ones are (B S, 0)."""
    start, end, own = (tf.cast(part, tf.int32) for part in spans)
    batch, queries = tf.unstack(tf.shape(start))
    offset = (tf.range(batch) * num_keys)[:, None]
    after = tf.broadcast_to(stride * tf.range(queries)[None] + 1, tf.shape(start))
    far = batch * num_keys

    def clean(low: Any, high: Any) -> tuple[Any, Any]:
        low, high = tf.clip_by_value(low, 0, num_keys), tf.clip_by_value(high, 0, num_keys)
        used = low < high
        return tf.reshape(tf.where(used, low + offset, far), [-1]), tf.reshape(tf.where(used, high + offset, 0), [-1])

    return (*clean(start, end), *clean(own, after))


def seen_keys(a: Any, b: Any, c: Any, d: Any, keys: Any) -> Any:
    """Boolean (keys,): which keys some query sees. Interval ends are counted, so the cost is linear."""
    used = tf.concat([a < b, c < d], 0)
    weight = tf.cast(used, tf.int32)
    opened = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([a, c], 0), keys), keys + 1)
    closed = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([b, d], 0), keys), keys + 1)
    return tf.cumsum(opened - closed)[:-1] > 0


def cut_places(a: Any, b: Any, c: Any, d: Any, batch: Any, queries: Any, square: Any, stride: int) -> Any:
    """Boolean (B T + 1,): the places between queries that no span crosses, 0 and B T among them. `stride` keys belong to a query.

    Where keys are not the queries' own (`square` false) only the ends of rows are such places.
    """
    count = batch * queries
    place = tf.range(count + 1)
    index = place[:-1]
    low = tf.where(square, tf.minimum(tf.minimum(a, c) // stride, index), index)
    high = tf.where(square, tf.maximum((tf.maximum(b, d) + stride - 1) // stride, index + 1), index + 1)
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


def _attend(query: Any, key: Any, value: Any, spans: Spans, scale: float, stride: int, with_total: bool) -> tuple[Any, Any]:
    """out (B, T, H, D) and, of a meaning only where asked for, the logarithm of the softmax's sum (B, T, H)."""
    kv_heads = key.shape[2]
    group, size = query.shape[2] // kv_heads, query.shape[3]
    stock = not with_total and (_onednn() or kv_heads > _UNROLLED)
    forward, backward = _functions(query.dtype, kv_heads, group, size, scale, stride, stock)
    parts = tuple(tf.stop_gradient(tf.cast(part, tf.int32)) for part in spans)
    given: list[Any] = []  # the outputs as others see them: through these a second derivative finds its way

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def run(q: Any, k: Any, v: Any) -> Any:
        # Unwatched operands: a tape would otherwise trace the gradient of the forward loop as well.
        out, total = forward(*map(tf.stop_gradient, (q, k, v)), *parts)

        def gradient(grad_out: Any, grad_total: Any) -> Any:
            # While `run` is being recorded, as for forward differentiation, nobody has seen its outputs yet.
            return backward(q, k, v, *parts, *(given or (out, total)), tf.cast(grad_out, q.dtype), tf.cast(grad_total, total.dtype))

        return (out, total), gradient

    given += run(query, key, value)
    given[0].set_shape(query.shape)
    given[1].set_shape(query.shape[:3])
    return given[0], given[1]


@functools.lru_cache(maxsize=256)
def _functions(dtype: Any, kv_heads: int, group: int, size: int, scale: float, stride: int, stock: bool) -> tuple[Any, Any]:
    """Forward and backward as graph functions: traced once for all B, T and S. `stock`: batched products and the stock softmax."""
    query = tf.TensorSpec([None, None, kv_heads * group, size], dtype)
    keys = tf.TensorSpec([None, None, kv_heads, size], dtype)
    part = tf.TensorSpec([None, None], tf.int32)
    total = tf.TensorSpec([None, None, kv_heads * group], _wide(dtype))
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


def _wide(dtype: Any) -> Any:
    return tf.float64 if dtype == tf.float64 else tf.float32


class _Rows:
    """The batch laid end to end, zeros where nothing looks: a NaN there would meet a zero weight inside a block and spread."""

    def __init__(
        self, query: Any, key: Any, value: Any, spans: Spans, kv_heads: int, group: int, size: int, stride: int, stock: bool
    ) -> None:
        self.kv_heads, self.group, self.size, self.stride, self.stock = kv_heads, group, size, stride, stock
        batch, self.queries, self.num_keys = tf.shape(query)[0], tf.shape(query)[1], tf.shape(key)[1]
        self.count, self.square = batch * self.queries, tf.equal(stride * self.queries, self.num_keys)
        self.spans = flat_spans(spans, self.num_keys, stride)
        self.seen = seen_keys(*self.spans, keys=batch * self.num_keys)
        a, b, c, d = self.spans
        self.some = (a < b) | (c < d)
        cuts = cut_places(*self.spans, batch=batch, queries=self.queries, square=self.square, stride=stride)
        self.ends = _part_ends(cuts)

    def of_queries(self, values: Any) -> Any:
        """(B, T, H, .) -> (Hkv, G, B T, .)."""
        width = 1 if len(values.shape) == 3 else values.shape[-1]
        rows = _cleared(tf.reshape(values, [-1, self.kv_heads, self.group, width]), self.some)
        return tf.transpose(rows, [1, 2, 0, 3])

    def of_keys(self, values: Any) -> Any:
        """(B, S, Hkv, D) -> (Hkv, B S, D)."""
        return tf.transpose(_cleared(tf.reshape(values, [-1, self.kv_heads, self.size]), self.seen), [1, 0, 2])

    def heads(self, values: Any) -> list[Any]:
        """Of (Hkv, n, D) a matrix a head, for products one by one; `stock`: the batch of them as the only part."""
        return [values] if self.stock else tf.unstack(values, axis=0)

    def keys_of(self, low: Any, end: Any) -> tuple[Any, Any]:
        """The keys that belong to the part of queries low..end: the same places, or the whole rows."""
        width = tf.maximum(self.queries, 1)
        outside = (low // width * self.num_keys, end // width * self.num_keys)
        return tf.where(self.square, low * self.stride, outside[0]), tf.where(self.square, end * self.stride, outside[1])


def _cleared(rows: Any, used: Any) -> Any:
    """Zeros in the rows that are not used. Mostly all are, and nothing is to be done."""
    used_rows = tf.reshape(used, [-1] + [1] * (len(rows.shape) - 1))
    return tf.cond(tf.reduce_all(used), lambda: rows, lambda: tf.where(used_rows, rows, tf.zeros([], rows.dtype)))


class _Block:
    """One block of queries: which keys it reads, what it hides of them, and where its key gradients go."""

    def __init__(self, rows: _Rows, low: Any, high: Any, wide: Any) -> None:
        self.rows, self.low, self.high = rows, low, high
        a, b, c, d = (part[low:high] for part in rows.spans)
        first, last, own, top = tf.reduce_min(a), tf.reduce_max(b), tf.reduce_min(c), tf.reduce_max(d)
        apart = (first < last) & (own < top) & (own >= last + _GAP)
        self.first = tf.where(apart, first, tf.minimum(first, own))
        self.last = tf.maximum(tf.where(apart, last, tf.maximum(last, top)), self.first)
        self.apart = apart
        self.second = tf.where(apart, own, self.last)
        self.top = tf.maximum(tf.where(apart, top, self.last), self.second)
        # Keys from the first on that all queries of the block see: nothing is asked there.
        open_to = tf.maximum(
            tf.where(tf.reduce_max(a) == self.first, tf.reduce_min(b), 0), tf.where(tf.reduce_max(c) == self.first, tf.reduce_min(d), 0)
        )
        open_to = tf.clip_by_value(open_to, self.first, self.last)
        columns = tf.concat([tf.range(open_to, self.last), tf.range(self.second, self.top)], 0)
        mask = ((columns >= a[:, None]) & (columns < b[:, None])) | ((columns >= c[:, None]) & (columns < d[:, None]))
        bias = tf.pad(tf.where(mask, tf.zeros([], wide), tf.constant(_CLOSED, wide)), [[0, 0], [open_to - self.first, 0]])
        self.bias = bias if rows.group == 1 else tf.tile(bias, [rows.group, 1])

    def keys(self, values: Any) -> Any:
        """Of (.., S, D) the rows that this block reads, end to end."""
        return tf.cond(
            self.apart,
            lambda: tf.concat([values[..., self.first : self.last, :], values[..., self.second : self.top, :]], -2),
            lambda: values[..., self.first : self.last, :],
        )

    def turned(self, values: Any) -> Any:
        """Of (.., D, S) the columns that this block reads, end to end."""
        return tf.cond(
            self.apart,
            lambda: tf.concat([values[..., self.first : self.last], values[..., self.second : self.top]], -1),
            lambda: values[..., self.first : self.last],
        )

    def queries(self, values: Any) -> list[Any]:
        """Of (Hkv, G, T, .) this block's rows, (G q, .) a head."""
        return self.rows.heads(tf.reshape(values[:, :, self.low : self.high], [self.rows.kv_heads, -1, values.shape[-1]]))

    def joined(self, parts: list[Any], width: int) -> Any:
        """(G q, .) of the heads as rows (q, Hkv, G, .)."""
        stacked = tf.reshape(
            parts[0] if self.rows.stock else tf.stack(parts),
            [self.rows.kv_heads, self.rows.group, self.high - self.low, width],
        )
        return tf.transpose(stacked, [2, 0, 1, 3])

    def spread(self, gradient: Any, low: Any, high: Any) -> Any:
        """Key gradients (.., D, k) put at their places in the keys low..high."""
        inner = self.last - self.first
        outer = [self.rows.kv_heads, self.rows.size] if self.rows.stock else [self.rows.size]
        middle = tf.zeros([*outer, self.second - self.last], gradient.dtype)
        joined = tf.concat([gradient[..., :inner], middle, gradient[..., inner:]], -1)
        # A block that reads nothing has its empty range anywhere: clamp the paddings.
        before = tf.clip_by_value(self.first - low, 0, high - low)
        return tf.pad(joined, [*[[0, 0]] * len(outer), [before, tf.maximum(high - low - before - tf.shape(joined)[-1], 0)]])


def _turned(heads: list[Any]) -> list[Any]:
    return [tf.linalg.matrix_transpose(head) for head in heads]


def _product(a: Any, b: Any, wide: Any) -> Any:
    return tf.cast(tf.matmul(a, b), wide)


def _folds(dtype: Any, scale: float) -> bool:
    """Whether queries may be scaled beforehand: in half precision only a power of two does so without rounding."""
    return dtype == _wide(dtype) or math.frexp(scale)[0] == 0.5


def _forward(
    query: Any, key: Any, value: Any, spans: Spans, kv_heads: int, group: int, size: int, scale: float, stride: int, stock: bool
) -> tuple[Any, Any]:
    rows, wide = _Rows(query, key, value, spans, kv_heads, group, size, stride, stock), _wide(query.dtype)
    folds = _folds(query.dtype, scale)
    q = rows.of_queries(query) * (scale if folds else 1.0)
    k, v = _turned(rows.heads(rows.of_keys(key))), rows.heads(rows.of_keys(value))

    def array(dtype: Any, *shape: int) -> Any:
        return tf.TensorArray(dtype, size=0, dynamic_size=True, infer_shape=False, element_shape=[None, kv_heads, group, *shape])

    def body(step: Any, low: Any, end: Any, outs: Any, totals: Any) -> Any:
        high = tf.minimum(low + _BLOCK, end)
        block = _Block(rows, low, high, wide)
        out, total = [], []
        for queries, keys, values in zip(block.queries(q), k, v, strict=True):
            scores = _product(queries, block.turned(keys), wide)
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
        # What a row that sees nothing has found is of no meaning.
        total = tf.where(rows.some[:, None, None], totals.concat()[..., 0], tf.constant(_CLOSED, wide))
        return tf.reshape(_cleared(outs.concat(), rows.some), shape), tf.reshape(total, shape[:3])

    nothing = (tf.zeros_like(query), tf.fill(tf.shape(query)[:3], tf.constant(_CLOSED, wide)))
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
    rows, wide = _Rows(query, key, value, spans, kv_heads, group, size, stride, stock), _wide(query.dtype)
    folds = _folds(query.dtype, scale)
    # On a CPU S - L and dP - D come out of the products themselves, by one more column of the queries and a row of ones; a GPU may round
    # what goes into a product to ten bits. In half precision D would be of the rounded outputs.
    within = query.dtype == wide and not tf.config.list_physical_devices("GPU")
    q, do = rows.of_queries(query) * (scale if folds else 1.0), rows.of_queries(grad_out)
    sums = rows.of_queries(tf.zeros_like(total) if stock else total)  # the stock softmax needs no sum
    k = rows.heads(rows.of_keys(key))
    k_turned, v = _turned(k), _turned(rows.heads(rows.of_keys(value)))
    if within:
        # D_i = sum(dO O); a gradient of the sum's logarithm enters every pair of the row the same way.
        delta = rows.of_queries(tf.reduce_sum(grad_out * out, axis=-1) - grad_total)
        q, do = tf.concat([q, -sums], -1), tf.concat([do, -delta], -1)
        k_turned, v = ([tf.concat([head, tf.ones_like(head[..., :1, :])], -2) for head in heads] for heads in (k_turned, v))
    else:
        more = rows.of_queries(grad_total)

    def block_step(at: Any, end: Any, first: Any, last: Any, dk: Any, dv: Any) -> Any:
        high = tf.minimum(at + _BLOCK, end)
        block = _Block(rows, at, high, wide)
        mine = [block.queries(part) for part in ((q, do) if within else (q, do, sums, more))]
        dq = []
        for head in range(len(k)):
            queries, grads, *others = (part[head] for part in mine)
            scores, dp = (_product(a, block.turned(b[head]), wide) for a, b in ((queries, k_turned), (grads, v)))
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
