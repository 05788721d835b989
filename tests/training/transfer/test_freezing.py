"""`freeze`: what is frozen keeps its weights and moving statistics to the bit, in any Keras model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import freeze

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X[:, :1] > 0).astype("float32")


def own_model() -> keras.Model:
    """A trunk with a batch normalisation, a model inside, and a head."""
    inner_in = keras.Input((8,))
    inner = keras.Model(inner_in, keras.layers.Dense(5, name="deep")(keras.layers.LayerNormalization(name="ln")(inner_in)), name="inner")
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(8, activation="relu", name="body")(inputs))
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(keras.layers.Dropout(0.2)(inner(x))))


def trained(model: keras.Model) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Weights before and after two epochs, by layer."""
    before = {layer.name: [np.array(weight) for weight in layer.get_weights()] for layer in model.layers}
    model.compile(keras.optimizers.AdamW(0.05, weight_decay=0.1), "binary_crossentropy")
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    return {layer.name: list(zip(before[layer.name], layer.get_weights(), strict=True)) for layer in model.layers if layer.weights}


def same(pairs: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    return all(np.array_equal(old, new) for old, new in pairs)


def test_frozen_weights_and_statistics_keep_their_bits() -> None:
    model = own_model()
    assert freeze(model, ["body", "norm", "inner"]) == ["body", "norm", "inner"]
    found = trained(model)
    assert same(found["body"]) and same(found["norm"]) and same(found["inner"])
    assert not same(found["head"])
    # Control: without it the weights move, and so do the moving statistics.
    found = trained(own_model())
    assert not any(same([pair]) for pair in found["norm"]) and not same(found["body"]) and not same(found["inner"])


def test_a_layer_inside_another_one_is_frozen_alone() -> None:
    model = own_model()
    assert freeze(model, "inner/ln") == ["inner/ln"]
    found = trained(model)
    moved = [not np.array_equal(old, new) for old, new in found["inner"]]
    kept = [id(weight) for weight in model.get_layer("inner").get_layer("ln").weights]
    assert [id(weight) not in kept for weight in model.get_layer("inner").weights] == moved
    model = own_model()
    assert freeze(model, model.get_layer("body")) == ["body"] and model.get_layer("norm").trainable


@pytest.mark.quickest
def test_a_model_is_compiled_again() -> None:
    model = own_model()
    model.compile("adam", "mse")
    freeze(model, "body")
    with pytest.raises(ValueError, match="compile"):
        model.fit(X, Y, verbose=0)


@pytest.mark.quickest
def test_messages() -> None:
    with pytest.raises(ValueError, match=r"`trunk` must name layers of the model, of \[.*'body'.*\]. Received: \['bodi'\]"):
        freeze(own_model(), ["body", "bodi"])
    with pytest.raises(ValueError, match="where the model is not one of this package"):
        freeze(own_model())
    with pytest.raises(TypeError, match="Keras model"):
        freeze("model", ["body"])  # type: ignore[arg-type]
    inputs = keras.Input((6,))
    normed = keras.layers.SpectralNormalization(keras.layers.Dense(3), name="spectral")(inputs)
    with pytest.raises(ValueError, match="changes its weights in training, frozen or not"):
        freeze(keras.Model(inputs, keras.layers.Dense(1)(normed)), "spectral")


def test_codewords_of_a_frozen_quantiser_stay() -> None:
    inputs = keras.Input((6,))
    quantiser = kr.layers.ResidualQuantizer(2, 4, hidden=(), dim=3, name="quantiser")
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(quantiser(inputs)))
    freeze(model, "quantiser")
    assert same(trained(model)["quantiser"])


@pytest.mark.quickest
@pytest.mark.parametrize("name", ["CADET", "FeedSR", "LiRank", "AmortizedDLRM", "LiGR"])
def test_the_trunk_of_a_ranker_depends_on_no_task(name: str) -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    schema = log.schema.fit(log.events)

    def shapes(*tasks: str) -> dict[str, list[tuple[int, ...]]]:
        model = getattr(kr.models, name)(schema, tasks=tasks)
        heads = model.head_layers
        assert heads
        return {layer.name: [tuple(w.shape) for w in layer.weights] for layer in model.layers if layer.weights and layer.name not in heads}

    assert shapes("click") == shapes("like") == shapes("click", "like") != {}


@pytest.mark.quickest
def test_a_frozen_ranker_is_saved_as_one(tmp_path: Path) -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    model: Any = kr.models.LiRank(log.schema.fit(log.events), history_features=(), hidden=(8,))
    frozen = freeze(model)
    assert "number_norm" in frozen and "head" not in frozen
    model.compile("adam", loss=model.losses_by_task())
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config()["frozen"] == frozen
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    # Control: another model is not frozen, and its configuration does not speak of it.
    assert "frozen" not in kr.models.LiRank(model.schema, history_features=(), hidden=(8,)).get_config()
    with pytest.raises(ValueError, match="made by Ensemble"):
        freeze(kr.models.ensemble([kr.models.LiRank(model.schema, history_features=(), hidden=(8,))]))
