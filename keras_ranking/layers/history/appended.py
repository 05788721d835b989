"""The fusions `append_cross` and `append_falcon`: events and candidates as tokens of one sequence; the history is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.layers.attention.held_keys import hold
from keras_ranking.layers.history.shared_steps import (
    candidate_output,
    history_spans,
    history_summary,
    latest_events,
    real_events_first,
    rotated_by,
)
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_least
from keras_ranking.ops.sequences import append_rows, gather_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def prefill(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> dict[str, Any]:
    """Keys and values of the latest visible events in every block; see `HistoryEncoder.prefill`."""
    history, real, times, sessions, length = latest_events(encoder, inputs)
    x = encoder.maps["history"](history)
    spans, rotation = history_spans(encoder, real, times, sessions), rotated_by(encoder, times, x)
    keys, values = [], []
    for block in encoder.blocks:
        x, key, value = block(x, times=rotation, spans=tuple(spans), return_cache=True, training=training)
        keys.append(key)
        values.append(value)
    cache = {"key": ops.stack(keys, axis=1), "value": ops.stack(values, axis=1), "length": length}
    if times is not None:
        cache["time"] = times
    if encoder.session_ids:
        cache["session"] = sessions
    if encoder.pool or encoder.latest:
        cache["summary"] = history_summary(encoder, encoder.norm(x), real, length)
    return cache


def score(encoder: HistoryEncoder, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> Any:
    """Candidates against the cached keys and values; see `HistoryEncoder.score`."""
    x = encoder.maps["candidate"](inputs["candidates"])
    moment = inputs["request_time"] if encoder.rotary is not None and encoder.rotate_by == "time" else cache["length"]
    rotation = None if encoder.rotary is None else moment[:, None] + ops.zeros_like(x[:, :, 0], dtype="int32")
    for i, block in enumerate(encoder.blocks):
        kept = (cache["key"][:, i], cache["value"][:, i], cache["length"])
        x = block(x, times=rotation, cache=kept, see_self=encoder.see_self, training=training)
    return candidate_output(encoder, x, cache.get("summary"))


def extend(encoder: HistoryEncoder, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> dict[str, Any]:
    """Cache with the keys and values of later events added; see `HistoryEncoder.extend`."""
    inputs = real_events_first(inputs, "count")
    length, count = cache["length"], inputs["count"]
    x = encoder.maps["history"](inputs["history"])
    slots, added = ops.shape(cache["key"])[2], ops.shape(x)[1]
    index = ops.arange(slots + added, dtype="int32")[None, :]
    real = index < (length + count)[:, None]
    # What is cached, then the same of the new ones directly after the last real one of each row.
    joined = {
        kept: gather_rows(ops.concatenate([cache[kept], inputs[name]], axis=1), length, slots)
        for kept, name in (("time", "times"), ("session", "sessions"))
        if kept in cache and name in inputs
    }
    spans = history_spans(encoder, real, joined.get("time"), joined.get("session"))
    rotation = rotated_by(encoder, inputs.get("times"), x, first=length[:, None])
    keys, values = [], []
    place = length[:, None] + ops.arange(added, dtype="int32")[None, :]
    both = cache["key"], cache["value"]
    held = hold(*both, Spans(*(ops.take_along_axis(part, place, axis=1) for part in spans)), length)
    for i, block in enumerate(encoder.blocks):
        x, key, value = block(x, times=rotation, cache=tuple(held.block(i)), return_cache=True, training=training)
        keys.append(key)
        values.append(value)
    key, value = append_rows(both, (ops.stack(keys, axis=1), ops.stack(values, axis=1)), length, axis=2)
    return {"key": key, "value": value, "length": length + count, **joined}


def packed(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> Any:
    """Several requests per row in one pass; see `HistoryEncoder.packed`.

    A row of tokens is the windows of its Q requests, one after another, and then its candidate slots.
    """
    slot = inputs["slot"]
    history, real, times, sessions, length = latest_events(encoder, inputs)
    batch, window = ops.shape(slot)[0], ops.shape(history)[1]
    requests = ops.shape(history)[0] // batch
    candidates = encoder.maps["candidate"](inputs["candidates"])
    slots = ops.shape(candidates)[1]
    before = requests * window

    def row(x: Any, *trailing: int) -> Any:
        return ops.reshape(x, (batch, before, *trailing))

    owner = at_least(slot - 1, 0)
    first = row(ops.zeros_like(real, dtype="int32") + (ops.arange(batch * requests, dtype="int32") % requests * window)[:, None])
    inside = Spans(*(row(part) + first for part in history_spans(encoder, real, times, sessions)))
    start = owner * window
    seen = start + ops.take_along_axis(ops.reshape(length, (batch, requests)), owner, axis=1)
    index = before + ops.arange(slots, dtype="int32")[None, :] + ops.zeros_like(slot)
    empty = slot < 1  # sees nothing
    seen = ops.where(empty, start, seen)
    alone = index + 1 if not encoder.see_self else ops.where(empty, index + 1, index)
    spans = tuple(ops.concatenate(pair, axis=1) for pair in zip(inside, (start, seen, alone), strict=True))
    rotation = None
    if encoder.rotary is not None:
        mine = ops.reshape(inputs["request_time"] if encoder.rotate_by == "time" else length, (batch, requests))
        rotation = ops.concatenate([row(rotated_by(encoder, times, history)), ops.take_along_axis(mine, owner, axis=1)], axis=1)
    x = ops.concatenate([row(encoder.maps["history"](history), encoder.width), candidates], axis=1)
    for block in encoder.blocks:
        x = block(x, times=rotation, spans=spans, training=training)
    if not (encoder.pool or encoder.latest):
        return candidate_output(encoder, x[:, before:], None)
    states = ops.reshape(encoder.norm(x[:, :before]), (-1, window, encoder.width))
    summary = history_summary(encoder, states, real, length)
    summary = ops.reshape(summary, (batch, requests, (encoder._output_parts - 1) * encoder.width))
    return candidate_output(encoder, x[:, before:], summary, owner=lambda rows: ops.take_along_axis(rows, owner[:, :, None], axis=1))
