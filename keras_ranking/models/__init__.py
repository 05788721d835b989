"""Rankers composed with the functional API, and the configuration classes that they are made from."""

from keras_ranking.models.amortized import AmortizedDLRM
from keras_ranking.models.cadet import CADET
from keras_ranking.models.combined import ensemble, with_forest
from keras_ranking.models.configuration import (
    Attention,
    Calibration,
    Choice,
    Features,
    GatedBlocks,
    History,
    HistoryBlocks,
    Interaction,
    Numbers,
    Past,
    PositionHead,
    Setwise,
    TaskHeads,
    Tokens,
    Towers,
    Trunk,
    Visibility,
)
from keras_ranking.models.feedsr import FeedSR
from keras_ranking.models.ligr import LiGR
from keras_ranking.models.lirank import LiRank
from keras_ranking.models.ranking_model import RankingModel, load
from keras_ranking.models.table_steps import TableModel
from keras_ranking.models.wiring import model_options

__all__ = [
    "CADET",
    "AmortizedDLRM",
    "Attention",
    "Calibration",
    "Choice",
    "Features",
    "FeedSR",
    "GatedBlocks",
    "History",
    "HistoryBlocks",
    "Interaction",
    "LiGR",
    "LiRank",
    "Numbers",
    "Past",
    "PositionHead",
    "RankingModel",
    "Setwise",
    "TableModel",
    "TaskHeads",
    "Tokens",
    "Towers",
    "Trunk",
    "Visibility",
    "ensemble",
    "load",
    "model_options",
    "with_forest",
]
