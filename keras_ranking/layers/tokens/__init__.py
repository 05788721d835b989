"""From events, items, actions and times to tokens."""

from keras_ranking.layers.tokens.action_embedding import ActionEmbedding
from keras_ranking.layers.tokens.alone_spans import AloneSpans
from keras_ranking.layers.tokens.event_embedding import EventEmbedding
from keras_ranking.layers.tokens.event_spans import EventSpans
from keras_ranking.layers.tokens.feature_concat import FeatureConcat
from keras_ranking.layers.tokens.fuse_actions import FuseActions
from keras_ranking.layers.tokens.interleave import Interleave, ItemTokens
from keras_ranking.layers.tokens.later_spans import LaterSpans
from keras_ranking.layers.tokens.lengths import KeepFirst, OneSet, Segments
from keras_ranking.layers.tokens.request_values import AtCandidates, AtSlots
from keras_ranking.layers.tokens.rows import FlattenRows, SlotOwners, UnflattenRows
from keras_ranking.layers.tokens.token_spans import TokenSpans
from keras_ranking.layers.tokens.token_times import RequestTimes, TokenTimes
from keras_ranking.layers.tokens.visible_length import VisibleLength

__all__ = [
    "ActionEmbedding",
    "AloneSpans",
    "AtCandidates",
    "AtSlots",
    "EventEmbedding",
    "EventSpans",
    "FeatureConcat",
    "FlattenRows",
    "FuseActions",
    "Interleave",
    "ItemTokens",
    "KeepFirst",
    "LaterSpans",
    "OneSet",
    "RequestTimes",
    "Segments",
    "SlotOwners",
    "TokenSpans",
    "TokenTimes",
    "UnflattenRows",
    "VisibleLength",
]
