"""The fusion `convolution`: filters over the events, read once; a candidate weighs what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.layers.history.shared_steps import history_summary, latest_events
from keras_ranking.ops.integers import at_least
from keras_ranking.ops.rows import take_in_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def prefill(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> dict[str, Any]:
    """What the filters find at each of the latest visible events; see `HistoryEncoder.prefill`."""
    history, real, times, _, length = latest_events(encoder, inputs)
    shown = real[:, :, None]
    x = encoder.maps["history"](history)
    x = ops.where(shown, x, ops.zeros_like(x))
    state = ops.concatenate([filters(x) for filters in encoder.filters], axis=-1)
    state = encoder.drop(ops.where(shown, state, ops.zeros_like(state)), training=training)
    cache = {"state": state, "length": length}
    if times is not None:
        cache["time"] = times
    if encoder.pool and encoder.over_time == "mean":
        count = ops.cast(at_least(length, 1), "float32")[:, None]
        cache["summary"] = ops.cast(ops.sum(ops.cast(state, "float32"), axis=1) / count, state.dtype)
    elif encoder.pool:
        cache["summary"] = history_summary(encoder, state, real, length)
    return cache


def score(encoder: HistoryEncoder, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> Any:
    """Candidates against the cached states; see `HistoryEncoder.score`."""
    query = encoder.maps["candidate"](inputs["candidates"])
    real = ops.arange(ops.shape(cache["state"])[1], dtype="int32")[None, :] < cache["length"][:, None]
    # States beyond the length of a cache may be anything.
    state = ops.where(real[:, :, None], cache["state"], ops.zeros_like(cache["state"]))
    weights = _weights(ops.einsum("bnd,bwd->bnw", query, state), real[:, None, :], encoder.width)
    out = ops.einsum("bnw,bwd->bnd", weights, state)
    if encoder.pool:
        out = ops.concatenate([out, cache["summary"][:, None] + ops.zeros_like(out)], axis=-1)
    return out if encoder.out is None else encoder.out(out)


def packed(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> Any:
    """Several requests per row in one pass; see `HistoryEncoder.packed`."""
    slot, found = inputs["slot"], prefill(encoder, inputs, training)
    state, length = found["state"], found["length"]
    rows, slots = ops.shape(slot)
    owner = ops.arange(rows, dtype="int32")[:, None] * (ops.shape(state)[0] // rows) + at_least(slot - 1, 0)
    owner = ops.reshape(owner, (-1,))

    def of_slots(x: Any) -> Any:
        return ops.reshape(take_in_rows(x, owner, rows), (rows, slots, *ops.shape(x)[1:]))

    query = encoder.maps["candidate"](inputs["candidates"])
    seen = ops.where(slot > 0, of_slots(length), ops.zeros_like(slot))
    real = ops.arange(ops.shape(state)[1], dtype="int32")[None, None, :] < seen[:, :, None]
    state = of_slots(state)
    out = ops.einsum("bnw,bnwd->bnd", _weights(ops.einsum("bnd,bnwd->bnw", query, state), real, encoder.width), state)
    if encoder.pool:
        summary = of_slots(found["summary"])
        out = ops.concatenate([out, ops.where((slot > 0)[:, :, None], summary, ops.zeros_like(summary))], axis=-1)
    return out if encoder.out is None else encoder.out(out)


def _weights(logits: Any, real: Any, width: int) -> Any:
    """Softmax of logits / sqrt(width) over the real events and an empty slot of logit 0, (.., W)."""
    scaled = ops.where(real, ops.cast(logits, "float32") / width**0.5, -1e30)
    most = ops.relu(ops.max(scaled, axis=-1, keepdims=True))
    found = ops.exp(scaled - most)
    return ops.cast(found / (ops.sum(found, axis=-1, keepdims=True) + ops.exp(-most)), logits.dtype)
