"""Layers in which the items of one list see each other."""

from keras_ranking.layers.lists.choice_probability import ChoiceProbability
from keras_ranking.layers.lists.list_context import ListContext, ListPooling
from keras_ranking.layers.lists.setwise_attention import SetwiseAttention

__all__ = ["ChoiceProbability", "ListContext", "ListPooling", "SetwiseAttention"]
