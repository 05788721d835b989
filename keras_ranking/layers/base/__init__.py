"""What layers share: which inputs are whole numbers, and what becomes of a Keras mask."""

from keras_ranking.layers.base.masks import PassesMask, RefusesMask
from keras_ranking.layers.base.whole_inputs import WholeInputs

__all__ = ["PassesMask", "RefusesMask", "WholeInputs"]
