"""Reusable Keras layers, one class a file."""

from keras_ranking.layers.action_embedding import ActionEmbedding
from keras_ranking.layers.attention_low_rank_cross import AttentionLowRankCross
from keras_ranking.layers.bayesian_linear import BayesianLinear
from keras_ranking.layers.dcn import ParallelDCN, ResidualDCN, StackedDCN
from keras_ranking.layers.decoder_block import DecoderBlock
from keras_ranking.layers.dense_gate import DenseGate
from keras_ranking.layers.event_embedding import EventEmbedding
from keras_ranking.layers.event_spans import EventSpans, TokenSpans, VisibleLength
from keras_ranking.layers.feature_concat import FeatureConcat
from keras_ranking.layers.fuse_actions import FuseActions
from keras_ranking.layers.gated_mlp import GatedMLP
from keras_ranking.layers.gated_residual import GatedResidual
from keras_ranking.layers.history_encoder import HistoryEncoder
from keras_ranking.layers.history_step import HistoryStep
from keras_ranking.layers.index_rotary import IndexRotaryEmbedding
from keras_ranking.layers.interleave import Interleave, ItemTokens
from keras_ranking.layers.isotonic_calibration import IsotonicCalibration
from keras_ranking.layers.latest_keys import LatestKeys
from keras_ranking.layers.ligr_block import LiGRBlock, SwiGLU
from keras_ranking.layers.low_rank_cross import LowRankCross
from keras_ranking.layers.masked_batch_normalization import MaskedBatchNormalization
from keras_ranking.layers.mlp_bank import MLPBank
from keras_ranking.layers.mmoe import MMoE, SparseMMoE
from keras_ranking.layers.multi_task import GroupedTasks, SharedBottom
from keras_ranking.layers.multi_task_head import MultiTaskHead
from keras_ranking.layers.ple import PLE
from keras_ranking.layers.position_offset import PositionOffset
from keras_ranking.layers.position_towers import PositionTowers
from keras_ranking.layers.quantized_embedding import QuantizedEmbedding, dequantize_rows, quantize_rows, quantized_tables
from keras_ranking.layers.quotient_remainder_embedding import QuotientRemainderEmbedding
from keras_ranking.layers.random_effect import RandomEffect, RandomEffectFit, fit_random_effect
from keras_ranking.layers.ranking_head import RankingHead
from keras_ranking.layers.rescale_and_add import RescaleAndAdd
from keras_ranking.layers.residual_quantizer import ResidualQuantizer
from keras_ranking.layers.self_gated_attention import SelfGatedAttention
from keras_ranking.layers.semantic_id_embedding import SemanticIdEmbedding
from keras_ranking.layers.setwise_attention import SetwiseAttention
from keras_ranking.layers.streams import (
    AloneSpans,
    FlattenRows,
    KeepFirst,
    OneSet,
    RequestTimes,
    Segments,
    SlotOwners,
    TokenTimes,
    UnflattenRows,
)
from keras_ranking.layers.timestamp_rotary import TimestampRotaryEmbedding
from keras_ranking.layers.tower_calibration import TowerCalibration

__all__ = [
    "PLE",
    "ActionEmbedding",
    "AloneSpans",
    "AttentionLowRankCross",
    "BayesianLinear",
    "DecoderBlock",
    "DenseGate",
    "EventEmbedding",
    "EventSpans",
    "FeatureConcat",
    "FlattenRows",
    "FuseActions",
    "GatedMLP",
    "GatedResidual",
    "GroupedTasks",
    "HistoryEncoder",
    "HistoryStep",
    "IndexRotaryEmbedding",
    "Interleave",
    "IsotonicCalibration",
    "ItemTokens",
    "KeepFirst",
    "LatestKeys",
    "LiGRBlock",
    "LowRankCross",
    "MLPBank",
    "MMoE",
    "MaskedBatchNormalization",
    "MultiTaskHead",
    "OneSet",
    "ParallelDCN",
    "PositionOffset",
    "PositionTowers",
    "QuantizedEmbedding",
    "QuotientRemainderEmbedding",
    "RandomEffect",
    "RandomEffectFit",
    "RankingHead",
    "RequestTimes",
    "RescaleAndAdd",
    "ResidualDCN",
    "ResidualQuantizer",
    "Segments",
    "SelfGatedAttention",
    "SemanticIdEmbedding",
    "SetwiseAttention",
    "SharedBottom",
    "SlotOwners",
    "SparseMMoE",
    "StackedDCN",
    "SwiGLU",
    "TimestampRotaryEmbedding",
    "TokenSpans",
    "TokenTimes",
    "TowerCalibration",
    "UnflattenRows",
    "VisibleLength",
    "dequantize_rows",
    "fit_random_effect",
    "quantize_rows",
    "quantized_tables",
]
