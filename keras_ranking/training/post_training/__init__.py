"""Fits of a trained model, on their own schedule: posteriors, random effects, base rates, the weights of network and forest."""

from keras_ranking.training.post_training.fits import fit_exploration, fit_random_effects, follow_base_rate
from keras_ranking.training.post_training.stack import fit_stack, forest_rows

__all__ = ["fit_exploration", "fit_random_effects", "fit_stack", "follow_base_rate", "forest_rows"]
