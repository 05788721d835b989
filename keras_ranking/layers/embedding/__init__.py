"""Embedding tables of ids: updated by rows, in int8, without a vocabulary, of semantic ids and of a tree; and vectors of numbers."""

from keras_ranking.layers.embedding.label_tree_embedding import LabelTreeEmbedding
from keras_ranking.layers.embedding.numeric_embedding import NumericEmbedding
from keras_ranking.layers.embedding.quantized_embedding import QuantizedEmbedding, dequantize_rows, quantize_rows, quantized_tables
from keras_ranking.layers.embedding.quotient_remainder_embedding import QuotientRemainderEmbedding
from keras_ranking.layers.embedding.residual_quantizer import ResidualQuantizer
from keras_ranking.layers.embedding.semantic_id_embedding import SemanticIdEmbedding
from keras_ranking.layers.embedding.table_embedding import TableEmbedding

__all__ = [
    "LabelTreeEmbedding",
    "NumericEmbedding",
    "QuantizedEmbedding",
    "QuotientRemainderEmbedding",
    "ResidualQuantizer",
    "SemanticIdEmbedding",
    "TableEmbedding",
    "dequantize_rows",
    "quantize_rows",
    "quantized_tables",
]
