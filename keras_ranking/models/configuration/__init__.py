"""What a model is built from, in small frozen classes that check themselves."""

from keras_ranking.models.configuration.choice import Choice
from keras_ranking.models.configuration.heads import Calibration, PositionHead, TaskHeads, Towers
from keras_ranking.models.configuration.histories import GatedBlocks, History, HistoryBlocks
from keras_ranking.models.configuration.numbers import Numbers
from keras_ranking.models.configuration.past import Past
from keras_ranking.models.configuration.requests import Features, Interaction, Setwise
from keras_ranking.models.configuration.sequence import Attention, Tokens, Trunk, Visibility

__all__ = [
    "Attention",
    "Calibration",
    "Choice",
    "Features",
    "GatedBlocks",
    "History",
    "HistoryBlocks",
    "Interaction",
    "Numbers",
    "Past",
    "PositionHead",
    "Setwise",
    "TaskHeads",
    "Tokens",
    "Towers",
    "Trunk",
    "Visibility",
]
