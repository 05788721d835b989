"""What a candidate may know of the list it stands in."""

from keras_ranking.layers.lists.setwise_attention import SetwiseAttention

__all__ = ["SetwiseAttention"]
