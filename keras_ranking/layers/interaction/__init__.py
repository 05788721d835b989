"""Products of features: cross nets, gated MLPs, normalisation."""

from keras_ranking.layers.interaction.attention_low_rank_cross import AttentionLowRankCross
from keras_ranking.layers.interaction.dcn import ParallelDCN, StackedDCN
from keras_ranking.layers.interaction.dense_gate import DenseGate
from keras_ranking.layers.interaction.gated_mlp import GatedMLP
from keras_ranking.layers.interaction.low_rank_cross import LowRankCross
from keras_ranking.layers.interaction.masked_batch_normalization import MaskedBatchNormalization
from keras_ranking.layers.interaction.residual_dcn import ResidualDCN

__all__ = [
    "AttentionLowRankCross",
    "DenseGate",
    "GatedMLP",
    "LowRankCross",
    "MaskedBatchNormalization",
    "ParallelDCN",
    "ResidualDCN",
    "StackedDCN",
]
