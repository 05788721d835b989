"""Embedding tables of ids: in int8, without a vocabulary, and of semantic ids."""

from keras_ranking.layers.embedding.quantized_embedding import QuantizedEmbedding, dequantize_rows, quantize_rows, quantized_tables
from keras_ranking.layers.embedding.quotient_remainder_embedding import QuotientRemainderEmbedding
from keras_ranking.layers.embedding.residual_quantizer import ResidualQuantizer
from keras_ranking.layers.embedding.semantic_id_embedding import SemanticIdEmbedding

__all__ = [
    "QuantizedEmbedding",
    "QuotientRemainderEmbedding",
    "ResidualQuantizer",
    "SemanticIdEmbedding",
    "dequantize_rows",
    "quantize_rows",
    "quantized_tables",
]
