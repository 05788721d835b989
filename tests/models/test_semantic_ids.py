"""Semantic ids in the models: vectors of codes, rows and requests, training, int8, files."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, pack
from keras_ranking.layers import FeatureConcat
from tests.layers.common import by_path, numpy, randomise

SIZES: dict[str, dict[str, Any]] = {
    "LiRank": {"hidden": (8,), "cross": "none", "max_history": 6, "history_options": {"num_layers": 1}, "action_dim": 4},
    "AmortizedDLRM": {"hidden": (8,), "cross": "none", "dim": 8, "num_layers": 1, "max_history": 6, "action_dim": 4},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "max_history": 6, "action_dim": 4},
    "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,)},
    "FeedSR": {"dim": 8, "num_layers": 1, "num_heads": 2, "head_options": {"hidden": (4,)}},
}


@pytest.mark.parametrize("prefixes", [False, True])
def test_vectors_of_codes(prefixes: bool) -> None:
    column = kr.SemanticId("codes", levels=2, codebook_size=3, prefixes=prefixes, table="shared").with_codes(["a", "b"], [[2, 1], [2, 0]])
    other = kr.SemanticId("last", levels=2, codebook_size=3, prefixes=prefixes, table="shared")
    layer = FeatureConcat([column, other, kr.Number("age")], id_dim=4)
    assert layer.features[0].items is None, "the layer and its files need no items"
    codes = column.encode(["a", "b", "unknown", None]).reshape(2, 2, 2)
    x = {"codes": codes, "last": codes[::-1].copy(), "age": np.ones((2, 2), "float32")}
    layer.build({name: value.shape for name, value in x.items()})
    randomise(layer)
    w = by_path(layer)
    first, second = w["table_shared/level_0/embeddings"], w["table_shared/level_1/embeddings"]
    assert first.shape == (4, 4) and second.shape == (16 if prefixes else 4, 4)
    place = 4 * codes[..., 0] + codes[..., 1] if prefixes else codes[..., 1]
    want = first[codes[..., 0]] + second[place]
    got = numpy(layer(x))
    np.testing.assert_allclose(got, np.concatenate([want, want[::-1], np.ones((2, 2, 1))], axis=-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1, 0, :4], (first[0] + second[0]), rtol=1e-5, atol=1e-6, err_msg="unknown items have a row")
    assert np.abs(got[0, 0, :4] - got[0, 1, :4]).max() > 1e-2, "control: codes that differ at the last level"
    again = FeatureConcat.from_config(layer.get_config())
    assert again.width == layer.width == 9
    with pytest.raises(ValueError, match="columns of one table must have the same number of rows. Received: 'item' in table 'shared'"):
        FeatureConcat([column, kr.Id("item", buckets=4, table="shared")])


@pytest.fixture(scope="module")
def log() -> Any:
    log = kr.data.simulate(members=8, days=4, seed=1, feedback_delay=60)
    items = log.events["item_id"].unique()
    rng = np.random.default_rng(0)
    made = [
        kr.SemanticId(name, levels=2, codebook_size=6, prefixes=prefixes, column="item_id").with_codes(
            items[: len(items) * 3 // 4], rng.integers(0, 6, (len(items) * 3 // 4, 2))
        )
        for name, prefixes in (("codes", False), ("prefixed", True))
    ]
    schema = log.schema.model_copy(update={"features": (*log.schema.features, *made)})
    return kr.data.Log(log.events, schema.fit(log.events), "coded")


def make(log: Any, builder: str, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, builder)(log.schema, tasks=("click",), id_dim=4, **{**SIZES[builder], **settings})
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def offline(model: Any, sequences: Any) -> np.ndarray:
    given = pack(sequences, 512) if model.form == "rows" else kr.training.model_requests(model, sequences)
    found = kr.training.predict_events(model, given)["click"]
    return found[:, model.serving_tower] if found.ndim > 1 and found.shape[1] > 1 else found.reshape(-1)


def served(model: Any, sequences: Any) -> np.ndarray:
    return np.asarray(kr.training.predict_served(model, sequences, whole_session=False)["click"])


@pytest.mark.quickest
@pytest.mark.parametrize("builder", SIZES)
def test_rows_requests_and_training(log: Any, builder: str) -> None:
    model = make(log, builder)
    sequences = build_sequences(log.events, log.schema)
    scores = offline(model, sequences)
    np.testing.assert_allclose(served(model, sequences), scores, rtol=0, atol=2e-6)
    columns = dict(sequences.columns)
    for name in ("codes", "prefixed"):
        sequences.columns[name] = np.zeros_like(columns[name])
        assert np.abs(offline(model, sequences) - scores).max() > 1e-4, f"control: {name}"
        sequences.columns[name] = columns[name]
    options = kr.training.TrainingOptions(row_length=64, batch_size=4)
    batch = kr.training.setup.training_data(model, sequences, options)[0][0]
    tables = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.trainable_variables if "table_" in weight.path}
    model.compile(kr.training.TableOptimizer("adam"), loss=model.losses_by_task())
    assert np.isfinite(model.train_on_batch(*batch))
    moved = [path for weight in model.trainable_variables if (path := weight.path) in tables and (weight != tables[path]).any()]
    for table in ("table_codes/level_0", "table_codes/level_1", "table_prefixed/level_1"):
        assert any(table in path for path in moved), table


@pytest.mark.quickest
def test_saved_in_int8(log: Any, tmp_path: Any) -> None:
    model = make(log, "LiRank")
    sequences = build_sequences(log.events, model.schema)
    first = served(model, sequences)
    small = kr.serving.quantize_embeddings(model)
    assert sum("QuantizedEmbedding" in type(layer).__name__ for layer in small._flatten_layers()) >= 4
    assert 0 < np.abs(served(small, sequences) - first).max() < 2e-2
    small.save(tmp_path / "small.keras")
    again = kr.models.load(tmp_path / "small.keras")
    assert again.schema == model.schema and again.schema.digest == model.schema.digest
    np.testing.assert_array_equal(served(again, sequences), served(small, sequences))


@pytest.mark.quickest
def test_where_codes_cannot_be(log: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`past_matches` must name columns of one id with `buckets`, or categories. Received: \['codes'\]"
    ):
        make(log, "CADET", past_matches=("codes",))
    with pytest.raises(ValueError, match="to columns of one id with buckets, or categories. Received: 'click': 'codes'"):
        make(log, "LiRank", random_effects={"click": "codes"})
