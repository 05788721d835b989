"""Graded, weighted, conditional and number tasks from a log to a served score, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import predict, train
from tests.compiling import JIT

TASKS = (
    kr.Task("click", weight="importance"),
    kr.Task("stars", kind="graded", levels=4),
    kr.Task("dwell", label="seconds", kind="number", transform="log1p_standardise", loss="huber", given="click"),
)
OPTIONS: dict[str, Any] = {
    "features": ("age_hours", "topic"), "history_features": (), "hidden": (8,), "cross_layers": 1, "id_dim": 4, "row_length": 64,
    "batch_size": 4, "jit_compile": JIT, "validation": "validation", "schedule": "constant", "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def log() -> Any:
    made = kr.data.simulate(members=40, days=4, seed=0)
    rng, events = np.random.default_rng(0), made.events
    clicked = events["click"] == 1
    events = events.assign(
        stars=np.where(clicked, rng.integers(1, 5, len(events)), 0),
        seconds=np.where(clicked, np.exp(4 - events["age_hours"] / 50 + 0.1 * rng.normal(size=len(events))), np.nan),
        importance=rng.uniform(0.5, 2.0, len(events)),
    )
    return kr.data.Log(events, made.schema.model_copy(update={"tasks": TASKS}), "kinds")


@pytest.fixture(scope="module")
def run(log: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run")
    model, history = train(log, "lirank", folder, epochs=6, options=OPTIONS, verbose=False)
    return folder, model, history


def test_all_kinds_learn_and_are_measured(log: Any, run: Any) -> None:
    _, model, history = run
    assert {"val_rmse", "val_dwell_mae", "val_stars_log_loss", "val_click_auc"} <= set(history["epochs"])
    assert history["epochs"]["dwell_loss"][-1] < 0.6 * history["epochs"]["dwell_loss"][0]
    found = kr.training.evaluate(model, log, "validation")
    scores = predict(model, log)
    wanted = log.is_split("validation")
    counted = wanted & (log.events["click"] == 1).to_numpy()
    truth = log.events["seconds"][counted]
    assert found["dwell"]["rmse"] == pytest.approx(np.sqrt(np.mean((scores["dwell"][counted] - truth) ** 2)), rel=1e-4)
    assert found["dwell"]["rmse"] < 0.8 * truth.std()  # control: it is better than the mean
    own = kr.metrics.grade_summary(log.events["stars"][wanted], scores["stars"][wanted], log.events["request_id"][wanted], levels=4)
    assert found["stars"] == pytest.approx(own, rel=1e-4)


def test_metrics_weigh_rows(log: Any, run: Any) -> None:
    """In `evaluate` and after each epoch, with a control without the weights."""
    _, model, history = run
    found = kr.training.evaluate(model, log)["click"]
    wanted = log.is_split("validation")
    label, weight, chance = log.events["click"][wanted], log.events["importance"][wanted], predict(model, log)["click"][wanted]
    costs = -np.where(label == 1, np.log(chance), np.log1p(-chance))
    assert found["log_loss"] == pytest.approx(np.average(costs, weights=weight), rel=1e-4)
    assert abs(found["log_loss"] - costs.mean()) > 1e-3 * costs.mean(), "control"
    assert found == pytest.approx(kr.metrics.summary(label, chance, log.events["request_id"][wanted], weight), rel=1e-4)
    for name in ("auc", "log_loss", "normalized_entropy"):
        assert history["epochs"][f"val_click_{name}"][-1] == pytest.approx(found[name], rel=1e-5)


@pytest.mark.quickest
def test_shards_and_the_report_weigh_rows(log: Any, run: Any, tmp_path: Path) -> None:
    folder, model, _ = run
    found = kr.training.evaluate(model, log)
    shards = kr.data.prepare(kr.data.Log(log.events, model.schema), tmp_path / "shards", shards=2)
    assert kr.training.evaluate(model, shards)["click"] == pytest.approx(found["click"], rel=1e-5)
    report = kr.reports.report_of(folder, log, options=kr.reports.ReportOptions(sample=10, draws=4))
    (figures,) = report.figures_by_task["click"].values()
    assert {name: values[0] for name, values in figures.items()} == pytest.approx(found["click"], rel=1e-5)
    assert any("weighted by column 'importance'" in note for note in report.notes)


def test_weights_of_rows_are_those_of_the_loss(log: Any, run: Any) -> None:
    _, model, _ = run
    sequences = kr.data.build_sequences(log.events, model.schema, target=log.is_split("train"))
    weights = kr.training.event_weights(sequences).by_task
    np.testing.assert_allclose(weights["click"], log.events["importance"].to_numpy()[sequences.rows], rtol=1e-6)
    assert (weights["dwell"] == 1).all()


def test_files_and_serving_have_the_units_of_the_label(log: Any, run: Any) -> None:
    folder, model, _ = run
    sequences = kr.data.build_sequences(log.events, model.schema)
    found = kr.training.model_requests(model, sequences)
    logits = kr.training.predict_events(model, found)
    tensors = found.tensors(np.arange(8), list(model.serving_model.input))
    index = found.candidate_index(np.arange(8))
    served = {name: np.asarray(value) for name, value in model.serving_model.predict_on_batch(tensors).items()}
    for task in ("click", "stars", "dwell"):
        expected = np.where(index >= 0, logits[task][np.maximum(index, 0), 0], 0.0)
        np.testing.assert_allclose(served[task], expected, rtol=1e-5, atol=1e-6)
    assert served["dwell"].max() > 5  # seconds, no share
    again = predict(folder, log.events.head(50))
    np.testing.assert_allclose(again, predict(model, log.events.head(50)), rtol=1e-6)


@pytest.mark.quickest
def test_what_is_of_probabilities_is_refused(log: Any, run: Any) -> None:
    schema = run[1].schema
    small: dict[str, Any] = {"features": ("age_hours",), "history_features": (), "hidden": (8,)}
    for option, value in (("explore", ("dwell",)), ("choice", ("stars",)), ("random_effects", {"dwell": "item_id"})):
        with pytest.raises(ValueError, match=f"`{option}`: .* is for binary tasks. Received: task '"):
            kr.models.LiRank(schema, **small, **{option: value})
    with pytest.raises(ValueError, match="task 'dwell' has transform='log1p_standardise' without `mean` and `std`"):
        kr.models.LiRank(log.schema.fit(log.events).model_copy(update={"tasks": TASKS}), **small)
    with pytest.raises(ValueError, match="`ipw` is for binary tasks"):
        train(log, "lirank", epochs=1, options={**OPTIONS, "ipw": "all"}, verbose=False)
    alone = TASKS[2].model_copy(update={"given": None, "missing": "unknown"})
    numbers = kr.data.Log(log.events, log.schema.model_copy(update={"tasks": (alone,)}))
    with pytest.raises(ValueError, match="`metrics` are of probabilities"):
        train(numbers, "lirank", epochs=1, options={**OPTIONS, "metrics": "AUC"}, verbose=False)
    _, history = train(numbers, "lirank", epochs=2, options={**OPTIONS, "early_stopping": 1}, verbose=False)
    assert history["best"]["monitor"] == "val_rmse"


@pytest.mark.quickest
def test_an_ensemble_has_the_mean_of_numbers(log: Any, run: Any) -> None:
    _, model, _ = run
    other = kr.models.LiRank(model.schema, **{**model.arguments, "name": "other"})
    both = kr.models.ensemble([model, other])
    scores = [predict(one, log.events.head(40)) for one in (model, other, both)]
    task = model.schema.task("dwell")
    outputs = [(np.log1p(one["dwell"]) - task.mean) / task.std for one in scores[:2]]
    np.testing.assert_allclose(scores[2]["dwell"], task.served(np.mean(outputs, axis=0)), rtol=1e-4)


@pytest.mark.quickest
def test_shards_give_the_metrics_of_the_log(log: Any, run: Any, tmp_path: Path) -> None:
    _, model, _ = run
    shards = kr.data.prepare(kr.data.Log(log.events, model.schema, "kinds"), tmp_path / "shards", shards=2)
    found, whole = kr.training.evaluate(model, shards, "validation"), kr.training.evaluate(model, log, "validation")
    for task in whole:
        assert found[task] == pytest.approx(whole[task], rel=1e-5)
