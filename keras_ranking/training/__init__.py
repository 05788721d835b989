"""Training jobs: from a log to a trained folder, and its figures."""

from keras_ranking.training.run import TrainingOptions, evaluate, predict_events, train

__all__ = ["TrainingOptions", "evaluate", "predict_events", "train"]
