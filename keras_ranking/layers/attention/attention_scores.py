"""Attention whose scores are all stored: for a mask of pairs, and for calls that return the scores."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_ranking.ops import Spans


def scores_of(query: Any, key: Any, visible: Any) -> Any:
    """softmax(Q K^T / sqrt(d_h)) over visible keys: float32 (B, H, T, S), in which a query that sees nothing has zeros.

    Args:
        query: (B, T, H, d_h).
        key: (B, S, H_kv, d_h).
        visible: boolean (B, T, S).
    """
    key = _seen_only(key, visible)
    query, key = (ops.cast(x, "float32") for x in (query, key))
    key = ops.repeat(key, query.shape[2] // key.shape[2], axis=2) if query.shape[2] != key.shape[2] else key
    logits = ops.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    return softmax_over(logits, visible[:, None])


def softmax_over(logits: Any, visible: Any) -> Any:
    """Softmax over the last axis of the visible entries; zeros, and no gradient, elsewhere."""
    logits = ops.where(visible, logits, -1e30)
    weights = ops.where(visible, ops.exp(logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))), 0.0)
    return weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)


def weighted(scores: Any, value: Any, visible: Any) -> Any:
    """Sums of values (B, S, H_kv, d_h) by scores (B, H, T, S): (B, T, H, d_h) in the dtype of the values."""
    dtype = value.dtype
    value = ops.cast(_seen_only(value, visible), "float32")
    value = ops.repeat(value, scores.shape[1] // value.shape[2], axis=2) if scores.shape[1] != value.shape[2] else value
    return ops.cast(ops.einsum("bhts,bshd->bthd", scores, value), dtype)


def visible_pairs(spans: Spans, count: Any, mask: Any = None, attention_mask: Any = None) -> Any:
    """Boolean (B, T, S): the pairs that spans, a mask of tokens (B, S) and a mask of pairs (T, S) or (B, T, S) all show."""
    seen = spans.dense(count)
    if mask is not None:
        mask = ops.cast(mask, "bool")
        seen = ops.logical_and(seen, ops.logical_and(mask[:, None, :], mask[:, :, None]))
    if attention_mask is not None:
        pairs = ops.cast(attention_mask, "bool")
        if len(pairs.shape) not in (2, 3):
            raise ValueError(f"`attention_mask` must be (T, S) or (B, T, S). Received: shape={tuple(pairs.shape)}")
        seen = ops.logical_and(seen, pairs[None] if len(pairs.shape) == 2 else pairs)
    return seen


def _seen_only(x: Any, visible: Any) -> Any:
    """(B, S, ...), with zeros for keys that no query sees: a weight of 0 would keep NaN and infinity."""
    seen = ops.any(visible, axis=1)[:, :, None, None]
    return ops.where(seen, x, ops.zeros_like(x))
