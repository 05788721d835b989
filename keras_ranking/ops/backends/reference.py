"""The formulas of span and candidate attention in numpy float64, forward and gradient: dense, slow and easy to read.

    S = scale * Q K'       P = exp(S - max) / sum over visible keys, 0 elsewhere       O = P V
    dV = P' dO     dP = dO V'     dS = P * (dP - rowsum(dP * P))     dQ = scale * dS K     dK = scale * dS' Q

The kernels of the backends are tested against this file. Rows that see nothing have P = 0, hence O = 0 and no gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def visible(start: Any, end: Any, own: Any, num_keys: int, stride: int = 1) -> Array:
    """Boolean (B, T, num_keys): which key each query sees; query i has the place of key `stride i`."""
    start, end, own = (np.asarray(part)[:, :, None] for part in (start, end, own))
    keys = np.arange(num_keys)[None, None, :]
    index = stride * np.arange(start.shape[1])[None, :, None]
    return np.asarray(((keys >= start) & (keys < end)) | ((keys >= own) & (keys <= index)))


def _mask(spans: Any, key: Any, stride: int) -> Array:
    start, end, own = spans
    return visible(start, end, own, num_keys=np.asarray(key).shape[1], stride=stride)


def _heads_first(values: Any, heads: int) -> Array:
    """(B, S, Hkv, D) -> float64 (B, H, S, D), each key/value head repeated for its group of query heads."""
    values = np.asarray(values, dtype=np.float64).transpose(0, 2, 1, 3)
    return np.repeat(values, heads // values.shape[1], axis=1)


def _group_sum(values: Array, kv_heads: int) -> Array:
    """(B, H, S, D) -> (B, S, Hkv, D): gradients of a repeated head are summed over its group."""
    batch, heads, keys, size = values.shape
    return np.asarray(values.reshape(batch, kv_heads, heads // kv_heads, keys, size).sum(2).transpose(0, 2, 1, 3))


def _softmax(scores: Array, mask: Array) -> Array:
    scores = np.where(mask, scores, -np.inf)
    peak = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(peak), peak, 0.0))
    total = weights.sum(-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1.0))


def _attend(query: Array, key: Array, value: Array, mask: Array, scale: float | None) -> tuple[Array, Array, Array, Array, float]:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads = query.shape[2]
    q = _heads_first(query, heads)
    # A key that no query of its row sees may have any value, NaN included, and NaN times zero is NaN: set it to zero first.
    seen = np.any(mask, axis=1)[:, None, :, None]
    k, v = (np.where(seen, _heads_first(part, heads), 0.0) for part in (key, value))
    mask = mask[:, None]
    q = np.where(np.any(mask, axis=-1, keepdims=True), q, 0.0)
    return q, k, v, _softmax(scale * q @ k.transpose(0, 1, 3, 2), mask), scale


def attention(query: Any, key: Any, value: Any, mask: Any, scale: float | None = None) -> Array:
    """Attention under a boolean mask (B, T, S): float64 (B, T, H, D)."""
    _, _, v, p, _ = _attend(np.asarray(query), np.asarray(key), np.asarray(value), np.asarray(mask), scale)
    return np.asarray((p @ v).transpose(0, 2, 1, 3))


def attention_gradients(query: Any, key: Any, value: Any, mask: Any, grad: Any, scale: float | None = None) -> tuple[Array, Array, Array]:
    """Gradients of `sum(grad * attention(...))` with respect to query, key and value, each in the shape of its input."""
    mask = np.asarray(mask)
    q, k, v, p, scale_ = _attend(np.asarray(query), np.asarray(key), np.asarray(value), mask, scale)
    do = np.where(np.any(mask, axis=-1)[:, None, :, None], np.asarray(grad, dtype=np.float64).transpose(0, 2, 1, 3), 0.0)
    dp = do @ v.transpose(0, 1, 3, 2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    kv_heads = np.asarray(key).shape[2]
    dq = scale_ * ds @ k
    dk = scale_ * ds.transpose(0, 1, 3, 2) @ q
    dv = p.transpose(0, 1, 3, 2) @ do
    return dq.transpose(0, 2, 1, 3), _group_sum(dk, kv_heads), _group_sum(dv, kv_heads)


def span_attention(query: Any, key: Any, value: Any, spans: Any, scale: float | None = None, stride: int = 1) -> Array:
    """`keras_ranking.ops.span_attention` in float64."""
    return attention(query, key, value, _mask(spans, key, stride), scale)


def span_attention_gradients(
    query: Any, key: Any, value: Any, spans: Any, grad: Any, scale: float | None = None, stride: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients of `sum(grad * span_attention(...))`."""
    return attention_gradients(query, key, value, _mask(spans, key, stride), grad, scale)


def _joined(query: Array, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any) -> tuple[Array, Array, Array]:
    """Keys, values and mask of candidate attention as attention over the concatenated history and candidates."""
    key, value, lengths = np.asarray(key), np.asarray(value), np.asarray(lengths)
    batch, queries = query.shape[:2]
    mask = np.broadcast_to(np.arange(key.shape[1])[None, None] < lengths[:, None, None], (batch, queries, key.shape[1]))
    if self_key is None:
        return key, value, mask
    diagonal = np.broadcast_to(np.eye(queries, dtype=bool)[None], (batch, queries, queries))
    joined = (np.concatenate([old, np.asarray(new)], axis=1) for old, new in ((key, self_key), (value, self_value)))
    return (*joined, np.concatenate([mask, diagonal], axis=2))  # type: ignore[return-value]


def candidate_attention(
    query: Any, key: Any, value: Any, lengths: Any, self_key: Any = None, self_value: Any = None, scale: float | None = None
) -> Array:
    """`keras_ranking.ops.candidate_attention` in float64."""
    query = np.asarray(query)
    return attention(query, *_joined(query, key, value, lengths, self_key, self_value), scale=scale)


def candidate_attention_gradients(
    query: Any, key: Any, value: Any, lengths: Any, grad: Any, self_key: Any = None, self_value: Any = None, scale: float | None = None
) -> tuple[Array, ...]:
    """Gradients of `sum(grad * candidate_attention(...))`: query, key, value and, where given, self_key, self_value."""
    query = np.asarray(query)
    k, v, mask = _joined(query, key, value, lengths, self_key, self_value)
    dq, dk, dv = attention_gradients(query, k, v, mask, grad, scale)
    if self_key is None:
        return dq, dk, dv
    length = np.asarray(key).shape[1]
    return dq, dk[:, :length], dv[:, :length], dk[:, length:], dv[:, length:]
