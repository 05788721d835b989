"""The fusion `append_self`: self-attention over events and all candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.layers.history.shared_steps import candidate_output, latest_events, rotated_by

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def score(encoder: HistoryEncoder, inputs: Mapping[str, Any], training: bool | None) -> Any:
    """Events and candidates in one pass, in which each token sees all tokens; there is no cache."""
    history, _, times, _, length = latest_events(encoder, inputs)
    window, count = ops.shape(history)[1], ops.shape(inputs["candidates"])[1]
    x = ops.concatenate([encoder.maps["history"](history), encoder.maps["candidate"](inputs["candidates"])], axis=1)
    rotation = rotated_by(encoder, times, history)
    if rotation is not None:
        moment = inputs["request_time"] if encoder.rotate_by == "time" else length
        rotation = ops.concatenate([rotation, moment[:, None] + ops.zeros_like(inputs["candidates"][:, :, 0], dtype="int32")], axis=1)
    # Real events are moved to the right end of the window, so that the visible keys are one interval.
    shift = (window - length)[:, None]
    index = ops.arange(window + count, dtype="int32")[None, :] + ops.zeros_like(shift)
    order = ops.where(index < window, (index - shift) % window, index)
    x = ops.take_along_axis(x, order[:, :, None], axis=1)
    rotation = None if rotation is None else ops.take_along_axis(rotation, order, axis=1)
    last = ops.zeros_like(index) + window + count
    spans = (ops.where(index < shift, last, shift), last, index + 1)
    mask = None
    if inputs.get("candidates_real") is not None:  # candidates see one another, but none that is not there
        mask = ops.concatenate([index[:, :window] >= 0, ops.cast(inputs["candidates_real"], "bool")], axis=1)
    for block in encoder.blocks:
        x = block(x, times=rotation, spans=spans, mask=mask, training=training)
    return candidate_output(encoder, x[:, window:], None)
