"""FeatureConcat: concatenated embeddings and values, in schema order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.layers import FeatureConcat, QuantizedEmbedding, quantized_tables
from tests.layers.common import by_path, numpy, run_layer_checks

FEATURES = (kr.Number("age"), kr.Id("item_id", buckets=50), kr.Vector("text", size=3), kr.Category("topic", vocabulary=("a", "b")))


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "topic": rng.integers(0, 3, (2, 5)).astype("int32"),
        "age": rng.normal(size=(2, 5)).astype("float32"),
        "text": rng.normal(size=(2, 5, 3)).astype("float32"),
        "item_id": rng.integers(0, 50, (2, 5)).astype("int32"),
    }


def make(**settings: Any) -> FeatureConcat:
    return FeatureConcat(FEATURES, id_dim=4, **settings)


def test_common(tmp_path: Path) -> None:
    run_layer_checks(make, {"inputs": columns()}, tmp_path)


def test_reference() -> None:
    layer, x = make(), columns()
    out = numpy(layer(x))
    tables = {path.split("/")[0]: table for path, table in by_path(layer).items()}
    items, topics = tables["table_item_id"], tables["table_topic"]
    assert items.shape == (50, 4)
    assert topics.shape == (3, 4)
    want = np.concatenate([x["age"][..., None], items[x["item_id"]], x["text"], topics[x["topic"]]], axis=-1)
    assert layer.width == want.shape[-1] == 12
    np.testing.assert_allclose(out, want, rtol=1e-6)
    # Control: the order is that of the schema, not that of the dictionary.
    wrong = np.concatenate([topics[x["topic"]], x["age"][..., None], x["text"], items[x["item_id"]]], axis=-1)
    assert np.abs(out - wrong).max() > 0.1


def test_additional_columns_change_nothing() -> None:
    layer, x = make(), columns()
    out = numpy(layer(x))
    np.testing.assert_array_equal(numpy(layer({**x, "click": np.full((2, 5), np.nan, "float32")})), out)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_one_column_alone(feature: Any) -> None:
    layer = FeatureConcat([feature], id_dim=4)
    out = layer({feature.name: columns()[feature.name]})
    assert tuple(out.shape) == (2, 5, layer.width)


def test_features_as_dictionaries() -> None:
    layer = FeatureConcat([feature.model_dump() for feature in FEATURES], id_dim=4)
    assert layer.get_config()["features"] == make().get_config()["features"]


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`id_dim` must be a positive integer. Received: id_dim=0"):
        FeatureConcat(FEATURES, id_dim=0)
    with pytest.raises(ValueError, match="`features` must be at least one column, each once. Received: \\[\\]"):
        FeatureConcat([])
    with pytest.raises(ValueError, match="each once. Received: \\['age', 'age'\\]"):
        FeatureConcat([kr.Number("age"), kr.Number("age")])
    x = columns()
    x.pop("age")
    with pytest.raises(ValueError, match="Missing: \\['age'\\]"):
        make()(x)


def test_shared_and_vocabulary_free_tables() -> None:
    shared = [kr.Category("title", buckets=9, table="jobs"), kr.Category("wanted", buckets=9, table="jobs"), kr.Id("member", buckets=None)]
    layer = FeatureConcat(shared, id_dim=4)
    ids = {"title": np.array([[3]], "int32"), "wanted": np.array([[3]], "int32"), "member": shared[2].encode(["m:1"])[None]}
    out = numpy(layer(ids))[0, 0]
    assert list(layer.tables) == ["jobs", "member"] and out.shape == (12,)
    np.testing.assert_array_equal(out[:4], out[4:8])
    assert shared[2].shape == (2,) and shared[2].rows is None and shared[2].encode([None, "m:1"])[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="columns of one table must have the same number of rows. Received: 'b' in table 't'"):
        FeatureConcat([kr.Category("a", buckets=9, table="t"), kr.Category("b", buckets=8, table="t")])


def test_quantized_tables() -> None:
    with quantized_tables():
        layer = make()
    assert layer.quantized and all(isinstance(table, QuantizedEmbedding) for table in layer.tables.values())
    assert FeatureConcat.from_config(layer.get_config()).quantized and not make().quantized
