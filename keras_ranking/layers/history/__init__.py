"""Layers in which candidates read the history of a member."""

from keras_ranking.layers.history.append_events import AppendEvents
from keras_ranking.layers.history.history_attention import HistoryAttention
from keras_ranking.layers.history.history_encoder import HistoryEncoder
from keras_ranking.layers.history.history_step import HistoryStep
from keras_ranking.layers.history.join_histories import JoinHistories
from keras_ranking.layers.history.linear_history import LinearHistory
from keras_ranking.layers.history.matching_history import MatchingHistory

__all__ = [
    "AppendEvents",
    "HistoryAttention",
    "HistoryEncoder",
    "HistoryStep",
    "JoinHistories",
    "LinearHistory",
    "MatchingHistory",
]
