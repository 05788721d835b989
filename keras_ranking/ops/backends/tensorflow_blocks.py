"""Blocks of queries for the loop of `tensorflow_loop.py`: where they are cut, which keys they read, and which pairs they hide."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_ranking.ops.spans import Spans

BLOCK = 192  # queries per block
SMALL = 96  # parts with fewer queries share a block
GAP = 64  # a second key range that starts this far after the first is read separately
HIDDEN = -1e30  # score of a hidden pair; finite, so that a row that sees nothing has no NaN


def flat_spans(spans: Spans, num_keys: Any, stride: int) -> tuple[Any, Any, Any, Any]:
    """(a, b, c, d) int32 (B T,): the intervals a..b and c..d in the concatenated keys of all rows; empty ones are (B S, 0)."""
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
    """Boolean (keys,): whether some query sees each key. Interval ends are counted, so the cost is linear."""
    used = tf.concat([a < b, c < d], 0)
    weight = tf.cast(used, tf.int32)
    opened = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([a, c], 0), keys), keys + 1)
    closed = tf.math.unsorted_segment_sum(weight, tf.where(used, tf.concat([b, d], 0), keys), keys + 1)
    return tf.cumsum(opened - closed)[:-1] > 0


def cut_places(a: Any, b: Any, c: Any, d: Any, batch: Any, queries: Any, square: Any, stride: int) -> Any:
    """Boolean (B T + 1,): whether no span crosses the place between two queries; true at 0 and B T. There are `stride` keys per query.

    If the keys are not those of the queries (`square` false), only the ends of rows are such places.
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


def part_ends(cuts: Any) -> Any:
    """int32 (B T,): end of the part that starts at each query. Neighbouring small parts are merged."""
    places = tf.cast(tf.where(cuts)[:, 0], tf.int32)
    start = tf.range(tf.shape(cuts)[0] - 1)
    last = tf.shape(places)[0] - 1
    after = tf.gather(places, tf.minimum(tf.searchsorted(places, start + 1), last))
    enough = tf.gather(places, tf.minimum(tf.searchsorted(places, start + SMALL), last))
    filled = tf.gather(places, tf.maximum(tf.searchsorted(places, start + BLOCK, side="right") - 1, 0))
    small = after - start < SMALL
    return tf.where(small, tf.where(enough - start <= BLOCK, enough, tf.maximum(after, filled)), after)


def wide_dtype(dtype: Any) -> Any:
    return tf.float64 if dtype == tf.float64 else tf.float32


class Rows:
    """The concatenated rows of the batch, with zeros where no query sees them: NaN times a weight of zero is NaN."""

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
        self.ends = part_ends(cuts)

    def of_queries(self, values: Any) -> Any:
        """(B, T, H, .) -> (Hkv, G, B T, .)."""
        width = 1 if len(values.shape) == 3 else values.shape[-1]
        rows = zeros_where_unused(tf.reshape(values, [-1, self.kv_heads, self.group, width]), self.some)
        return tf.transpose(rows, [1, 2, 0, 3])

    def of_keys(self, values: Any) -> Any:
        """(B, S, Hkv, D) -> (Hkv, B S, D)."""
        return tf.transpose(zeros_where_unused(tf.reshape(values, [-1, self.kv_heads, self.size]), self.seen), [1, 0, 2])

    def heads(self, values: Any) -> list[Any]:
        """(Hkv, n, D) as a list with one matrix per head, for separate products; `stock`: a list with the whole tensor."""
        return [values] if self.stock else tf.unstack(values, axis=0)

    def keys_of(self, low: Any, end: Any) -> tuple[Any, Any]:
        """The keys of the queries low..end: the same places, or the whole rows."""
        width = tf.maximum(self.queries, 1)
        outside = (low // width * self.num_keys, end // width * self.num_keys)
        return tf.where(self.square, low * self.stride, outside[0]), tf.where(self.square, end * self.stride, outside[1])


def zeros_where_unused(rows: Any, used: Any) -> Any:
    """`rows` with zeros in those that are not used. Usually all are used, and the rows are returned unchanged."""
    used_rows = tf.reshape(used, [-1] + [1] * (len(rows.shape) - 1))
    return tf.cond(tf.reduce_all(used), lambda: rows, lambda: tf.where(used_rows, rows, tf.zeros([], rows.dtype)))


class Block:
    """One block of queries: which keys it reads, which pairs are hidden, and where its key gradients belong."""

    def __init__(self, rows: Rows, low: Any, high: Any, wide: Any) -> None:
        self.rows, self.low, self.high = rows, low, high
        a, b, c, d = (part[low:high] for part in rows.spans)
        first, last, own, top = tf.reduce_min(a), tf.reduce_max(b), tf.reduce_min(c), tf.reduce_max(d)
        apart = (first < last) & (own < top) & (own >= last + GAP)
        self.first = tf.where(apart, first, tf.minimum(first, own))
        self.last = tf.maximum(tf.where(apart, last, tf.maximum(last, top)), self.first)
        self.apart = apart
        self.second = tf.where(apart, own, self.last)
        self.top = tf.maximum(tf.where(apart, top, self.last), self.second)
        # Keys from the first on that all queries of the block see: they need no mask.
        open_to = tf.maximum(
            tf.where(tf.reduce_max(a) == self.first, tf.reduce_min(b), 0), tf.where(tf.reduce_max(c) == self.first, tf.reduce_min(d), 0)
        )
        open_to = tf.clip_by_value(open_to, self.first, self.last)
        columns = tf.concat([tf.range(open_to, self.last), tf.range(self.second, self.top)], 0)
        mask = ((columns >= a[:, None]) & (columns < b[:, None])) | ((columns >= c[:, None]) & (columns < d[:, None]))
        bias = tf.pad(tf.where(mask, tf.zeros([], wide), tf.constant(HIDDEN, wide)), [[0, 0], [open_to - self.first, 0]])
        self.bias = bias if rows.group == 1 else tf.tile(bias, [rows.group, 1])

    def keys(self, values: Any) -> Any:
        """The rows of (.., S, D) that this block reads, concatenated."""
        return tf.cond(
            self.apart,
            lambda: tf.concat([values[..., self.first : self.last, :], values[..., self.second : self.top, :]], -2),
            lambda: values[..., self.first : self.last, :],
        )

    def keys_transposed(self, values: Any) -> Any:
        """The columns of (.., D, S) that this block reads, concatenated."""
        return tf.cond(
            self.apart,
            lambda: tf.concat([values[..., self.first : self.last], values[..., self.second : self.top]], -1),
            lambda: values[..., self.first : self.last],
        )

    def queries(self, values: Any) -> list[Any]:
        """The rows of (Hkv, G, T, .) of this block, (G q, .) for each head."""
        return self.rows.heads(tf.reshape(values[:, :, self.low : self.high], [self.rows.kv_heads, -1, values.shape[-1]]))

    def joined(self, parts: list[Any], width: int) -> Any:
        """(G q, .) of the heads as rows (q, Hkv, G, .)."""
        stacked = tf.reshape(
            parts[0] if self.rows.stock else tf.stack(parts),
            [self.rows.kv_heads, self.rows.group, self.high - self.low, width],
        )
        return tf.transpose(stacked, [2, 0, 1, 3])

    def spread(self, gradient: Any, low: Any, high: Any) -> Any:
        """Key gradients (.., D, k) at their places in the keys low..high."""
        inner = self.last - self.first
        outer = [self.rows.kv_heads, self.rows.size] if self.rows.stock else [self.rows.size]
        middle = tf.zeros([*outer, self.second - self.last], gradient.dtype)
        joined = tf.concat([gradient[..., :inner], middle, gradient[..., inner:]], -1)
        # The empty range of a block that reads nothing can be outside low..high: clamp the paddings.
        before = tf.clip_by_value(self.first - low, 0, high - low)
        return tf.pad(joined, [*[[0, 0]] * len(outer), [before, tf.maximum(high - low - before - tf.shape(joined)[-1], 0)]])
