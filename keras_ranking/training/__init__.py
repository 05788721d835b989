"""Training jobs: from a log to a trained folder, and its figures; incremental training."""

from keras_ranking.training.after import fit_exploration, fit_random_effects
from keras_ranking.training.fisher import FisherSnapshot
from keras_ranking.training.incremental import IncrementalPenalty, fit_incremental
from keras_ranking.training.labels import LongDwell, contribution_labels, long_dwell_labels
from keras_ranking.training.run import TrainingOptions, evaluate, predict_events, train

__all__ = [
    "FisherSnapshot",
    "IncrementalPenalty",
    "LongDwell",
    "TrainingOptions",
    "contribution_labels",
    "evaluate",
    "fit_exploration",
    "fit_incremental",
    "fit_random_effects",
    "long_dwell_labels",
    "predict_events",
    "train",
]
