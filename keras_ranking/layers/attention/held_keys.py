"""HeldKeys: the keys and values of a cache, arranged once for all blocks, as later tokens read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_ranking.layers.attention.dropped_weights import attend_dropping
from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import int32
from keras_ranking.ops.sequences import real_rows


class Held(NamedTuple):
    """What M later tokens read of the S keys of one block, or with a first axis of blocks; see `HeldKeys`.

    Args:
        key: (B, H_kv, S, d_h).
        value: the same; zeros beyond the length.
        seen: boolean (B, M, S + M): which of the held keys, and then which of their own, each later token sees.
        read: boolean (B, M): whether any later token sees the key of each.
        some: boolean (B, M): whether each later token sees a key.
    """

    key: Any
    value: Any
    seen: Any
    read: Any
    some: Any

    def block(self, number: int) -> Held:
        """Those of one block."""
        return self._replace(key=self.key[number], value=self.value[number])


def hold(key: Any, value: Any, spans: Any, length: Any) -> Held:
    """The keys and values (B, blocks, S, H_kv, d_h) of a cache for later tokens with `spans` (B, M); see `HeldKeys`."""
    slots = ops.shape(key)[2]
    start, end, own = (part[:, :, None] for part in spans)
    added = ops.arange(ops.shape(spans[0])[1], dtype="int32")
    index = ops.arange(slots, dtype="int32")[None, :]
    index = ops.where(index < length[:, None], index, int32(-1))  # beyond the length: seen by none
    place = length[:, None] + added[None, :]
    at, itself = ops.concatenate([index, place], axis=1)[:, None, :], place[:, :, None]
    earlier, own_event = ops.logical_and(at >= start, at < end), ops.logical_and(at >= own, at <= itself)
    seen = ops.logical_and(ops.logical_or(earlier, own_event), at >= 0)
    by_head = (1, 0, 3, 2, 4)
    key, value = ops.transpose(key, by_head), ops.transpose(real_rows(value, length, axis=2), by_head)
    return Held(key, value, seen, ops.any(seen[:, :, slots:], axis=1), ops.any(seen, axis=2))


def attend_held(query: Any, key: Any, value: Any, held: Held, drop: Any = None) -> Any:
    """Softmax attention of later tokens to the held keys and to their own, in one softmax.

    The weights of M tokens on all S + M keys are stored: few tokens follow many.

    Args:
        query: (B, M, H, d_h).
        key, value: (B, M, H_kv, d_h), theirs; where no token sees them they may have any value.
        held: of one block.
        drop: a `keras.layers.Dropout` of float32 for the weights in training, or None.

    Returns:
        (B, M, H, d_h); zeros for a token that sees nothing.
    """
    batch, tokens, heads, size = ops.shape(query)
    kv_heads = key.shape[2]
    key = ops.concatenate([held.key, ops.cast(ops.transpose(key, (0, 2, 1, 3)), held.key.dtype)], axis=2)
    value = ops.where(held.read[:, :, None, None], value, ops.zeros_like(value))
    value = ops.concatenate([held.value, ops.cast(ops.transpose(value, (0, 2, 1, 3)), held.value.dtype)], axis=2)
    if drop is not None:
        key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (key, value))
        return attend_dropping(drop, query, key, value, held.seen)
    grouped = ops.reshape(query, (batch, tokens, kv_heads, heads // kv_heads, size))
    rows = ops.reshape(ops.transpose(grouped, (0, 2, 3, 1, 4)), (batch, kv_heads, heads // kv_heads * tokens, size))
    logits = ops.cast(ops.einsum("bkqd,bksd->bkqs", rows, key), "float32") / size**0.5
    shape = ops.shape(logits)
    logits = ops.where(held.seen[:, None], ops.reshape(logits, (batch, heads, tokens, shape[3])), -1e30)
    weights = ops.reshape(ops.cast(ops.softmax(logits, axis=-1), value.dtype), shape)
    out = ops.reshape(ops.einsum("bkqs,bksd->bkqd", weights, value), (batch, heads, tokens, size))
    return ops.where(held.some[:, :, None, None], ops.transpose(out, (0, 2, 1, 3)), ops.zeros_like(query))


@keras.saving.register_keras_serializable(package="keras_ranking")
class HeldKeys(WholeInputs, RefusesMask, keras.layers.Layer):
    """The keys and values of a cache as later tokens read them: what all blocks share is made once.

    Pass `block(i)` of the output as the `cache` of block i: `SelfGatedAttention` and the blocks around it then return the keys and values
    of the later tokens alone, and `AppendKeys` adds those of all blocks to the cache at once.

    Call arguments:
        inputs: the cached keys (B, blocks, S, H_kv, d_h).
        values: the cached values, of the same shape.
        spans: tuple of start, end and own, each int32 (B, M): `Spans` of the M later tokens, of which the first is at the place `length`.
        length: int32 (B,), the number of valid keys, which come first; the others may have any value, including NaN.

    Output:
        `Held`: key and value (blocks, B, H_kv, S, d_h), seen (B, M, S + M), read (B, M), some (B, M).

    Example:
        >>> layer, x = kr.layers.SelfGatedAttention(num_heads=2, head_dim=4, rotary=None), np.ones((1, 3, 8), "float32")
        >>> _, key, value = layer(x[:, :2], return_cache=True)
        >>> spans = kr.ops.Spans.causal(np.ones((1, 3), "int32"))
        >>> later = tuple(part[:, 2:] for part in spans)
        >>> held = kr.layers.HeldKeys()(key[:, None], values=value[:, None], spans=later, length=np.array([2], "int32"))
        >>> layer(x[:, 2:], cache=held.block(0)).shape
        (1, 1, 8)
    """

    whole = ("length",)
    mask_instead = "`length`"

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, values: Any, spans: Any, length: Any) -> Any:
        return hold(inputs, values, Spans(*spans), length)

    def compute_output_spec(self, inputs: Any, values: Any, spans: Any, length: Any) -> Any:
        batch, blocks, slots, heads, size = inputs.shape
        added = spans[0].shape[1]
        rows = [keras.KerasTensor((blocks, batch, heads, slots, size), dtype=self.compute_dtype) for _ in ("key", "value")]
        pairs = (batch, added, None if None in (slots, added) else slots + added)
        return Held(*rows, *(keras.KerasTensor(shape, dtype="bool") for shape in (pairs, pairs[:2], pairs[:2])))
