"""Rankers composed with the functional API."""

from keras_ranking.models.amortized import AmortizedDLRM
from keras_ranking.models.cadet import CADET
from keras_ranking.models.feedsr import FeedSR
from keras_ranking.models.ligr import LiGR
from keras_ranking.models.lirank import LiRank
from keras_ranking.models.ranking_model import RankingModel, load

__all__ = ["CADET", "AmortizedDLRM", "FeedSR", "LiGR", "LiRank", "RankingModel", "load"]
