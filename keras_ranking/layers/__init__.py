"""Reusable Keras layers, one class a file."""

from keras_ranking.layers.action_embedding import ActionEmbedding
from keras_ranking.layers.decoder_block import DecoderBlock
from keras_ranking.layers.event_embedding import EventEmbedding
from keras_ranking.layers.feature_concat import FeatureConcat
from keras_ranking.layers.interleave import Interleave, ItemTokens
from keras_ranking.layers.position_towers import PositionTowers
from keras_ranking.layers.self_gated_attention import SelfGatedAttention
from keras_ranking.layers.streams import DelayedSpans, KeepFirst, RequestTimes, Segments, TokenTimes, VisibleLength
from keras_ranking.layers.timestamp_rotary import TimestampRotaryEmbedding

__all__ = [
    "ActionEmbedding",
    "DecoderBlock",
    "DelayedSpans",
    "EventEmbedding",
    "FeatureConcat",
    "Interleave",
    "ItemTokens",
    "KeepFirst",
    "PositionTowers",
    "RequestTimes",
    "Segments",
    "SelfGatedAttention",
    "TimestampRotaryEmbedding",
    "TokenTimes",
    "VisibleLength",
]
