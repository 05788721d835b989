"""Codes of a column by a quantizer, of new items by the same one, and the column in a transfer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import fit_semantic_id
from keras_ranking.training.transfer.columns import grown_column


def content(items: int = 60, seed: int = 0) -> np.ndarray:
    """Items in four groups far from each other."""
    rng = np.random.default_rng(seed)
    return (10 * np.eye(4)[np.arange(items) % 4] + rng.normal(0, 0.1, (items, 4))).astype("float32")


def column(**settings: Any) -> kr.SemanticId:
    return kr.SemanticId("codes", **{"levels": 2, "codebook_size": 4, "column": "item_id", **settings})


def test_codes_of_items_and_of_new_ones() -> None:
    quantizer = kr.layers.ResidualQuantizer(levels=2, codebook_size=16, seed=1)
    vectors = content()
    made = fit_semantic_id(column(codebook_size=16), np.arange(60), vectors, quantizer, epochs=30, batch_size=32)
    codes = keras.ops.convert_to_numpy(quantizer.encode(vectors))
    np.testing.assert_array_equal(made.encode(np.arange(60)), 1 + codes)
    groups = [set(codes[group::4, 0].tolist()) for group in range(4)]
    assert sum(map(len, groups)) == len(set.union(*groups)) < 30, "a first code is that of items with alike content, several of them"
    new = content(seed=2)[:8]
    grown = fit_semantic_id(made, [f"n{i}" for i in range(8)], new, quantizer, epochs=0)
    np.testing.assert_array_equal(grown.encode([f"n{i}" for i in range(8)]), 1 + keras.ops.convert_to_numpy(quantizer.encode(new)))
    np.testing.assert_array_equal(grown.encode(np.arange(60)), made.encode(np.arange(60)))
    assert made.encode(["n0"]).tolist() == [[0, 0]], "control: the column before has no codes for it"


@pytest.mark.quickest
def test_plain_and_refused() -> None:
    made = fit_semantic_id(column(), np.arange(60), content(), epochs=2)
    assert made.fitted and made.encode([0]).min() >= 1 and made == fit_semantic_id(column(), np.arange(60), content(), epochs=2)
    small = kr.layers.ResidualQuantizer(levels=3, codebook_size=4)
    bad = content()
    bad[3, 1] = np.nan
    cases: list[tuple[dict[str, Any], str]] = [
        ({"vectors": content()[:5]}, r"`vectors` must be a vector for each item. Received: shape \(5, 4\), 60 items"),
        ({"vectors": bad}, r"`vectors` must be finite. Received: .* at row 3"),
        ({"quantizer": small}, "`quantizer` must have levels=2 and codebook_size=4, as the column. Received: levels=3"),
        ({"epochs": 0}, "`epochs=0` needs a `quantizer` that was trained before"),
        ({"items": [1] * 60}, "`items` must be distinct, non-empty texts. Received: 60 items, 1 distinct"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            fit_semantic_id(**{"column": column(), "items": np.arange(60), "vectors": content(), **given})
    with pytest.raises(TypeError, match="`column` must be SemanticId"):
        fit_semantic_id(kr.Id("item_id"), [1], content(1))  # type: ignore[arg-type]


@pytest.mark.quickest
def test_items_of_the_log_join_those_of_the_source() -> None:
    theirs = column().with_codes(["a", "b"], [[0, 1], [2, 3]])
    grown, fault = grown_column(theirs, column().with_codes(["b", "c"], [[2, 3], [1, 1]]))
    assert not fault and grown.items == ("a", "b", "c") and grown.encode(["c"]).tolist() == [[2, 2]]
    assert grown_column(theirs, column()) == (theirs, "")
    _, fault = grown_column(theirs, column().with_codes(["b"], [[0, 0]]))
    assert fault.startswith("has codes of another quantizer: `codes` must be those that the column has")
    _, fault = grown_column(theirs, column(levels=1))
    assert fault == "has levels=1 in the log and 2 in the source"
