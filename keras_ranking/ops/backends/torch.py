"""Span attention in torch: fused CPU flash calls driven by a plan that is made on the host from the spans.

In each row, the plan cuts where no span crosses, finds ranges that are plainly causal, fully visible, or candidates of one history,
which need no bias, and divides the others into tiles. The fused call returns the logarithm of the softmax's sum, so its backward can
be called for each tile. Other devices use flex_attention (`torch_flex.py`), or the same tiles with standard operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from keras_ranking.ops.backends import plan as planning, torch_flex
from keras_ranking.ops.spans import Spans

KERNELS = ("tiles", "blocked", "flex")

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# spans.start -> (end, own, versions, (keys, stride), plan or mask): layers that share spans share their plan or mask
_plans: Any = WeakTensorKeyDictionary()
_masks: Any = WeakTensorKeyDictionary()


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def span_attention(query: Any, key: Any, value: Any, spans: Spans, scale: float, kernel: str, stride: int = 1) -> torch.Tensor:
    """See `keras_ranking.ops.span_attention`."""
    if query.device.type == "meta" or query.numel() == 0:
        return torch.zeros_like(query)
    if kernel == "auto":
        kernel = {"cpu": "tiles", "cuda": "flex"}.get(query.device.type, "blocked")
    if kernel == "flex":
        mask = _kept(_masks, spans, (key.shape[1], stride), torch_flex.make_mask)
        attended: torch.Tensor = torch_flex.attend(query, key, value, mask, scale, need_total=False)[0]
        return attended
    plan, fused = _plan(spans, key.shape[1], stride), kernel == "tiles"
    query, key, value = _without_poison(query, key, value, plan)
    key, value = _repeat(key, query.shape[2]), _repeat(value, query.shape[2])
    plain = plan.plain(query.shape[0], query.shape[1], key.shape[1]) if fused else None
    if plain is not None:  # one mask without a bias for all: a direct call of the library, without a copy of its output
        q, k, v = (part.transpose(1, 2) for part in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=plain == "causal", scale=scale).transpose(1, 2)
    out: torch.Tensor = _apply(query, key, value, None, None, plan, scale, fused)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def candidate_attention(query: Any, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any, scale: float) -> torch.Tensor:
    """See `keras_ranking.ops.candidate_attention`."""
    if query.device.type == "meta" or query.numel() == 0:
        return torch.zeros_like(query)
    if query.device.type == "cuda":
        mask = torch_flex.make_mask(Spans.history_only(lengths, query.shape[1]), key.shape[1])
        history, total = torch_flex.attend(query, key, value, mask, scale, need_total=True)
        joined: torch.Tensor = history if self_key is None else _join_rows(query, history, total, self_key, self_value, scale)
        return joined
    plan = planning.candidate_plan(lengths.cpu().numpy(), query.shape[1], key.shape[1], self_key is not None)
    query, key, value = _without_poison(query, key, value, plan)
    heads = query.shape[2]
    key, value = _repeat(key, heads), _repeat(value, heads)
    if self_key is not None:
        self_key, self_value = _repeat(self_key, heads), _repeat(self_value, heads)
    out: torch.Tensor = _apply(query, key, value, self_key, self_value, plan, scale, query.device.type == "cpu")
    return out


def _kept(store: Any, spans: Spans, sizes: tuple[int, int], make: Callable[..., Any]) -> Any:
    """make(spans, *sizes), made once as long as the spans exist and do not change."""
    start, end, own = spans
    if any(part.is_inference() for part in spans):  # no version counter: changes in place cannot be detected
        return make(spans, *sizes)
    versions = (start._version, end._version, own._version)
    held = store.get(start)
    if held is not None and held[0] is end and held[1] is own and held[2] == versions and held[3] == sizes:
        return held[4]
    made = make(spans, *sizes)
    # The entry keeps `end` and `own` alive as long as `start`, so their identity is a safe key.
    store[start] = (end, own, versions, sizes, made)
    return made


def _plan(spans: Spans, num_keys: int, stride: int = 1) -> planning.Plan:
    def make(spans: Spans, num_keys: int, stride: int) -> planning.Plan:
        start, end, own = (part.detach().cpu().numpy() for part in spans)
        return planning.span_plan(start, end, own, num_keys, stride)

    return _kept(_plans, spans, (num_keys, stride), make)  # type: ignore[no-any-return]


def _repeat(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Key/value heads repeated for their group of query heads; autograd sums the gradients back."""
    group = heads // values.shape[2]
    return values if group == 1 else values.repeat_interleave(group, dim=2)


def _without_poison(query: Any, key: Any, value: Any, plan: planning.Plan) -> tuple[Any, Any, Any]:
    """Zeros where no query sees the key: NaN times a weight of zero is NaN."""
    if plan.unseen is not None:
        unseen = torch.as_tensor(plan.unseen, device=key.device)[:, :, None, None]
        key, value = key.masked_fill(unseen, 0.0), value.masked_fill(unseen, 0.0)
    if plan.empty is not None:
        query = query.masked_fill(torch.as_tensor(plan.empty, device=query.device)[:, :, None, None], 0.0)
    return query, key, value


def _bias(tile: planning.Tile, like: torch.Tensor) -> torch.Tensor:
    """Additive bias of a tile: 0 for visible pairs, else -inf. A row that sees nothing has 0 everywhere; its output is set to zero."""
    if tile.cached is not None and tile.cached.device == like.device and tile.cached.dtype == like.dtype:
        return tile.cached  # type: ignore[no-any-return]
    at, hidden = tile.hidden()
    keys = sum(high - low for low, high in tile.keys)
    bias = torch.zeros((len(hidden), 1, tile.high - tile.low, keys), dtype=like.dtype, device=like.device)
    bias[:, 0, :, at : at + hidden.shape[-1]].masked_fill_(torch.as_tensor(hidden, device=like.device), float("-inf"))
    if tile.keep:
        tile.cached = bias
    return bias


def _keys(values: torch.Tensor, tile: planning.Tile) -> torch.Tensor:
    """The keys or values that a tile reads, (b, H, k, D)."""
    rows = values[tile.row : tile.row_end]
    pieces = [rows[:, low:high] for low, high in tile.keys]
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)).transpose(1, 2)


def _attend(fused: bool, q: Any, k: Any, v: Any, causal: bool, bias: Any, scale: float) -> tuple[Any, Any]:
    if fused:
        return _flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)  # type: ignore[no-any-return]
    scores = _scores(q, k, causal, bias, scale)
    total = torch.logsumexp(scores, dim=-1)
    return (torch.exp(scores - total[..., None]) @ v.to(scores.dtype)).to(q.dtype), total


def _scores(q: Any, k: Any, causal: bool, bias: Any, scale: float) -> Any:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    return scores if bias is None else scores + bias


def _attend_backward(fused: bool, grad: Any, q: Any, k: Any, v: Any, out: Any, total: Any, causal: bool, bias: Any, scale: float) -> Any:
    if fused:
        return _flash_backward(grad, q, k, v, out, total, 0.0, causal, attn_mask=bias, scale=scale)
    p = torch.exp(_scores(q, k, causal, bias, scale) - total[..., None])
    wide = p.dtype
    grad = grad.to(wide)
    ds = p * (grad @ v.to(wide).transpose(-1, -2) - (grad * out.to(wide)).sum(-1, keepdim=True)) * scale
    return (ds @ k.to(wide)).to(q.dtype), (ds.transpose(-1, -2) @ q.to(wide)).to(q.dtype), (p.transpose(-1, -2) @ grad).to(q.dtype)


class _Tiles(torch.autograd.Function):
    """out = softmax attention over the tiles of a plan; own keys are added in `joined` tiles."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, self_key: Any, self_value: Any, plan: Any, scale: Any, fused: Any) -> Any:
        out = torch.empty_like(query) if plan.covers else torch.zeros_like(query)
        totals = []
        for tile in plan.tiles:
            q = query[tile.row : tile.row_end, tile.low : tile.high].transpose(1, 2)
            bias = None if tile.kind != "bias" else _bias(tile, query)
            if tile.keys:
                o, total = _attend(fused, q, _keys(key, tile), _keys(value, tile), tile.kind == "causal", bias, scale)
            else:
                o, total = (
                    torch.zeros_like(q),
                    torch.full(q.shape[:3], float("-inf"), device=q.device, dtype=torch.promote_types(q.dtype, torch.float32)),
                )
            if tile.joined:
                o, total = _join(q, o, total, *_own(tile, key, value, self_key, self_value), scale)
            if tile.hollow is not None:
                o = o.masked_fill(torch.as_tensor(tile.hollow, device=o.device)[:, None, :, None], 0.0)
            out[tile.row : tile.row_end, tile.low : tile.high] = o.transpose(1, 2)
            totals.append(total)
        ctx.save_for_backward(query, key, value, self_key, self_value, out, *totals)
        ctx.plan, ctx.scale, ctx.fused = plan, scale, fused
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad_out: Any) -> Any:
        query, key, value, self_key, self_value, out, *totals = ctx.saved_tensors
        plan, scale, fused = ctx.plan, ctx.scale, ctx.fused
        dq = torch.empty_like(query) if plan.covers else torch.zeros_like(query)
        # Tiles overlap in their keys, so key gradients are summed, in float32 for every dtype of the inputs.
        wide = torch.promote_types(key.dtype, torch.float32)
        dk, dv = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        dsk, dsv = (None, None) if self_key is None else (torch.zeros_like(self_key), torch.zeros_like(self_value))
        for tile, total in zip(plan.tiles, totals, strict=True):
            rows, cols = slice(tile.row, tile.row_end), slice(tile.low, tile.high)
            q, o = query[rows, cols].transpose(1, 2), out[rows, cols].transpose(1, 2)
            grad = grad_out[rows, cols].transpose(1, 2)
            if tile.hollow is not None:
                grad = grad.masked_fill(torch.as_tensor(tile.hollow, device=grad.device)[:, None, :, None], 0.0)
            if tile.keys:
                bias = None if tile.kind != "bias" else _bias(tile, query)
                k, v = _keys(key, tile), _keys(value, tile)
                gq, gk, gv = _attend_backward(fused, grad, q, k, v, o, total, tile.kind == "causal", bias, scale)
                at = 0
                for low, high in tile.keys:
                    dk[rows, low:high] += gk[:, :, at : at + high - low].transpose(1, 2)
                    dv[rows, low:high] += gv[:, :, at : at + high - low].transpose(1, 2)
                    at += high - low
            else:
                gq = torch.zeros_like(q)
            if tile.joined:
                extra, gk, gv = _join_backward(grad, q, o, total, *_own(tile, key, value, self_key, self_value), scale)
                gq = gq + extra
                if dsk is None or dsv is None:
                    dk[rows, cols] += gk.transpose(1, 2)
                    dv[rows, cols] += gv.transpose(1, 2)
                else:
                    dsk[rows, cols], dsv[rows, cols] = gk.transpose(1, 2), gv.transpose(1, 2)
            dq[rows, cols] = gq.transpose(1, 2)
        return dq, dk.to(key.dtype), dv.to(value.dtype), dsk, dsv, None, None, None


_apply: Any = _Tiles.apply


def _own(tile: planning.Tile, key: Any, value: Any, self_key: Any, self_value: Any) -> tuple[Any, Any]:
    """Each query's own key and value, (b, H, q, D): from its place among the keys, or from separate tensors."""
    own_key, own_value = (key, value) if self_key is None else (self_key, self_value)
    rows, cols = slice(tile.row, tile.row_end), slice(tile.low, tile.high)
    return own_key[rows, cols].transpose(1, 2), own_value[rows, cols].transpose(1, 2)


def _join(q: Any, out: Any, total: Any, own_key: Any, own_value: Any, scale: float) -> tuple[Any, Any]:
    """Adds one key per query to a finished softmax: weights from the logarithms of the two sums."""
    score = (q.to(total.dtype) * own_key.to(total.dtype)).sum(-1) * scale
    joined = torch.logaddexp(total, score)
    out = torch.exp(total - joined)[..., None] * out + torch.exp(score - joined)[..., None] * own_value
    return out.to(q.dtype), joined


def _join_rows(query: Any, out: Any, total: Any, self_key: Any, self_value: Any, scale: float) -> torch.Tensor:
    """`_join` on rows (B, N, H, D), with standard operations that autograd differentiates."""
    heads = query.shape[2]
    joined, _ = _join(query, out, total, _repeat(self_key, heads), _repeat(self_value, heads), scale)
    return joined  # type: ignore[no-any-return]


def _join_backward(grad: Any, q: Any, out: Any, total: Any, own_key: Any, own_value: Any, scale: float) -> tuple[Any, Any, Any]:
    wide = total.dtype
    p = torch.exp((q.to(wide) * own_key.to(wide)).sum(-1) * scale - total)
    grad = grad.to(wide)
    ds = (p * scale * (grad * (own_value.to(wide) - out.to(wide))).sum(-1))[..., None]
    return (ds * own_key).to(q.dtype), (ds * q).to(q.dtype), (p[..., None] * grad).to(q.dtype)
