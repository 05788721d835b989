"""A network and a forest as one model: the weighted sum of their logits, saved, served in two phases, and the fit of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.models.combined.with_forest import set_stack, stack_of
from keras_ranking.training.scoring.events import logits_of_targets

lightgbm = pytest.importorskip("lightgbm", reason="LightGBM comes with the extra [dev]")

NETWORKS: dict[str, dict[str, Any]] = {
    "LiRank": {"history_features": (), "hidden": (8,)},
    "CADET": {"dim": 16, "num_layers": 1, "num_heads": 2},
    "LiGR": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_history": 8, "choice": ["click"]},
    "AmortizedDLRM": {"max_history": 8, "dim": 8, "num_heads": 2},
    "FeedSR": {"dim": 16, "num_layers": 1, "num_heads": 2},
}


@pytest.fixture(scope="module")
def case() -> tuple[Any, Any, Any, Any]:
    log = kr.data.simulate(members=30, days=3, seed=0)
    schema = log.schema.fit(log.events)
    x = kr.training.forest_rows(log.events, schema)
    options = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "sigmoid": 1.5}
    categories = [name for name in ("topic", "device") if name in x]
    booster = lightgbm.train(options, lightgbm.Dataset(x, log.events["click"], categorical_feature=categories), 8)
    return log, schema, booster, kr.data.build_sequences(log.events, schema)


def data_of(model: Any, sequences: Any) -> Any:
    return kr.training.model_requests(model, sequences) if model.form == "requests" else kr.data.pack(sequences, 128)


@pytest.mark.few(2)
@pytest.mark.few(2)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_weighted_sum(kind: str, case: Any, tmp_path: Path) -> None:
    log, schema, booster, sequences = case
    network = getattr(kr.models, kind)(schema, **NETWORKS[kind])
    model = kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(booster), "click", weights=(0.3, 0.8))
    own = logits_of_targets(network, data_of(network, sequences))
    got = logits_of_targets(model, data_of(model, sequences))
    # rows of the sequences are in another order than those of the log
    log_rows = kr.training.forest_rows(log.events, schema)
    raw = 1.5 * booster.predict(log_rows, raw_score=True)[sequences.rows]
    np.testing.assert_allclose(got["click"], 0.3 * own["click"] + 0.8 * raw, atol=3e-5)
    for task in set(model.tasks) - {"click"}:
        np.testing.assert_array_equal(got[task], own[task])
    model.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits_of_targets(again, data_of(again, sequences))["click"], got["click"])

    # served: one graph, two phases, the same numbers
    asked = kr.data.requests(sequences, max_history=8)
    tensors = asked.tensors([0, 1], list(model.serving_model.input))
    served = keras.ops.convert_to_numpy(model.serving_model(tensors)["click"])
    phases = model.score(model.encode(tensors), tensors)["click"]
    probability = model.served(keras.ops.sigmoid(phases))
    real = np.arange(served.shape[1])[None] < np.asarray(tensors["candidate_count"])[:, None]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(probability)[real], served[real], atol=1e-6)


def test_the_fit_finds_the_better_one(case: Any) -> None:
    _log, schema, booster, sequences = case
    network = kr.models.LiRank(schema, **NETWORKS["LiRank"])
    model = kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(booster), "click")
    found = kr.training.fit_stack(model, sequences)
    assert found["forest"] > 0.8  # the network is not trained
    stack = stack_of(model)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(stack.weight), [found["network"], found["forest"]], rtol=1e-6)
    label, rows = sequences.labels["click"], sequences.target & ~np.isnan(sequences.labels["click"])

    def loss() -> float:
        z, y = logits_of_targets(model, data_of(model, sequences))["click"][rows], label[rows]
        return float((np.logaddexp(0, z) - y * z).mean())

    best = loss()
    for other in ((0.5, 0.5), (0.0, 1.0), (found["network"], found["forest"] - 0.2)):
        set_stack(model, other, found["bias"])
        assert loss() > best - 1e-6


def test_errors(case: Any) -> None:
    log, schema, booster, sequences = case
    network, forest = kr.models.LiRank(schema, **NETWORKS["LiRank"]), kr.layers.Forest.from_lightgbm(booster)
    with pytest.raises(ValueError, match="`task` must be one of"):
        kr.models.with_forest(network, forest)
    with pytest.raises(ValueError, match="`task` must be one of"):
        kr.models.with_forest(network, forest, "dwell")
    with pytest.raises(ValueError, match="`forest` must be a kr.layers.Forest"):
        kr.models.with_forest(network, booster, "click")
    with pytest.raises(ValueError, match="made by `kr.models.with_forest`"):
        kr.training.fit_stack(network, sequences)
    x = np.arange(40, dtype="float32")[:, None]
    strange = lightgbm.train({"verbose": -1, "num_threads": 1, "objective": "binary"}, lightgbm.Dataset(x, x[:, 0] > 9), 2)
    with pytest.raises(ValueError, match="must be a number or category of the schema"):
        kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(strange), "click")
    rates = lightgbm.train({"verbose": -1, "num_threads": 1, "objective": "poisson"}, lightgbm.Dataset(x, x[:, 0]), 2)
    with pytest.raises(ValueError, match="that is a logit or a score"):
        kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(rates), "click")
    with pytest.raises(ValueError, match="quantise the result"):
        kr.models.with_forest(kr.serving.quantize_embeddings(network), forest, "click")
    with pytest.raises(ValueError, match="must be a number or category of the schema"):
        kr.training.forest_rows(log.events, schema, ["position"])
    with pytest.raises(ValueError, match="Missing: "):
        kr.training.forest_rows(log.events.drop(columns="age_hours"), schema, ["age_hours"])


def test_fit_of_logits() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 20_000))
    label = rng.random(20_000) < 1 / (1 + np.exp(-(0.7 * first + 0.2 * second - 0.5)))
    weight, bias = kr.layers.fit_stack(label, [first, second])
    np.testing.assert_allclose([*weight, bias], [0.7, 0.2, -0.5], atol=0.06)
    with pytest.raises(ValueError, match="both outcomes"):
        kr.layers.fit_stack(np.ones(3), [np.zeros(3)])
    with pytest.raises(ValueError, match="of one shape"):
        kr.layers.fit_stack(np.ones(3), [np.zeros(2)])
    with pytest.raises(ValueError, match="above 0"):
        kr.layers.fit_stack([0, 1], [np.zeros(2)], prior=0)
    layer = kr.layers.StackedLogits(2)
    with pytest.raises(ValueError, match="a list of 2 logits"):
        layer([np.zeros((1, 1), "float32")])
