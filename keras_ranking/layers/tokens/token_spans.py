"""From spans of events to spans of their tokens, in one of three layouts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask, WholeInputs
from keras_ranking.ops import Spans

LAYOUTS = ("interleaved", "fused", "value")


@keras.saving.register_keras_serializable(package="keras_ranking")
class TokenSpans(WholeInputs, RefusesMask, keras.layers.Layer):
    """From spans of T events to spans of their tokens.

    | `layout`        | tokens of a row                              | what sees what                                                   |
    |-----------------|----------------------------------------------|------------------------------------------------------------------|
    | `'interleaved'` | item 1, action 1, item 2, action 2, ... (2T) | later events see both; an action sees its item; each sees itself |
    | `'fused'`       | event 1 .. event T, query 1 .. query T (2T)  | later events and queries see an event; each sees itself          |
    | `'value'`       | event 1 .. event T                           | as in the spans of events                                        |

    Args:
        layout: see the table.

    Call arguments:
        inputs: tuple of start, end and own, each int32 (B, T); for the first two layouts the own interval must be the event itself.
        first: int32 (B,), for 'interleaved': the place of the first event in its row, where the others are in a cache. None: 0.

    Output:
        `Spans` of (B, 2T) or (B, T).

    Raises:
        ValueError: an unknown layout, `first` with 'fused'.

    Example:
        >>> spans = kr.layers.EventSpans("causal")(np.array([[0, 5]], "int32"), segments=np.ones((1, 2), "int32"))
        >>> keras.ops.convert_to_numpy(kr.layers.TokenSpans("fused")(tuple(spans)).dense(4))[0].astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [0, 0, 1, 0],
               [1, 0, 0, 1]])
    """

    whole = ("first",)

    def __init__(self, layout: str, **settings: Any) -> None:
        super().__init__(**settings)
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}")
        self.layout = layout

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, first: Any = None) -> Any:
        spans = Spans(*inputs)
        if self.layout == "interleaved":
            return spans.interleave(first)
        if self.layout == "value":
            return spans
        if first is not None:
            raise ValueError("`first` is for the layout 'interleaved'. Received: layout='fused'")
        count = ops.shape(spans.start)[1]
        # An event that sees nothing, not even itself, is padding, and so is its query.
        nothing = ops.logical_and(spans.end <= spans.start, spans.own > ops.arange(count, dtype="int32")[None, :])
        own = count + ops.arange(count, dtype="int32")[None, :] + ops.zeros_like(spans.own)
        start, end = (ops.where(nothing, own, part) for part in (spans.start, spans.end))
        query = (start, end, ops.where(nothing, own + 1, own))
        return Spans(*(ops.concatenate(pair, axis=1) for pair in zip(spans, query, strict=True)))

    def compute_output_spec(self, inputs: Any, first: Any = None) -> Any:
        batch, count = inputs[0].shape
        tokens = count if self.layout == "value" or count is None else 2 * count
        return Spans(*(keras.KerasTensor((batch, tokens), dtype="int32") for _ in Spans._fields))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layout": self.layout}
