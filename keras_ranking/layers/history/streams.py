"""The fusions `append_cross` and `append_falcon` over rows of histories that several requests read: training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.layers.history.shared_steps import candidate_output, history_spans
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_least

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def score(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> Any:
    """Candidates against the tokens of their request; see `HistoryEncoder.streams`. A row is its histories, and then its slots."""
    slot, stream = inputs["slot"], inputs["stream"]
    real = stream > 0
    history = ops.where(real[:, :, None], inputs["history"], ops.zeros_like(inputs["history"]))
    before, slots = ops.shape(stream)[1], ops.shape(slot)[1]
    owner, empty = at_least(slot - 1, 0), slot < 1
    begin = ops.take_along_axis(inputs["begin"], owner, axis=1)
    end = ops.take_along_axis(inputs["end"], owner, axis=1)
    index = before + ops.arange(slots, dtype="int32")[None, :] + ops.zeros_like(slot)
    alone = index + 1 if not encoder.see_self else ops.where(empty, index + 1, index)
    seen = (begin, ops.where(empty, begin, end), alone)
    inside = history_spans(encoder, stream, inputs.get("times"), inputs.get("sessions"))
    spans = tuple(ops.concatenate(pair, axis=1) for pair in zip(inside, seen, strict=True))
    rotation = None
    if encoder.rotary is not None and encoder.rotate_by == "time":
        rotation = ops.concatenate([inputs["times"], ops.take_along_axis(inputs["request_time"], owner, axis=1)], axis=1)
    elif encoder.rotary is not None:
        place = ops.arange(before, dtype="int32")[None, :] - Spans.bidirectional(stream).start
        rotation = ops.concatenate([place, end - begin], axis=1)
    x = ops.concatenate([encoder.maps["history"](history), encoder.maps["candidate"](inputs["candidates"])], axis=1)
    for block in encoder.blocks:
        x = block(x, times=rotation, spans=spans, training=training)
    return candidate_output(encoder, x[:, before:], None)
