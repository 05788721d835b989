"""What layers share: which inputs are whole numbers, what becomes of a Keras mask, how weights start and are regularised."""

from keras_ranking.layers.base.masks import PassesMask, ReadsKeyMask, ReadsMask, RefusesMask, mask_of_all
from keras_ranking.layers.base.weight_rules import KERNELS, TABLES, WeightRules
from keras_ranking.layers.base.whole_inputs import WholeInputs

__all__ = [
    "KERNELS",
    "TABLES",
    "PassesMask",
    "ReadsKeyMask",
    "ReadsMask",
    "RefusesMask",
    "WeightRules",
    "WholeInputs",
    "mask_of_all",
]
