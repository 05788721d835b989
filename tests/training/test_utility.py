"""One number to rank by: set in training, saved with the model, and in every score and metric."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.training.scoring.events import predict_events, rows_to_score
from keras_ranking.training.scoring.served import predict_served

pytestmark = pytest.mark.quickest
WEIGHTS = {"click": 1.0, "like": 4.0}
OPTIONS = {"features": ("age_hours", "topic"), "history_features": (), "hidden": (8,), "cross_layers": 1, "utility": WEIGHTS}


@pytest.fixture(scope="module")
def log():
    return kr.data.simulate(members=24, days=3, seed=0)


@pytest.fixture(scope="module")
def folder(log, tmp_path_factory):
    out = tmp_path_factory.mktemp("utility") / "run"
    kr.training.train(log, "lirank", out, epochs=1, options=OPTIONS, verbose=False)
    return out


def test_it_is_saved_with_the_model(folder, tmp_path):
    model = kr.models.load(folder)
    assert model.utility == WEIGHTS
    model.utility = {"like": 1}
    assert kr.serving.quantize_embeddings(model).utility == {"like": 1.0}
    model.save(tmp_path / "other.keras")
    assert kr.models.load(tmp_path / "other.keras").utility == {"like": 1.0}
    model.utility = None
    assert model.utility == {} and "utility" not in model.get_config()


def test_training_is_the_same_without(log, folder):
    plain, _ = kr.training.train(log, "lirank", epochs=1, options={**OPTIONS, "utility": None}, verbose=False)
    assert plain.utility == {}
    for ours, theirs in zip(kr.models.load(folder).get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_scores_of_a_log_and_of_rows(log, folder, tmp_path):
    about = kr.training.score_log(folder, log, tmp_path / "scores", split="validation")
    assert about["columns"] == ["row", "request_id", "member_id", "click", "like", "score"]
    table = pd.read_parquet(tmp_path / "scores")
    np.testing.assert_allclose(table["score"], table["click"] + 4.0 * table["like"], rtol=1e-12)
    rows = log.events.tail(30)
    found = kr.training.predict(folder, rows, history=log.events.head(200))
    np.testing.assert_allclose(found["score"], found["click"] + 4.0 * found["like"], rtol=1e-6)
    with pytest.raises(FileExistsError):  # another utility makes other scores
        model = kr.models.load(folder)
        model.utility = {"like": 1.0}
        kr.training.score_log(model, log, tmp_path / "scores", split="validation")


def test_evaluate(log, folder, tmp_path):
    model = kr.models.load(folder)
    found = kr.training.evaluate(model, log, "validation")
    assert list(found) == ["click", "like", "score"]
    wanted = log.is_split("validation")
    sequences = rows_to_score(model, log, wanted, "row").sequences
    served = predict_served(model, sequences, whole_session=False)
    target = sequences.target
    np.testing.assert_allclose(served["score"][target], kr.metrics.utility_score(served, WEIGHTS)[target], rtol=1e-6)
    worth = kr.metrics.utility_score(sequences.labels, WEIGHTS)[target]
    request = sequences.request[target]
    for k in (1, 5):
        value = kr.metrics.realised_utility(worth, served["score"][target], request, k).value
        assert found["score"][f"utility_at_{k}"] == pytest.approx(value, rel=1e-6)
    auc = kr.metrics.grouped_auc(sequences.labels["like"][target], served["score"][target], request).value
    assert found["score"]["like_impression_auc"] == pytest.approx(auc, rel=1e-6)
    model.utility = {"like": -1.0}  # control: the reverse order
    assert kr.training.evaluate(model, log, "validation")["score"]["like_impression_auc"] < 1 - found["like"]["impression_auc"] + 1e-6
    shards = kr.data.prepare(kr.data.Log(log.events, model.schema, "same"), tmp_path / "shards", shards=3)
    sharded = kr.training.evaluate(folder, shards, "validation")
    assert sharded["score"] == pytest.approx(found["score"], rel=1e-9)


def test_replay_and_diversity_take_the_score(log, folder):
    model = kr.models.load(folder)
    sequences = rows_to_score(model, log, log.is_split("validation"), "row").sequences
    towers = predict_events(model, rows_to_score(model, log, log.is_split("validation"), "row"))
    score = kr.metrics.utility_score({task: model.served(values) for task, values in towers.items()}, model.utility)[sequences.target]
    request, position = sequences.request[sequences.target], sequences.position[sequences.target]
    label = sequences.labels["click"][sequences.target]
    assert 0 <= kr.metrics.replay_contribution_rate(label, score, request, position, np.ones(len(label))).rate <= 1
    topics = sequences.columns["topic"][sequences.target]
    assert 0 <= kr.metrics.coverage(topics, score, request, k=5).value <= 1


@pytest.mark.parametrize(
    ("utility", "message"),
    [
        ({"clicks": 1.0}, r"must name tasks that the model serves, \['click', 'like'\]\. Received: 'clicks'"),
        ({"click": float("nan")}, "must have finite numbers as weights. Received: nan for task 'click'"),
        ({"click": "1"}, "must have finite numbers as weights. Received: '1'"),
        ({}, "must map at least one task to its weight"),
    ],
)
def test_mistakes(log, utility, message):
    with pytest.raises(ValueError, match=message):
        kr.training.train(log, "lirank", options={**OPTIONS, "utility": utility}, verbose=False)


def test_a_task_of_the_name_of_the_output(log):
    schema = log.schema.model_copy(update={"tasks": (kr.Task("score", label="click"),)}).fit(log.events)
    model = kr.models.LiRank(schema, features=("age_hours",), history_features=(), hidden=(8,), cross_layers=1)
    with pytest.raises(ValueError, match="an output 'score', which is a task here: rename the task"):
        model.utility = {"score": 1.0}


def test_numbers_enter_in_their_units(log):
    tasks = (kr.Task("click"), kr.Task("dwell", label="dwell_seconds", kind="number", transform="log1p_standardise"))
    events = log.events.assign(dwell_seconds=100 * log.events["dwell_seconds"])
    schema = log.schema.model_copy(update={"tasks": tasks}).fit(events)
    model = kr.models.LiRank(schema, features=("age_hours",), history_features=(), hidden=(8,), cross_layers=1)
    model.utility = {"click": 1.0, "dwell": 0.2}
    found = predict_served(model, kr.data.build_sequences(events, schema))
    assert np.nanmedian(found["dwell"]) > 2  # seconds, not a probability
    np.testing.assert_allclose(found["score"], found["click"] + 0.2 * found["dwell"], rtol=1e-5)


def test_an_ensemble_has_that_of_its_members(log):
    schema = log.schema.fit(log.events)
    made = [kr.models.LiRank(schema, features=("age_hours",), history_features=(), hidden=(8,), cross_layers=1) for _ in range(2)]
    for model in made:
        model.utility = WEIGHTS
    assert kr.models.ensemble(made).utility == WEIGHTS
    made[1].utility = {"click": 1.0}
    with pytest.raises(ValueError, match="must have the same `utility`"):
        kr.models.ensemble(made)
