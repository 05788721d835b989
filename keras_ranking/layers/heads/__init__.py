"""From a state to the score of a task: towers and offsets by position, calibration, base rates, random effects, posteriors of weights."""

from keras_ranking.layers.heads.base_rate import BaseRate, fit_base_rate
from keras_ranking.layers.heads.bayesian_linear import BayesianLinear
from keras_ranking.layers.heads.isotonic_calibration import IsotonicCalibration
from keras_ranking.layers.heads.mean_probability import MeanProbability
from keras_ranking.layers.heads.position_offset import PositionOffset
from keras_ranking.layers.heads.position_towers import PositionTowers
from keras_ranking.layers.heads.random_effect import RandomEffect, RandomEffectFit, fit_random_effect
from keras_ranking.layers.heads.ranking_head import RankingHead
from keras_ranking.layers.heads.stacked_logits import StackedLogits, fit_stack
from keras_ranking.layers.heads.tower_calibration import TowerCalibration

__all__ = [
    "BaseRate",
    "BayesianLinear",
    "IsotonicCalibration",
    "MeanProbability",
    "PositionOffset",
    "PositionTowers",
    "RandomEffect",
    "RandomEffectFit",
    "RankingHead",
    "StackedLogits",
    "TowerCalibration",
    "fit_base_rate",
    "fit_random_effect",
    "fit_stack",
]
