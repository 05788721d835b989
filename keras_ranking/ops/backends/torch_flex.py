"""Span attention in torch by flex_attention: a BlockMask made from the integers of the spans, and SDPA if it needs no mask.

Which blocks of keys a block of queries reaches, and which of them all its rows see, follows from the extremes of the spans in
the block: no dense mask is made. The table of blocks has (T / 128) (S / 128) entries, as flex_attention requires.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from keras_ranking.ops.spans import Spans

BLOCK = 128


@dataclass
class Mask:
    """The spans in the form that flex_attention needs, made once for as long as the spans exist.

    Args:
        blocks: the BlockMask.
        plain: 'causal' or 'full' if all rows are exactly that, so that SDPA needs no mask; else ''.
        some: boolean (B, T), queries that see something.
        seen: boolean (B, S), keys that some query sees.
    """

    blocks: Any
    plain: str
    some: torch.Tensor
    seen: torch.Tensor


def intervals(spans: Spans, num_keys: int, stride: int = 1) -> tuple[torch.Tensor, ...]:
    """(a, b, c, d) int32 (B, T): disjoint intervals a..b and c..d; adjacent ones are merged; empty ones are (S, 0)."""
    start, end, own = (part.to(torch.int32) for part in spans)
    after = (stride * torch.arange(start.shape[1], dtype=torch.int32, device=start.device) + 1).expand_as(own)

    def clean(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = low.clamp(0, num_keys), high.clamp(0, num_keys)
        return low.masked_fill(low >= high, num_keys), high.masked_fill(low >= high, 0)

    (a, b), (c, d) = clean(start, end), clean(own, after)
    one = (c >= d) | (a >= b) | ((a <= d) & (c <= b))
    low, high = torch.minimum(a, c), torch.maximum(b, d)
    return torch.where(one, low, a), torch.where(one, high, b), c.masked_fill(one, num_keys), d.masked_fill(one, 0)


def make_mask(spans: Spans, num_keys: int, stride: int = 1) -> Mask:
    """The mask of spans (B, T) over `num_keys` keys; query i has the place of key `stride i`."""
    from torch.nn.attention.flex_attention import BlockMask

    a, b, c, d = parts = intervals(spans, num_keys, stride)
    queries = a.shape[1]
    index = torch.arange(1, queries + 1, device=a.device)
    single = (a == 0).all() & (c >= d).all()
    kinds = torch.stack([single & (b == index).all() & (queries == num_keys), single & (b == num_keys).all()]).tolist()

    def visible(row: Any, head: Any, i: Any, j: Any) -> Any:
        del head
        return ((j >= a[row, i]) & (j < b[row, i])) | ((j >= c[row, i]) & (j < d[row, i]))

    reached, full = _blocks(parts, num_keys)
    partial = reached & ~full
    blocks = BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=visible, seq_lengths=(queries, num_keys)
    )
    return Mask(blocks, "causal" if kinds[0] else "full" if kinds[1] else "", (a < b) | (c < d), _seen(parts, num_keys))


def _blocks(parts: tuple[torch.Tensor, ...], num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean (B, query blocks, key blocks): which blocks of keys the queries reach, and which of these every query sees completely."""
    more = -parts[0].shape[1] % BLOCK
    padded = (torch.nn.functional.pad(part, (0, more), value=fill) for part, fill in zip(parts, (num_keys, 0) * 2, strict=True))
    a, b, c, d = (part.reshape(part.shape[0], -1, BLOCK) for part in padded)
    first = torch.arange(-(-num_keys // BLOCK), dtype=torch.int32, device=parts[0].device) * BLOCK
    last = torch.clamp(first + BLOCK, max=num_keys)

    def reach(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (low.amin(-1)[..., None] < last) & (high.amax(-1)[..., None] > first)

    # Rows beyond the end see nothing, but their output is not used: they must not make the last block partial.
    real = (torch.arange(a.shape[1] * BLOCK, device=a.device) < parts[0].shape[1]).reshape(1, -1, BLOCK)
    closed, opened = a.masked_fill(~real, 0).amax(-1), b.masked_fill(~real, num_keys).amin(-1)
    full = (closed[..., None] <= first) & (opened[..., None] >= last) & (last - first == BLOCK)
    return reach(a, b) | reach(c, d), full


def _ordered(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(count (B, 1, blocks), indices (B, 1, blocks, key blocks)): the chosen blocks first, in order."""
    order = torch.argsort((~chosen).to(torch.uint8), dim=-1, stable=True).to(torch.int32)
    return chosen.sum(-1, dtype=torch.int32)[:, None].contiguous(), order[:, None].contiguous()


def _seen(parts: tuple[torch.Tensor, ...], num_keys: int) -> torch.Tensor:
    """Boolean (B, S). Interval ends are counted, so the cost is linear."""
    a, b, c, d = parts
    low, high = torch.cat([a, c], 1), torch.cat([b, d], 1)
    used = (low < high).to(torch.int32)
    change = torch.zeros((len(a), num_keys + 1), dtype=torch.int32, device=a.device)
    change.scatter_add_(1, low.to(torch.int64), used).scatter_add_(1, torch.where(low < high, high, num_keys).to(torch.int64), -used)
    return change.cumsum(1)[:, :-1] > 0


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def attend(query: Any, key: Any, value: Any, mask: Mask, scale: float, need_total: bool, compiled: bool = True) -> tuple[Any, Any]:
    """out (B, T, H, D) and, if requested, the logarithm of the softmax's sum (B, T, H)."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    group = query.shape[2] != key.shape[2]
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    if mask.plain and not need_total:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=mask.plain == "causal", scale=scale, enable_gqa=group)
        return out.transpose(1, 2), None
    some, seen = mask.some[:, None, :, None], mask.seen[:, None, :, None]
    q, k, v = q.masked_fill(~some, 0.0), k.masked_fill(~seen, 0.0), v.masked_fill(~seen, 0.0)
    run = _compiled() if compiled else flex_attention
    out, more = run(q, k, v, block_mask=mask.blocks, scale=scale, enable_gqa=group, return_aux=AuxRequest(lse=need_total))
    out = out.masked_fill(~some, 0.0)  # also stops gradients of rows that see nothing
    total = torch.where(some[..., 0], more.lse, float("-inf")) if need_total else None
    return out.transpose(1, 2), None if total is None else total.transpose(1, 2)
