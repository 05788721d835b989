"""How histories are cut, joined and laid out for a `HistoryEncoder`; pure functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import ops


def latest_window(history: Any, times: Any, visible: Any, size: int) -> tuple[Any, Any, Any]:
    """The `size` latest visible events, left-aligned: history (B, W, E), times (B, W) or None, and how many are real, (B,).

    W is the smaller of `size` and L.
    """
    slots = ops.shape(history)[1]
    if isinstance(slots, int) and slots <= size:
        return history, times, ops.cast(visible, "int32")
    window = min(slots, size) if isinstance(slots, int) else ops.minimum(slots, size)
    visible = ops.cast(visible, "int32")
    length = ops.minimum(visible, window)
    index = (visible - length)[:, None] + ops.arange(window, dtype="int32")[None, :]
    index = ops.minimum(index, slots - 1)
    history = ops.take_along_axis(history, index[:, :, None], axis=1)
    return history, None if times is None else ops.take_along_axis(times, index, axis=1), length


def joined_tokens(cache: Mapping[str, Any], candidates: Any) -> tuple[Any, Any, Any, Any]:
    """Every candidate joined to every event of its request: a window of tokens for each candidate.

    Args:
        cache: `history` (B, W, E), zeros beyond `length` (B,); maybe `time` (B, W).
        candidates: (B, N, C).

    Returns:
        Tokens (B N, W, E + C), which are real (B N, W), how many (B N,), and times (B N, W) or None.
    """
    history, length, times = cache["history"], cache["length"], cache.get("time")
    shape, window = ops.shape(candidates), ops.shape(history)[1]
    wide = (shape[0], shape[1], window)
    tokens = ops.concatenate(
        [
            ops.broadcast_to(history[:, None], (*wide, history.shape[-1])),
            ops.broadcast_to(ops.cast(candidates, history.dtype)[:, :, None], (*wide, candidates.shape[-1])),
        ],
        axis=-1,
    )

    def rows(x: Any) -> Any:
        return ops.reshape(ops.broadcast_to(x[:, None], wide), (-1, window))

    real = ops.arange(window, dtype="int32")[None, :] < length[:, None]
    lengths = ops.reshape(ops.broadcast_to(length[:, None], wide[:2]), (-1,))
    tokens = ops.reshape(tokens, (-1, window, history.shape[-1] + candidates.shape[-1]))
    return tokens, rows(real), lengths, None if times is None else rows(times)
