"""Layers in which the candidates of one list depend on each other."""

from keras_ranking.layers.lists.setwise_attention import SetwiseAttention

__all__ = ["SetwiseAttention"]
