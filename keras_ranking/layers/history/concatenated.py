"""The fusion `concat`: every event of a request concatenated with every candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_ranking.layers.history.shared_steps import history_summary, latest_events, rotated_by
from keras_ranking.ops import Spans

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keras_ranking.layers.history.history_encoder import HistoryEncoder


def prefill(encoder: HistoryEncoder, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The latest visible events, unchanged: nothing can be computed without a candidate."""
    history, _, times, _, length = latest_events(encoder, inputs)
    cache = {"history": history, "length": length}
    return cache if times is None else {**cache, "time": times}


def score(encoder: HistoryEncoder, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> Any:
    """One window of tokens for each candidate, encoded separately; see `HistoryEncoder.score`."""
    tokens, real, lengths, times = concatenated_tokens(cache, inputs["candidates"])
    shape = ops.shape(inputs["candidates"])
    rotation = rotated_by(encoder, times, tokens)
    x, spans = tokens, tuple(Spans.bidirectional(ops.cast(real, "int32")))
    for block in encoder.blocks:
        x = block(x, times=rotation, spans=spans, training=training)
    out = history_summary(encoder, encoder.norm(x), real, lengths)
    out = ops.reshape(out, (shape[0], shape[1], encoder._output_parts * encoder.width))
    return out if encoder.out is None else encoder.out(out)


def concatenated_tokens(cache: Mapping[str, Any], candidates: Any) -> tuple[Any, Any, Any, Any]:
    """Every candidate concatenated with every event of its request: a window of tokens for each candidate.

    Args:
        cache: `history` (B, W, E), zeros beyond `length` (B,); optionally `time` (B, W).
        candidates: (B, N, C).

    Returns:
        Tokens (B N, W, E + C), whether each is real (B N, W), the number of real ones (B N,), and times (B N, W) or None.
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
