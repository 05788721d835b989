"""Softmax attention in training whose weights are dropped at random: all weights are stored."""

from __future__ import annotations

from typing import Any

from keras import ops


def attend_dropping(drop: Any, query: Any, key: Any, value: Any, seen: Any) -> Any:
    """drop(softmax(Q K^T / sqrt(d_h) over the keys seen)) V, in float32.

    Args:
        drop: a `keras.layers.Dropout` of float32, which is called in training.
        query: (B, T, H, d_h).
        key, value: (B, S, H_kv, d_h).
        seen: boolean (B, T, S).

    Returns:
        (B, T, H, d_h) in the dtype of `query`; zeros for a query that sees nothing. A key that no query sees may have any value.
    """
    dtype, groups = query.dtype, query.shape[2] // key.shape[2]
    used = ops.any(seen, axis=1)[:, :, None, None]
    query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
    key, value = (ops.where(used, x, 0.0) for x in (key, value))
    if groups > 1:
        key, value = ops.repeat(key, groups, axis=2), ops.repeat(value, groups, axis=2)
    logits = ops.einsum("bthd,bshd->bhts", query, key) * query.shape[-1] ** -0.5
    visible = seen[:, None]
    logits = ops.where(visible, logits, -1e30)
    weights = ops.where(visible, ops.exp(logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))), 0.0)
    weights = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)
    return ops.cast(ops.einsum("bhts,bshd->bthd", drop(weights, training=True), value), dtype)


def candidates_dropping(drop: Any, query: Any, key: Any, value: Any, lengths: Any, self_key: Any = None, self_value: Any = None) -> Any:
    """The same of `candidate_attention`: each candidate sees the first `lengths` cached keys and, if given, its own key.

    Args:
        drop, query: as in `attend_dropping`; N candidates.
        key, value: (B, L, H_kv, d_h).
        lengths: int32 (B,).
        self_key, self_value: (B, N, H_kv, d_h), or None.

    Returns:
        (B, N, H, d_h).
    """
    many, slots = ops.shape(query)[1], ops.shape(key)[1]
    old = ops.arange(slots, dtype="int32")[None, None, :] < lengths[:, None, None]
    seen = ops.logical_and(old, ops.ones((1, many, 1), dtype="bool"))
    if self_key is not None:
        place = ops.arange(many, dtype="int32")
        itself = ops.logical_and((place[:, None] == place[None, :])[None], ops.ones_like(lengths, dtype="bool")[:, None, None])
        seen = ops.concatenate([seen, itself], axis=2)
        key = ops.concatenate([key, ops.cast(self_key, key.dtype)], axis=1)
        value = ops.concatenate([value, ops.cast(self_value, value.dtype)], axis=1)
    return attend_dropping(drop, query, key, value, seen)
