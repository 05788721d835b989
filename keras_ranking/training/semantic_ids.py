"""Semantic ids of a schema, from vectors of the items."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_ranking.columns import SemanticId
from keras_ranking.layers import ResidualQuantizer
from keras_ranking.values import require_kind

_AT_ONCE = 65536


def fit_semantic_id(
    column: SemanticId,
    items: Any,
    vectors: Any,
    quantizer: ResidualQuantizer | None = None,
    epochs: int = 60,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> SemanticId:
    """The column with the codes of these items, by a `ResidualQuantizer` that learns them from vectors of the items' content.

    Pass items and vectors that are known at the time of training: a vector made of later labels leaks them. New items get codes by the
    same quantizer: `fit_semantic_id(column, items, vectors, quantizer, epochs=0)`; one that learns again has other codes. Items with
    equal vectors have equal codes; `column.shared` is the share of items with codes of another one.

    Args:
        column: a `SemanticId`; codes that it has stay.
        items: ids of the items, (n,), integers or texts, each once.
        vectors: (n, F), a vector of each.
        quantizer: with the levels and the codebook size of the column; it is trained in place. None: plain residual quantisation.
        epochs: passes over the items; 0: a quantizer that was trained before. Our choice: 60.
        batch_size: items of a step.
        learning_rate: of Adam, for the encoder and decoder of a quantizer that has them.
        seed: of the order of the items, and of the plain quantizer.

    Returns:
        A `SemanticId` with codes: put it into the schema.

    Raises:
        TypeError: a column of another kind.
        ValueError: no items, an item twice or missing, vectors of another form or not finite, a quantizer with other sizes or, with
            `epochs=0`, none or one that was not trained, or codes that differ from those that the column has.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
        >>> column = kr.SemanticId("item_codes", levels=2, codebook_size=16, column="item_id")
        >>> column = kr.training.fit_semantic_id(column, np.arange(200), vectors, epochs=5)
        >>> column.encode([3, 7, 999]).shape, column.encode([999]).tolist()
        ((3, 2), [[0, 0]])
    """
    require_kind(column, SemanticId, "column")
    content = np.asarray(vectors, dtype=np.float32)
    if content.ndim != 2 or not content.size or len(content) != len(items):
        raise ValueError(f"`vectors` must be a vector for each item. Received: shape {content.shape}, {len(items)} items")
    if not (finite := np.isfinite(content).all(axis=1)).all():
        raise ValueError(f"`vectors` must be finite. Received: {content[~finite][0].tolist()} at row {int((~finite).argmax())}")
    if epochs < 0 or batch_size < 1:
        raise ValueError(f"`epochs` must not be negative, and `batch_size` positive. Received: epochs={epochs}, batch_size={batch_size}")
    if epochs == 0 and (quantizer is None or not quantizer.built):
        raise ValueError("`epochs=0` needs a `quantizer` that was trained before. Received: none")
    if quantizer is None:
        quantizer = ResidualQuantizer(column.levels, column.codebook_size, seed=seed)
    if (quantizer.levels, quantizer.codebook_size) != (column.levels, column.codebook_size):
        received = f"levels={quantizer.levels}, codebook_size={quantizer.codebook_size}"
        raise ValueError(
            f"`quantizer` must have levels={column.levels} and codebook_size={column.codebook_size}, as the column. Received: {received}"
        )
    if epochs:
        column.without_codes().with_codes(items, np.zeros((len(content), column.levels), dtype=np.int32))  # errors of items before training
        inputs = keras.Input((content.shape[1],))
        model = keras.Model(inputs, quantizer(inputs))
        model.compile(optimizer=keras.optimizers.Adam(learning_rate))
        shuffled = content[np.random.default_rng(seed).permutation(len(content))]
        model.fit(shuffled, shuffled, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    parts = [keras.ops.convert_to_numpy(quantizer.encode(content[at : at + _AT_ONCE])) for at in range(0, len(content), _AT_ONCE)]
    return column.with_codes(items, np.concatenate(parts))
