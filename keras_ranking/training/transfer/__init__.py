"""A trained model on another surface: its trunk is kept, and heads for the tasks there are made."""

from keras_ranking.training.transfer.comparison import TransferReport, compare_transfer
from keras_ranking.training.transfer.freezing import freeze
from keras_ranking.training.transfer.options import Transfer
from keras_ranking.training.transfer.run import transfer

__all__ = ["Transfer", "TransferReport", "compare_transfer", "freeze", "transfer"]
