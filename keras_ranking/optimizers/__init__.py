"""Optimisers: embedding tables by rows, and AdamW with one evaluation of its schedule per step."""

from keras_ranking.optimizers.adamw import AdamW
from keras_ranking.optimizers.table_optimizer import TableOptimizer

__all__ = ["AdamW", "TableOptimizer"]
