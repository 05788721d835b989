"""`id_dropout`: embeddings of ids are dropped in training alone, and nothing else of a token is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr

MODELS: dict[str, dict[str, Any]] = {
    "cadet": {"token_features": ("item_id", "topic"), "late_features": ("editor_score",), "dim": 8, "num_layers": 1, "num_heads": 2},
    "feedsr": {"token_features": ("item_id", "topic"), "late_features": ("editor_score",), "dim": 8, "num_layers": 1, "num_heads": 2},
    "lirank": {"hidden": (8,), "cross_layers": 1, "rank": 2, "history_features": (), "batch_norm": False},
    "amortized": {"hidden": (8,), "cross_layers": 1, "rank": 2, "dim": 8, "num_layers": 1, "max_history": 4, "batch_norm": False},
    "ligr": {"dim": 8, "num_layers": 1, "num_heads": 2, "setwise_layers": 0, "max_history": 4, "batch_norm": False},
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=12, days=3, seed=1)


def test_embeddings_are_dropped_in_training_and_scaled() -> None:
    layer = kr.layers.FeatureConcat([kr.Id("item_id", buckets=50), kr.Number("age")], id_dim=4, id_dropout=0.25)
    x = {"item_id": np.arange(4000, dtype="int32").reshape(1, -1) % 50, "age": np.full((1, 4000), 2.0, "float32")}
    still = keras.ops.convert_to_numpy(layer(x))
    drawn = keras.ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_array_equal(drawn[..., 4], 2.0)  # a number stays
    kept = drawn[..., :4] != 0
    assert 0.72 < kept.mean() < 0.78
    np.testing.assert_allclose(drawn[..., :4][kept], still[..., :4][kept] / 0.75, rtol=1e-5)
    again = kr.layers.FeatureConcat.from_config(layer.get_config())
    assert again.id_dropout == 0.25 and "id_dropout" not in kr.layers.FeatureConcat([kr.Number("age")]).get_config()
    event = kr.layers.EventEmbedding([kr.Id("item_id", buckets=50)], dim=4, id_dropout=0.5)
    assert kr.layers.EventEmbedding.from_config(event.get_config()).concat.id_dropout == 0.5
    assert np.abs(keras.ops.convert_to_numpy(event(x, training=True)) - keras.ops.convert_to_numpy(event(x))).max() > 1e-3


@pytest.mark.quickest
@pytest.mark.parametrize("kind", list(MODELS))
def test_models_drop_them_in_training_alone(kind: str, log: Any, tmp_path: Any) -> None:
    builder = kr.training.options.MODELS[kind]
    schema = log.schema.fit(log.events)
    models = []
    for rate in (0.0, 0.5):
        keras.utils.set_random_seed(0)
        models.append(builder(schema, id_dropout=rate, **MODELS[kind]))
    plain, dropped = models
    assert "id_dropout" not in plain.arguments and dropped.arguments["id_dropout"] == 0.5
    dropped.set_weights(plain.get_weights())
    sequences = kr.data.build_sequences(log.events, schema)
    options = kr.training.TrainingOptions(row_length=64, batch_size=4)
    batch = kr.training.setup.training_data(plain, sequences, options)[0][0][0]

    def scores(model: Any, training: bool) -> Any:
        return {name: keras.ops.convert_to_numpy(x) for name, x in model(batch, training=training).items()}

    for name, wanted in scores(plain, False).items():
        np.testing.assert_array_equal(scores(dropped, False)[name], wanted)
        np.testing.assert_array_equal(scores(plain, True)[name], wanted)  # there is no other dropout
        assert np.abs(scores(dropped, True)[name] - wanted).max() > 1e-4
    dropped.save(tmp_path / "model.keras")
    assert kr.models.load(tmp_path).arguments["id_dropout"] == 0.5


@pytest.mark.quickest
@pytest.mark.parametrize("kind", ["cadet", "lirank"])
def test_a_rate_out_of_range_is_an_error(kind: str, log: Any) -> None:
    with pytest.raises(ValueError, match="`id_dropout` must be from 0 to below 1. Received: id_dropout=1.0"):
        kr.training.options.MODELS[kind](log.schema.fit(log.events), id_dropout=1.0, **MODELS[kind])
