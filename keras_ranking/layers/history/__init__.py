"""Layers that encode the history of a member together with candidates."""

from keras_ranking.layers.history.history_encoder import HistoryEncoder
from keras_ranking.layers.history.history_step import HistoryStep

__all__ = ["HistoryEncoder", "HistoryStep"]
