"""Softmax attention in training whose weights are dropped at random: all weights are stored."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_ranking.layers.attention.attention_scores import scores_of, weighted


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
    out = weighted(drop(scores_of(query, key, seen), training=True), value, seen)
    return ops.cast(out, query.dtype)


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
