"""Attention over tokens and the blocks around it: gates, rotations, residual sums."""

from keras_ranking.layers.attention.append_keys import AppendKeys
from keras_ranking.layers.attention.decoder_block import DecoderBlock
from keras_ranking.layers.attention.gated_residual import GatedResidual
from keras_ranking.layers.attention.held_keys import HeldKeys
from keras_ranking.layers.attention.index_rotary import IndexRotaryEmbedding
from keras_ranking.layers.attention.latest_keys import LatestKeys
from keras_ranking.layers.attention.ligr_block import LiGRBlock
from keras_ranking.layers.attention.ligr_weights import load_ligr_weights
from keras_ranking.layers.attention.rescale_and_add import RescaleAndAdd
from keras_ranking.layers.attention.self_gated_attention import SelfGatedAttention
from keras_ranking.layers.attention.swiglu import SwiGLU
from keras_ranking.layers.attention.timestamp_rotary import TimestampRotaryEmbedding

__all__ = [
    "AppendKeys",
    "DecoderBlock",
    "GatedResidual",
    "HeldKeys",
    "IndexRotaryEmbedding",
    "LatestKeys",
    "LiGRBlock",
    "RescaleAndAdd",
    "SelfGatedAttention",
    "SwiGLU",
    "TimestampRotaryEmbedding",
    "load_ligr_weights",
]
