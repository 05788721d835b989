"""Models made of trained ones: several of one kind, and a network with a forest."""

from keras_ranking.models.combined.ensemble import ensemble
from keras_ranking.models.combined.with_forest import with_forest

__all__ = ["ensemble", "with_forest"]
