"""LabelTreeEmbedding: an item as the embeddings of the nodes on its path in a tree."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import TABLES, PassesMask, WeightRules, WholeInputs
from keras_ranking.layers.embedding.table_embedding import Embedding
from keras_ranking.ops.integers import at_least

_BITS = 31
_COMBINE = ("sum", "concat")


@keras.saving.register_keras_serializable(package="keras_ranking")
class LabelTreeEmbedding(WholeInputs, PassesMask, WeightRules, keras.layers.Layer):
    """Embeds the path of an item in a `kr.data.LabelTree`, instead of a table with a row per item: items that share nodes share rows.

        e = sum_l E[ node_l ],   node_l = node >> (level(node) - l)   for l = 1 to min(depth, level(node))
        e = [E[ node_1 ], ..., E[ node_depth ]]                       combine="concat", zeros below the last node

    level(node) = floor(log2 node). A rare item reads what was learned from the items of its nodes. Source: trees of labels (Bengio, Weston
    and Grangier, NIPS 2010), here as features; our form.

    Args:
        depth: levels below the root that are embedded; deeper nodes count as their ancestors. 2^(depth+1) rows.
        dim: width of an embedding.
        combine: 'sum' or 'concat'.

        embeddings_initializer, embeddings_regularizer, embeddings_constraint: of the table, as in `keras.layers.Embedding`. There is no
            `mask_zero`: 0 is no node.

    Call arguments:
        inputs: int32 (...), nodes of `LabelTree.nodes`; those below 2, which are no node or the root, give zeros.

    Output:
        (..., dim), with 'concat' (..., depth * dim).

    Raises:
        ValueError: a depth outside 1 to 29, a width below 1, or another way to combine.

    Example:
        >>> tree = kr.data.LabelTree.fit(np.kron(np.eye(2), np.ones((2, 2))), ["tea", "coffee", "nail", "screw"], depth=2)
        >>> kr.layers.LabelTreeEmbedding(depth=2, dim=4)(tree.nodes(["tea", "nail", "unknown"])).shape
        (3, 4)
    """

    whole = ("inputs",)
    weight_rules = TABLES

    def __init__(self, depth: int, dim: int, combine: str = "sum", **settings: Any) -> None:
        super().__init__(**settings)
        if not 1 <= depth <= _BITS - 2 or dim < 1:
            raise ValueError(f"`depth` must be from 1 to {_BITS - 2}, `dim` a positive integer. Received: depth={depth}, dim={dim}")
        if combine not in _COMBINE:
            raise ValueError(f"`combine` must be one of {_COMBINE}. Received: combine={combine!r}")
        self.depth, self.dim, self.combine = int(depth), int(dim), combine

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.table = Embedding(2 ** (self.depth + 1), self.dim, dtype=self.dtype_policy, name="nodes", **self.rules(None, TABLES))
        self.table.build((None,))
        self.built = True

    def call(self, inputs: Any) -> Any:
        nodes = at_least(inputs, 0)
        level = sum(ops.cast(nodes >= 2**bit, "int32") for bit in range(1, _BITS))
        parts = []
        for at in range(1, self.depth + 1):
            there = level >= at
            node = ops.where(there, ops.right_shift(nodes, at_least(level - at, 0)), ops.zeros_like(nodes))
            found = self.table(node)
            parts.append(ops.where(there[..., None], found, ops.zeros_like(found)))
        return sum(parts[1:], parts[0]) if self.combine == "sum" else ops.concatenate(parts, axis=-1)

    def compute_output_spec(self, inputs: Any) -> Any:
        width = self.dim if self.combine == "sum" else self.depth * self.dim
        return keras.KerasTensor((*inputs.shape, width), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "depth": self.depth, "dim": self.dim, "combine": self.combine}
