"""Ranking losses that Keras does not have: the observed tower, pairs, lists and choices within a request, and their packed targets."""

from keras_ranking.losses.in_request_choice import InRequestChoice
from keras_ranking.losses.in_request_pairwise import InRequestPairwise
from keras_ranking.losses.in_request_softmax import InRequestSoftmax
from keras_ranking.losses.observed_tower_loss import ObservedTowerLoss
from keras_ranking.losses.observed_value_loss import ObservedValueLoss
from keras_ranking.losses.packed import largest_request, observed_tower, position_bucket, targets
from keras_ranking.losses.pair_counts import PairCounts

__all__ = [
    "InRequestChoice",
    "InRequestPairwise",
    "InRequestSoftmax",
    "ObservedTowerLoss",
    "ObservedValueLoss",
    "PairCounts",
    "largest_request",
    "observed_tower",
    "position_bucket",
    "targets",
]
