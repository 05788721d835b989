"""Span attention in JAX: tiles with a running softmax, in loops whose bounds are read from the spans.

| kernel    | where it runs                                                                              |
|-----------|--------------------------------------------------------------------------------------------|
| `tiles`   | on all devices; this file                                                                  |
| `pallas`  | GPUs; `jax_pallas.py`; on a CPU in Pallas's interpreter                                    |
| `library` | as `pallas` (on a CPU as `tiles`), but `jax.nn` (cuDNN) if all rows are plainly causal     |

In `tiles` the rows of the batch are concatenated to one row of B T queries. An outer loop takes tiles of queries, which start where
no span crosses if possible; an inner loop takes the tiles of keys that their spans reach. The gradient recomputes each tile from the
saved logarithm of the softmax's sum. All shapes are static, so it compiles into one program with the operations around it. On several
devices each concatenates its own rows (`jax_devices.py`).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_ranking.ops.backends.jax_devices import Place, by_rows, place_of
from keras_ranking.ops.spans import Spans

KERNELS = ("tiles", "pallas", "library")

_GAP = 64  # a second key range that starts this far after the first is read separately
_CLOSED = -1e30  # score of a hidden pair
_FLOOR = -1e29  # initial running maximum: above _CLOSED, so that hidden pairs have the weight exp(-9e29) = 0


def span_attention(query: Any, key: Any, value: Any, spans: Spans, scale: float, kernel: str, stride: int = 1) -> Any:
    """See `keras_ranking.ops.span_attention`."""
    if 0 in query.shape or 0 in key.shape:
        return jnp.zeros_like(query)
    place = place_of(query, key, value, *spans)
    return _attend(_chosen(kernel, query, key), scale, stride, place, query, key, value, *spans)[0]


def _chosen(kernel: str, query: Any, key: Any, join: bool = False) -> str:
    """The kernel chosen by 'auto', and 'interpret' for Pallas on a CPU."""
    gpu = jax.default_backend() == "gpu"
    if kernel == "auto":
        half = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[3] % 8 == 0 and query.shape[3] <= 128
        kernel = "tiles" if not gpu else "library" if half and query.shape[1] == key.shape[1] and not join else "pallas"
    if kernel == "library" and query.shape[1] != key.shape[1]:
        kernel = "pallas" if gpu else "tiles"
    if query.dtype == jnp.float64:
        return "tiles"  # Triton cannot multiply float64
    return "interpret" if kernel == "pallas" and not gpu else kernel


def candidate_attention(query: Any, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """See `keras_ranking.ops.candidate_attention`."""
    spans = Spans.history_only(lengths, query.shape[1])
    if 0 in query.shape or 0 in key.shape:
        out, total = jnp.zeros_like(query), jnp.full(query.shape[:3], _CLOSED, _wide(query.dtype))
    else:
        kernel, place = _chosen("auto", query, key, join=True), place_of(query, key, value, *spans)
        out, total = _attend(kernel, scale, 1, place, query, key, value, *spans)
    return out if self_key is None else _join(query, out, total, self_key, self_value, scale)


def _join(query: Any, out: Any, total: Any, self_key: Any, self_value: Any, scale: float) -> Any:
    """Adds one key per query to a finished softmax: weights from the logarithms (B, T, H) of the two sums."""
    wide = total.dtype
    group = query.shape[2] // self_key.shape[2]
    own_key, own_value = (jnp.repeat(part, group, axis=2).astype(wide) for part in (self_key, self_value))
    score = (query.astype(wide) * own_key).sum(-1) * scale
    peak = jnp.maximum(total, score)
    old, new = jnp.exp(total - peak), jnp.exp(score - peak)
    joined = (out.astype(wide) * old[..., None] + own_value * new[..., None]) / (old + new)[..., None]
    return joined.astype(query.dtype)


def _wide(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _tile(queries: int) -> int:
    """Edge of a tile. Our choice from measurement: small tiles fit packed rows closely, large ones have less overhead between products."""
    return 96 if queries > 64 else 64 if queries > 32 else 32


# -- spans of the concatenated rows of the batch -------------------------------------------------------------------------------


def _flat_spans(spans: Spans, num_keys: int, stride: int) -> tuple[Any, Any, Any, Any]:
    """(a, b, c, d) int32 (B T,): the intervals a..b and c..d in the concatenated keys of all rows; empty ones are (B S, 0)."""
    start, end, own = (part.astype(jnp.int32) for part in spans)
    batch, queries = start.shape
    offset = (jnp.arange(batch, dtype=jnp.int32) * num_keys)[:, None]
    after = jnp.broadcast_to(stride * jnp.arange(queries, dtype=jnp.int32)[None] + 1, start.shape)

    def clean(low: Any, high: Any) -> tuple[Any, Any]:
        low, high = jnp.clip(low, 0, num_keys), jnp.clip(high, 0, num_keys)
        used = low < high
        return jnp.where(used, low + offset, batch * num_keys).reshape(-1), jnp.where(used, high + offset, 0).reshape(-1)

    return (*clean(start, end), *clean(own, after))


def _seen_keys(a: Any, b: Any, c: Any, d: Any, keys: int) -> Any:
    """Boolean (keys,): whether some query sees each key. Interval ends are counted, so the cost is linear."""
    used = jnp.concatenate([a < b, c < d]).astype(jnp.int32)
    opened = jnp.where(used > 0, jnp.concatenate([a, c]), keys)
    closed = jnp.where(used > 0, jnp.concatenate([b, d]), keys)
    change = jnp.zeros(keys + 1, jnp.int32).at[opened].add(used).at[closed].add(-used)
    return jnp.cumsum(change)[:-1] > 0


def _tile_ends(a: Any, b: Any, c: Any, d: Any, tile: int) -> Any:
    """int32 (N,): end of the tile that starts at each query: the last place within reach that no span crosses, else a full tile."""
    count = a.shape[0]
    reach = lax.cummax(jnp.maximum(b, d))
    back = lax.cummin(jnp.minimum(a, c), reverse=True)
    free = jnp.concatenate([jnp.ones(1, bool), reach[:-1] <= back[1:], jnp.ones(1, bool)])
    place = jnp.arange(count + 1, dtype=jnp.int32)
    last = lax.cummax(jnp.where(free, place, 0))
    start = place[:-1]
    target = jnp.minimum(start + tile, count)
    return jnp.where(last[target] > start, last[target], target)


# -- the kernel -----------------------------------------------------------------------------------------------------------------


class _Layout:
    """Operands of all rows concatenated, heads first, padded by one tile, zero where no query sees them."""

    def __init__(self, query: Any, key: Any, value: Any, spans: Spans, scale: float, stride: int) -> None:
        self.kv_heads, self.size = key.shape[2], key.shape[3]
        self.group = query.shape[2] // self.kv_heads
        self.queries, self.keys = query.shape[0] * query.shape[1], key.shape[0] * key.shape[1]
        self.tile, self.scale, self.wide = _tile(query.shape[1]), scale, _wide(query.dtype)
        self.spans = _flat_spans(spans, key.shape[1], stride)
        a, b, c, d = self.spans
        self.some = (a < b) | (c < d)
        self.seen = _seen_keys(a, b, c, d, self.keys)
        self.ends = _tile_ends(a, b, c, d, self.tile)
        # One tile of rows beyond the end: they see nothing.
        self.padded = tuple(
            jnp.pad(part, (0, self.tile), constant_values=fill) for part, fill in zip(self.spans, (self.keys, 0) * 2, strict=True)
        )
        self.q = self.query_rows(jnp.where(self.some[:, None, None], query.reshape(self.queries, -1, self.size), 0))
        self.k, self.v = (self.key_rows(part) for part in (key, value))

    def query_rows(self, rows: Any) -> Any:
        """(N, H, D) -> (Hkv, G, N + tile, D)."""
        rows = rows.reshape(self.queries, self.kv_heads, self.group, -1)
        return jnp.pad(rows.transpose(1, 2, 0, 3), ((0, 0), (0, 0), (0, self.tile), (0, 0)))

    def key_rows(self, values: Any) -> Any:
        """(B, S, Hkv, D) -> (Hkv, M + tile, D)."""
        rows = jnp.where(self.seen[:, None, None], values.reshape(self.keys, self.kv_heads, self.size), 0)
        return jnp.pad(rows.transpose(1, 0, 2), ((0, 0), (0, self.tile), (0, 0)))

    def take(self, rows: Any, low: Any) -> Any:
        """One tile of query rows, the heads of a group concatenated: (Hkv, G tile, .)."""
        return lax.dynamic_slice_in_dim(rows, low, self.tile, axis=2).reshape(self.kv_heads, self.group * self.tile, -1)

    def put(self, rows: Any, tile: Any, low: Any) -> Any:
        return lax.dynamic_update_slice_in_dim(rows, tile.reshape(self.kv_heads, self.group, self.tile, -1).astype(rows.dtype), low, axis=2)

    def keys_at(self, values: Any, low: Any) -> Any:
        return lax.dynamic_slice_in_dim(values, low, self.tile, axis=1)

    def bounds(self, low: Any, high: Any) -> tuple[Any, Any, Any]:
        """Spans of the tile, empty for queries beyond `high`; the places of its key tiles; and their number."""
        mine = jnp.arange(self.tile, dtype=jnp.int32) < high - low
        a, b, c, d = (lax.dynamic_slice_in_dim(part, low, self.tile) for part in self.padded)
        a, c = jnp.where(mine, a, self.keys), jnp.where(mine, c, self.keys)
        b, d = jnp.where(mine, b, 0), jnp.where(mine, d, 0)
        first, last, own, top = a.min(), b.max(), c.min(), d.max()
        apart = (first < last) & (own < top) & (own >= last + _GAP)
        begin = jnp.where(apart, first, jnp.minimum(first, own))
        stop = jnp.where(apart, last, jnp.maximum(last, top))
        tiles = jnp.maximum(0, -(-(stop - begin) // self.tile))
        # The last tile of the first range may reach into the second range, which then starts where that tile ends.
        second = jnp.maximum(own, begin + tiles * self.tile)
        more = jnp.where(apart, jnp.maximum(0, -(-(top - second) // self.tile)), 0)

        def place(step: Any) -> Any:
            return jnp.where(step < tiles, begin + step * self.tile, second + (step - tiles) * self.tile)

        return (a, b, c, d), place, tiles + more

    def scores(self, q: Any, k: Any, at: Any, spans: Any) -> Any:
        """(Hkv, G tile, tile): scaled products, _CLOSED for hidden pairs."""
        product = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=self.wide) * self.scale
        a, b, c, d = (part[:, None] for part in spans)
        keys = at + jnp.arange(self.tile, dtype=jnp.int32)[None]
        mask = ((keys >= a) & (keys < b)) | ((keys >= c) & (keys < d))
        shape = (self.kv_heads, self.group, self.tile, self.tile)
        return jnp.where(mask, product.reshape(shape), _CLOSED).reshape(product.shape)


def _forward(scale: float, stride: int, query: Any, key: Any, value: Any, start: Any, end: Any, own: Any) -> tuple[Any, Any]:
    at = _Layout(query, key, value, Spans(start, end, own), scale, stride)
    rows = (at.kv_heads, at.group * at.tile, 1)

    def block(state: Any) -> Any:
        low, outs, totals = state
        high = at.ends[low]
        spans, place, tiles = at.bounds(low, high)
        q = at.take(at.q, low)

        def step(number: Any, carry: Any) -> Any:
            peak, total, out = carry
            where = place(number)
            scores = at.scores(q, at.keys_at(at.k, where), where, spans)
            new = jnp.maximum(peak, scores.max(-1, keepdims=True))
            p = jnp.exp(scores - new)
            fade = jnp.exp(peak - new)
            out = out * fade + jnp.einsum("hqk,hkd->hqd", p.astype(at.v.dtype), at.keys_at(at.v, where), preferred_element_type=at.wide)
            return new, total * fade + p.sum(-1, keepdims=True), out

        empty = (jnp.full(rows, _FLOOR, at.wide), jnp.zeros(rows, at.wide), jnp.zeros((*rows[:2], at.size), at.wide))
        peak, total, out = lax.fori_loop(0, tiles, step, empty)
        safe = jnp.where(total > 0, total, 1)
        # Later tiles overwrite the rows of this tile beyond its end.
        return high, at.put(outs, out / safe, low), at.put(totals, jnp.where(total > 0, peak + jnp.log(safe), _CLOSED), low)

    state = (jnp.int32(0), jnp.zeros_like(at.q), jnp.zeros((*at.q.shape[:3], 1), at.wide))
    _, outs, totals = lax.while_loop(lambda state: state[0] < at.queries, block, state)
    out = outs[:, :, : at.queries].transpose(2, 0, 1, 3).reshape(query.shape)
    return out, totals[:, :, : at.queries, 0].transpose(2, 0, 1).reshape(query.shape[:3])


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
    some = at.some.reshape(query.shape[:2])[:, :, None, None]
    grad_out = jnp.where(some, grad_out, 0)
    # D_i = sum(dO O); the gradient of the sum's logarithm is the same for every pair of the row.
    delta = (grad_out.astype(at.wide) * out.astype(at.wide)).sum(-1, keepdims=True) - jnp.where(some, grad_total[..., None], 0)
    grads, deltas, totals = (at.query_rows(part.reshape(at.queries, query.shape[2], -1)) for part in (grad_out, delta, total[..., None]))

    def add(gradient: Any, more: Any, where: Any) -> Any:
        there = lax.dynamic_slice_in_dim(gradient, where, at.tile, axis=2)
        return lax.dynamic_update_slice_in_dim(gradient, there + more, where, axis=2)

    def block(state: Any) -> Any:
        low, dq, dk, dv = state
        high = at.ends[low]
        spans, place, tiles = at.bounds(low, high)
        q, do, drop, sums = (at.take(part, low) for part in (at.q, grads, deltas, totals))
        # Rows that see nothing have no sum: with 0 instead, every hidden pair has the weight exp(-1e30) = 0.
        sums = jnp.where(sums > _FLOOR, sums, 0)

        def step(number: Any, carry: Any) -> Any:
            dq, dk, dv = carry
            where = place(number)
            k, v = at.keys_at(at.k, where), at.keys_at(at.v, where)
            p = jnp.exp(at.scores(q, k, where, spans) - sums)
            dp = jnp.einsum("hqd,hkd->hqk", do, v, preferred_element_type=at.wide)
            ds = (p * (dp - drop) * at.scale).astype(q.dtype)
            dq = dq + jnp.einsum("hqk,hkd->hqd", ds, k, preferred_element_type=at.wide)
            more_k = jnp.einsum("hqd,hqk->hdk", q, ds, preferred_element_type=at.wide)
            more_v = jnp.einsum("hqd,hqk->hdk", do, p.astype(do.dtype), preferred_element_type=at.wide)
            return dq, add(dk, more_k, where), add(dv, more_v, where)

        tile, dk, dv = lax.fori_loop(0, tiles, step, (jnp.zeros(q.shape, at.wide), dk, dv))
        return high, at.put(dq, tile, low), dk, dv

    # As (Hkv, D, M): the products then read the probabilities without a transpose.
    zero = jnp.zeros((at.kv_heads, at.size, at.k.shape[1]), at.wide)
    state = (jnp.int32(0), jnp.zeros_like(at.q), zero, zero)
    _, dq, dk, dv = lax.while_loop(lambda state: state[0] < at.queries, block, state)
    dk, dv = (part[:, :, : at.keys].transpose(2, 0, 1).reshape(key.shape).astype(key.dtype) for part in (dk, dv))
    return dq[:, :, : at.queries].transpose(2, 0, 1, 3).reshape(query.shape), dk, dv


# -- which kernel ---------------------------------------------------------------------------------------------------------------


def _plain(query: Any, start: Any, end: Any, own: Any) -> Any:
    """Whether each query i of every row sees the keys 0..i, all of them and no others."""
    index = jnp.arange(query.shape[1], dtype=jnp.int32)[None]
    first = jnp.maximum(start, 0)
    covered = (own <= 0) | ((first <= 0) & (end > first) & (own <= end))
    return (covered & (end <= index + 1)).all()


def _library(scale: float, query: Any, key: Any, value: Any) -> Any:
    kind: Any = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=True, implementation=kind)


def _run_forward(
    kernel: str, scale: float, stride: int, query: Any, key: Any, value: Any, start: Any, end: Any, own: Any
) -> tuple[Any, Any]:
    operands = (query, key, value, start, end, own)
    if kernel == "library":
        other = "pallas" if jax.default_backend() == "gpu" else "tiles"
        # The sum is not needed: the gradient of this kernel starts from the operands.
        nothing = jnp.full(query.shape[:3], _CLOSED, jnp.float32)
        return lax.cond(  # type: ignore[no-any-return]
            _plain(query, start, end, own),
            lambda *given: (_library(scale, *given[:3]), nothing),
            functools.partial(_run_forward, other, scale, stride),
            *operands,
        )
    if kernel == "tiles":
        return _forward(scale, stride, *operands)
    from keras_ranking.ops.backends import jax_pallas

    return jax_pallas.forward(scale, stride, *operands, interpret=kernel == "interpret")


def _run_backward(kernel: str, scale: float, stride: int, *saved: Any) -> tuple[Any, Any, Any]:
    if kernel == "library":
        other = "pallas" if jax.default_backend() == "gpu" else "tiles"
        query, start, end, own = saved[0], *saved[3:6]

        def plain(*given: Any) -> Any:
            return jax.vjp(functools.partial(_library, scale), *given[:3])[1](given[8])

        return lax.cond(  # type: ignore[no-any-return]
            _plain(query, start, end, own), plain, functools.partial(_run_backward, other, scale, stride), *saved
        )
    if kernel == "tiles":
        return _backward(scale, stride, *saved)
    from keras_ranking.ops.backends import jax_pallas

    return functools.partial(jax_pallas.backward, interpret=kernel == "interpret")(scale, stride, *saved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(
    kernel: str, scale: float, stride: int, place: Place | None, query: Any, key: Any, value: Any, start: Any, end: Any, own: Any
) -> tuple[Any, Any]:
    """out (B, T, H, D) and the logarithm of the softmax's sum (B, T, H)."""
    return by_rows(place, functools.partial(_compiled_forward, kernel, scale, stride), query, key, value, start, end, own)  # type: ignore[no-any-return]


def _attend_forward(kernel: str, scale: float, stride: int, place: Place | None, *operands: Any) -> tuple[Any, Any]:
    out, total = by_rows(place, functools.partial(_compiled_forward, kernel, scale, stride), *operands)
    return (out, total), (*operands, out, total)


def _attend_backward(kernel: str, scale: float, stride: int, place: Place | None, saved: Any, grads: Any) -> tuple[Any, ...]:
    dq, dk, dv = by_rows(place, functools.partial(_compiled_backward, kernel, scale, stride), *saved, *grads)
    return dq, dk, dv, None, None, None


_compiled_forward = functools.partial(jax.jit, static_argnums=(0, 1, 2))(_run_forward)
_compiled_backward = functools.partial(jax.jit, static_argnums=(0, 1, 2))(_run_backward)
_attend.defvjp(_attend_forward, _attend_backward)
