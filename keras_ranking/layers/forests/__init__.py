"""Forests of decision trees as layers."""

from keras_ranking.layers.forests.forest import Forest
from keras_ranking.layers.forests.trees import Tree, Trees

__all__ = ["Forest", "Tree", "Trees"]
