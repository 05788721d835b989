"""Span attention in JAX for GPUs: Pallas (Triton) kernels driven by the integers of the spans.

There is one program for each block of queries and each head. It reads the blocks of keys that its rows reach: without a mask those that
every row sees, with a mask those at the edges. The gradient has two such kernels, for queries and for keys. The kernel for keys finds
its queries by a search in running extremes of the blocks' reaches, so nothing grows with T x T. `interpret=True` runs the same kernels
on a CPU, for tests.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_ranking.ops.spans import Spans

_CLOSED = -1e30  # score of a hidden pair
_FLOOR = -1e29  # initial running maximum: above _CLOSED, so that hidden pairs have the weight exp(-9e29) = 0
_LOG2E = math.log2(math.e)
_BOUNDS = 8  # integers per block of queries; see _block_bounds


def forward(
    scale: float, stride: int, query: Any, key: Any, value: Any, start: Any, end: Any, own: Any, interpret: bool = False
) -> tuple[Any, Any]:
    """out (B, T, H, D) and the logarithm of the softmax's sum (B, T, H), float32."""
    at = _Operands(scale, stride, query, key, value, Spans(start, end, own), interpret, rows=128, keys=64)
    out, total = at.call(
        functools.partial(_forward_kernel, at.static),
        grid=(at.blocks, at.heads, at.batch),
        inputs=[at.q, at.k, at.v, at.spans, at.seen, at.bounds],
        specs=[at.spec_rows(), at.spec_keys(), at.spec_keys(), at.spec_spans(), at.spec_seen(), at.spec_bounds()],
        outputs=[_output(at.q.shape, query.dtype), _output(at.lines, jnp.float32)],
        output_specs=[at.spec_rows(), at.spec_lines()],
    )
    return at.cut(out), total[:, :, : at.queries].transpose(0, 2, 1)


def backward(
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
    interpret: bool = False,
) -> tuple[Any, Any, Any]:
    """Gradients of query, key and value; those of key and value summed in float32."""
    at = _Operands(scale, stride, query, key, value, Spans(start, end, own), interpret, rows=64, keys=64)
    some = at.some[:, :, None, None]
    grad_out = jnp.where(some, grad_out, 0).astype(query.dtype)
    # D_i = sum(dO O); the gradient of the sum's logarithm is the same for every pair of the row.
    delta = (grad_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - jnp.where(some[..., 0], grad_total, 0)
    # Rows that see nothing have no sum: with 0 instead, every hidden pair has the weight exp(-1e30) = 0.
    total = jnp.where(total > _FLOOR, total, 0)
    grads, (totals, deltas) = at.pad_rows(grad_out), (at.pad_lines(part) for part in (total, delta))
    dq = at.call(
        functools.partial(_query_kernel, at.static),
        grid=(at.blocks, at.heads, at.batch),
        inputs=[at.q, at.k, at.v, at.spans, at.seen, at.bounds, grads, totals, deltas],
        specs=[
            *(at.spec_rows(), at.spec_keys(), at.spec_keys(), at.spec_spans(), at.spec_seen(), at.spec_bounds()),
            *(at.spec_rows(), at.spec_lines(), at.spec_lines()),
        ],
        outputs=[_output(at.q.shape, query.dtype)],
        output_specs=[at.spec_rows()],
    )[0]
    dk, dv = at.call(
        functools.partial(_key_kernel, at.static),
        grid=(at.key_blocks, at.kv_heads, at.batch),
        inputs=[at.q, at.k, at.v, at.spans, at.seen, at.searched(), grads, totals, deltas],
        specs=[
            *(at.spec_group(), at.spec_key_block(), at.spec_key_block(), at.spec_all_spans(), at.spec_seen_block(), at.spec_searched()),
            *(at.spec_group(), at.spec_group_lines(), at.spec_group_lines()),
        ],
        outputs=[_output(at.k.shape, key.dtype), _output(at.v.shape, value.dtype)],
        output_specs=[at.spec_key_block(), at.spec_key_block()],
    )
    return at.cut(dq), dk[:, : at.num_keys, :, : at.size], dv[:, : at.num_keys, :, : at.size]


class _Static:
    """Compile-time constants of a kernel."""

    def __init__(self, scale: float, rows: int, keys: int, group: int, exact: bool) -> None:
        self.scale, self.rows, self.keys, self.group = scale, rows, keys, group
        # float32 operands are multiplied in float32, not rounded to TensorFloat-32.
        self.precision = lax.Precision.HIGHEST if exact else None

    def dot(self, x: Any, y: Any, trans_a: bool = False, trans_b: bool = False) -> Any:
        from jax.experimental.pallas import triton

        return triton.dot(x, y, trans_a=trans_a, trans_b=trans_b, precision=self.precision)


def _output(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


class _Operands:
    """Operands padded to whole blocks, spans as disjoint intervals, and the key blocks of each block of queries."""

    def __init__(
        self, scale: float, stride: int, query: Any, key: Any, value: Any, spans: Spans, interpret: bool, rows: int, keys: int
    ) -> None:
        self.batch, self.queries, self.heads, self.size = query.shape
        self.num_keys, self.kv_heads = key.shape[1:3]
        self.interpret = interpret
        rows = min(rows, max(16, 1 << (self.queries - 1).bit_length()))
        keys = min(keys, max(16, 1 << (self.num_keys - 1).bit_length()))
        self.width = max(16, 1 << (self.size - 1).bit_length())
        if self.width > 128:  # half the block, so that it fits into shared memory
            rows, keys = min(rows, 64), min(keys, 32)
        self.static = _Static(scale, rows, keys, self.heads // self.kv_heads, query.dtype == jnp.float32)
        self.rows, self.keys = rows, keys
        self.blocks, self.key_blocks = _multiple(self.queries, rows) // rows, _multiple(self.num_keys, keys) // keys
        self.lines = (self.batch, self.heads, self.blocks * rows)
        a, b, c, d = _intervals(spans, self.num_keys, stride)
        self.some = (a < b) | (c < d)
        self.seen = jnp.pad(_seen_keys((a, b, c, d), self.num_keys), ((0, 0), (0, self.key_blocks * keys - self.num_keys)))
        more = ((0, 0), (0, self.blocks * rows - self.queries))
        parts = (jnp.pad(part, more, constant_values=fill) for part, fill in zip((a, b, c, d), (self.num_keys, 0) * 2, strict=True))
        self.spans = jnp.stack(list(parts), axis=1)  # (B, 4, T)
        self.bounds = _block_bounds(self.spans, rows, keys)
        self.q = self.pad_rows(jnp.where(self.some[:, :, None, None], query, 0))
        self.k, self.v = (self._pad(part, self.key_blocks * keys) for part in (key, value))

    def _pad(self, values: Any, length: int) -> Any:
        more = ((0, 0), (0, length - values.shape[1]), (0, 0), (0, self.width - self.size))
        return jnp.pad(values, more) if any(high for _, high in more) else values

    def pad_rows(self, values: Any) -> Any:
        return self._pad(values, self.blocks * self.rows)

    def pad_lines(self, values: Any) -> Any:
        """(B, T, H) -> (B, H, T padded)."""
        return jnp.pad(values.transpose(0, 2, 1), ((0, 0), (0, 0), (0, self.blocks * self.rows - self.queries)))

    def cut(self, values: Any) -> Any:
        return values[:, : self.queries, :, : self.size]

    def searched(self) -> Any:
        """int32 (B, key blocks, 4): for each interval, the first block of queries that may see the keys and the one after the last."""

        def one(low: Any, high: Any) -> Any:
            place = jnp.arange(self.key_blocks, dtype=jnp.int32)
            first = jnp.searchsorted(lax.cummax(high), place, side="right")
            last = jnp.searchsorted(lax.cummin(jnp.where(low < high, low, self.key_blocks), reverse=True), place, side="right")
            return jnp.stack([first, jnp.maximum(first, last)], axis=-1)

        both = [jax.vmap(one)(self.bounds[:, :, low], self.bounds[:, :, low + 1]) for low in (0, 2)]
        return jnp.concatenate(both, axis=-1).astype(jnp.int32)

    def call(self, kernel: Any, grid: Any, inputs: Any, specs: Any, outputs: Any, output_specs: Any) -> Any:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        params = None if self.interpret else triton.CompilerParams(num_warps=4 if self.width <= 64 else 8, num_stages=2)
        run = pl.pallas_call(
            kernel, grid=grid, in_specs=specs, out_specs=output_specs, out_shape=outputs, compiler_params=params, interpret=self.interpret
        )
        return run(*inputs)

    # -- the part of an operand that a program reads; the grid is (block, head, row of the batch)

    def _spec(self, shape: tuple[int | None, ...], index: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.BlockSpec(shape, index)

    def spec_rows(self) -> Any:
        return self._spec((None, self.rows, None, self.width), lambda i, h, b: (b, i, h, 0))

    def spec_keys(self) -> Any:
        group = self.static.group
        return self._spec((None, self.key_blocks * self.keys, None, self.width), lambda i, h, b: (b, 0, h // group, 0))

    def spec_spans(self) -> Any:
        return self._spec((None, 4, self.rows), lambda i, h, b: (b, 0, i))

    def spec_seen(self) -> Any:
        return self._spec((None, self.key_blocks * self.keys), lambda i, h, b: (b, 0))

    def spec_bounds(self) -> Any:
        return self._spec((None, None, _BOUNDS), lambda i, h, b: (b, i, 0))

    def spec_lines(self) -> Any:
        return self._spec((None, None, self.rows), lambda i, h, b: (b, h, i))

    def spec_group(self) -> Any:
        return self._spec((None, self.blocks * self.rows, self.static.group, self.width), lambda i, h, b: (b, 0, h, 0))

    def spec_key_block(self) -> Any:
        return self._spec((None, self.keys, None, self.width), lambda i, h, b: (b, i, h, 0))

    def spec_all_spans(self) -> Any:
        return self._spec((None, 4, self.blocks * self.rows), lambda i, h, b: (b, 0, 0))

    def spec_seen_block(self) -> Any:
        return self._spec((None, self.keys), lambda i, h, b: (b, i))

    def spec_searched(self) -> Any:
        return self._spec((None, None, 4), lambda i, h, b: (b, i, 0))

    def spec_group_lines(self) -> Any:
        return self._spec((None, self.static.group, self.blocks * self.rows), lambda i, h, b: (b, h, 0))


# -- spans as disjoint intervals ------------------------------------------------------------------------------------------------


def _intervals(spans: Spans, num_keys: int, stride: int) -> tuple[Any, Any, Any, Any]:
    """(a, b, c, d) int32 (B, T): disjoint intervals a..b and c..d; adjacent ones are merged; empty ones are (S, 0)."""
    start, end, own = (jnp.asarray(part, jnp.int32) for part in spans)
    after = stride * jnp.arange(start.shape[1], dtype=jnp.int32)[None] + 1

    def clean(low: Any, high: Any) -> tuple[Any, Any]:
        low, high = jnp.clip(low, 0, num_keys), jnp.clip(high, 0, num_keys)
        return jnp.where(low < high, low, num_keys), jnp.where(low < high, high, 0)

    (a, b), (c, d) = clean(start, end), clean(own, jnp.broadcast_to(after, own.shape))
    one = (c >= d) | (a >= b) | ((a <= d) & (c <= b))
    low, high = jnp.minimum(a, c), jnp.maximum(b, d)
    return jnp.where(one, low, a), jnp.where(one, high, b), jnp.where(one, num_keys, c), jnp.where(one, 0, d)


def _seen_keys(intervals: tuple[Any, ...], num_keys: int) -> Any:
    """int32 (B, S), 1 for keys that some query sees. Interval ends are counted, so the cost is linear."""
    a, b, c, d = intervals

    def one(low: Any, high: Any) -> Any:
        used = (low < high).astype(jnp.int32)
        place = jnp.where(used > 0, low, num_keys), jnp.where(used > 0, high, num_keys)
        return jnp.zeros(num_keys + 1, jnp.int32).at[place[0]].add(used).at[place[1]].add(-used)

    change = jax.vmap(one)(jnp.concatenate([a, c], 1), jnp.concatenate([b, d], 1))
    return (jnp.cumsum(change, axis=1)[:, :-1] > 0).astype(jnp.int32)


def _block_bounds(spans: Any, rows: int, keys: int) -> Any:
    """int32 (B, blocks, 8), in blocks of keys: reach of the first interval (low, high), of the second (low, high), and the part of
    the first that every row of the block sees (low, high); empty reaches are (0, 0)."""
    a, b, c, d = (part.reshape(part.shape[0], -1, rows) for part in jnp.unstack(spans, axis=1))

    def reach(low: Any, high: Any) -> tuple[Any, Any]:
        first, last = low.min(-1), high.max(-1)
        used = first < last
        return jnp.where(used, first // keys, 0), jnp.where(used, -(-last // keys), 0)

    first, last = reach(a, b)
    open_low = jnp.clip(-(-a.max(-1) // keys), first, last)
    open_high = jnp.clip(b.min(-1) // keys, open_low, last)
    zero = jnp.zeros_like(first)
    return jnp.stack([first, last, *reach(c, d), open_low, open_high, zero, zero], axis=-1).astype(jnp.int32)


# -- kernels --------------------------------------------------------------------------------------------------------------------


def _inside(keys: Any, low: Any, high: Any) -> Any:
    return (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])


def _over_keys(bounds: Any, step: Any, state: Any) -> Any:
    """Blocks of keys in order: left edge, the part that all rows see, right edge, second interval."""
    first, last, second, top, low, high = (bounds[place] for place in range(6))
    state = lax.fori_loop(first, low, functools.partial(step, 0), state)
    state = lax.fori_loop(low, high, functools.partial(step, None), state)
    state = lax.fori_loop(high, last, functools.partial(step, 0), state)
    return lax.fori_loop(second, top, functools.partial(step, 2), state)


def _forward_kernel(at: _Static, q: Any, k: Any, v: Any, spans: Any, seen: Any, bounds: Any, out: Any, totals: Any) -> None:
    from jax.experimental import pallas as pl

    query = q[...]
    limits = [spans[place, :] for place in range(4)]

    def step(interval: int | None, block: Any, state: Any) -> Any:
        peak, total, held = state
        place = pl.ds(block * at.keys, at.keys)
        score = at.dot(query, k[place, :], trans_b=True) * (at.scale * _LOG2E)
        value = v[place, :]
        if interval is not None:
            index = block * at.keys + jnp.arange(at.keys, dtype=jnp.int32)
            score = jnp.where(_inside(index, limits[interval], limits[interval + 1]), score, _CLOSED)
            value = jnp.where(seen[place][:, None] > 0, value, 0)
        new = jnp.maximum(peak, score.max(axis=1))
        p, fade = jnp.exp2(score - new[:, None]), jnp.exp2(peak - new)
        return new, total * fade + p.sum(axis=1), held * fade[:, None] + at.dot(p.astype(value.dtype), value)

    empty = (jnp.full(at.rows, _FLOOR, jnp.float32), jnp.zeros(at.rows, jnp.float32), jnp.zeros(query.shape, jnp.float32))
    peak, total, held = _over_keys(bounds, step, empty)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    out[...] = (held / safe[:, None]).astype(out.dtype)
    totals[...] = jnp.where(some, (peak + jnp.log2(safe)) / _LOG2E, _CLOSED)


def _query_kernel(
    at: _Static, q: Any, k: Any, v: Any, spans: Any, seen: Any, bounds: Any, grads: Any, totals: Any, deltas: Any, dq: Any
) -> None:
    from jax.experimental import pallas as pl

    query, grad = q[...], grads[...]
    total, delta = totals[...] * _LOG2E, deltas[...]
    limits = [spans[place, :] for place in range(4)]

    def step(interval: int | None, block: Any, held: Any) -> Any:
        place = pl.ds(block * at.keys, at.keys)
        key, value = k[place, :], v[place, :]
        if interval is not None:
            open_keys = seen[place][:, None] > 0
            key, value = jnp.where(open_keys, key, 0), jnp.where(open_keys, value, 0)
        score = at.dot(query, key, trans_b=True) * (at.scale * _LOG2E)
        if interval is not None:
            index = block * at.keys + jnp.arange(at.keys, dtype=jnp.int32)
            score = jnp.where(_inside(index, limits[interval], limits[interval + 1]), score, _CLOSED)
        p = jnp.exp2(score - total[:, None])
        slope = p * (at.dot(grad, value, trans_b=True) - delta[:, None]) * at.scale
        return held + at.dot(slope.astype(key.dtype), key)

    dq[...] = _over_keys(bounds, step, jnp.zeros(query.shape, jnp.float32)).astype(dq.dtype)


def _key_kernel(
    at: _Static, q: Any, k: Any, v: Any, spans: Any, seen: Any, searched: Any, grads: Any, totals: Any, deltas: Any, dk: Any, dv: Any
) -> None:
    from jax.experimental import pallas as pl

    open_keys = seen[...][:, None] > 0
    key, value = jnp.where(open_keys, k[...], 0), jnp.where(open_keys, v[...], 0)
    index = pl.program_id(0) * at.keys + jnp.arange(at.keys, dtype=jnp.int32)

    def step(interval: int, number: Any, state: Any) -> Any:
        """One block of queries of one head of the group."""
        held_key, held_value = state
        block, head = lax.div(number, at.group), lax.rem(number, at.group)
        place = pl.ds(block * at.rows, at.rows)
        query, grad = q[place, head, :], grads[place, head, :]
        score = at.dot(query, key, trans_b=True) * (at.scale * _LOG2E)
        score = jnp.where(_inside(index, spans[interval, place], spans[interval + 1, place]), score, _CLOSED)
        p = jnp.exp2(score - (totals[head, place] * _LOG2E)[:, None])
        slope = p * (at.dot(grad, value, trans_b=True) - deltas[head, place][:, None]) * at.scale
        held_value += at.dot(p.astype(grad.dtype), grad, trans_a=True)
        return held_key + at.dot(slope.astype(query.dtype), query, trans_a=True), held_value

    state = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32))
    for interval in (0, 2):
        first, last = searched[interval], searched[interval + 1]
        state = lax.fori_loop(first * at.group, last * at.group, functools.partial(step, interval), state)
    dk[...], dv[...] = state[0].astype(dk.dtype), state[1].astype(dv.dtype)
