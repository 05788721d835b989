"""The fusion `concat` over rows of candidates of many requests: training. What no candidate changes is computed once a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.layers.attention.windows import LONGEST, SharedProjections, block_over_windows, projects_linearly
from keras_ranking.layers.history.shared_steps import history_summary, latest_events
from keras_ranking.ops.integers import at_least, at_most, int32
from keras_ranking.ops.rows import take_in_rows
from keras_ranking.ops.sequences import SLOTS_BY_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def packed(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> Any:
    """Several requests per row; see `HistoryEncoder.packed`. Each slot has a window of tokens, as wide as those of its length."""
    slot, candidates = inputs["slot"], inputs["candidates"]
    history, _, times, _, length = latest_events(encoder, inputs)
    longest, window = ops.shape(inputs["history"])[1], ops.shape(history)[1]
    (rows, slots), width = ops.shape(slot), candidates.shape[-1]
    candidates = ops.reshape(ops.cast(candidates, history.dtype), (rows * slots, width))
    row = ops.arange(rows, dtype="int32")[:, None]
    owner = row * (ops.shape(history)[0] // rows) + at_least(slot - 1, 0)
    shared = SharedProjections(encoder.blocks[0], history, candidates) if _shares(encoder, window) else None
    read = _Windows(encoder, rows, history, times, candidates, shared, training)
    if "slots_whole" not in inputs:
        every = ops.reshape(row * slots + ops.arange(slots, dtype="int32")[None, :], (-1,))
        seen = ops.where(slot > 0, take_in_rows(length, owner, rows), 0)
        out = read(ops.reshape(owner, (-1,)), every, ops.reshape(seen, (-1,)), window)
        out = ops.reshape(out, (rows, slots, encoder._output_parts * encoder.width))
        return out if encoder.out is None else encoder.out(out)
    parts, chosen = [], []
    for name, divisor in SLOTS_BY_LENGTH.items():
        which = inputs[name]
        at = at_least(which - 1, 0)
        mine = ops.take_along_axis(owner, at, axis=1)
        seen = ops.where(which > 0, take_in_rows(length, mine, rows), 0)
        size = _smaller((longest + divisor - 1) // divisor, window)
        out = read(ops.reshape(mine, (-1,)), ops.reshape(row * slots + at, (-1,)), ops.reshape(seen, (-1,)), size)
        parts.append(ops.reshape(out, (rows, ops.shape(which)[1], encoder._output_parts * encoder.width)))
        chosen.append(which)
    which = ops.concatenate(chosen, axis=1)
    count = ops.shape(which)[1]
    # The place of each slot among those that were read, from 1 on; 0: a slot without a history, or an empty one.
    places = ops.equal(which[:, None, :], 1 + ops.arange(slots, dtype="int32")[None, :, None])
    place = ops.max(ops.where(places, 1 + ops.arange(count, dtype="int32"), 0), axis=-1)
    parts.insert(0, ops.zeros_like(parts[0][:, :1]))
    out = ops.reshape(ops.concatenate(parts, axis=1), (rows * (count + 1), encoder._output_parts * encoder.width))
    out = take_in_rows(out, row * (count + 1) + place, rows)
    return out if encoder.out is None else encoder.out(out)


def _shares(encoder: HistoryEncoder, window: Any) -> bool:
    return _stored(window) and projects_linearly(encoder.blocks[0])


def _stored(window: Any) -> bool:
    return isinstance(window, int) and window <= LONGEST


def _smaller(a: Any, b: Any) -> Any:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else at_most(int32(a), b)


class _Windows:
    """Windows of tokens, each the latest events of a request with one candidate -> [max over the events ; the latest], (N, ..)."""

    def __init__(
        self, encoder: HistoryEncoder, rows: Any, history: Any, times: Any, candidates: Any, shared: Any, training: bool | None
    ) -> None:
        self.encoder, self.rows, self.history, self.times, self.candidates = encoder, rows, history, times, candidates
        self.shared, self.training = shared, training

    def __call__(self, owner: Any, candidate: Any, length: Any, width: Any) -> Any:
        encoder = self.encoder
        events = take_in_rows(self.history[:, :width], owner, self.rows)
        mine = take_in_rows(self.candidates, candidate, self.rows)[:, None]
        x = ops.concatenate([events, mine + ops.zeros_like(events[:, :, :1])], axis=-1)
        real = ops.arange(width, dtype="int32")[None, :] < length[:, None]
        rotation = None
        if encoder.rotary is not None:
            index = ops.arange(width, dtype="int32")[None, :] + ops.zeros_like(real, dtype="int32")
            rotation = take_in_rows(self.times[:, :width], owner, self.rows) if encoder.rotate_by == "time" else index
        projected = None if self.shared is None else self.shared.of(owner, candidate, width, self.rows)
        for block in encoder.blocks:
            x = block_over_windows(block, x, real, rotation, projected, self.training, stored=_stored(width))
            projected = None
        return history_summary(encoder, encoder.norm(x), real, length)
