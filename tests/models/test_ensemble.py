"""Ensembles: the mean of probabilities in every graph, offsets of the base rate, files, exports, and their training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.models.combined.ensemble import members_of, offsets_of
from keras_ranking.training.members import member_folders

TRUNK: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 2, "id_dim": 4, "tasks": ("click",)}
MODELS: dict[str, dict[str, Any]] = {
    "CADET": {**TRUNK, "tower_hidden": (8,)},
    "FeedSR": TRUNK,
    "LiGR": {**TRUNK, "setwise_layers": 1, "max_history": 8, "top_k": None},
    "LiRank": {"hidden": (8,), "cross": "none", "id_dim": 4, "tasks": ("click",), "max_history": 8},
    "AmortizedDLRM": {**TRUNK, "hidden": (8,), "cross": "none", "max_history": 8},
}


def sigmoid(z: Any) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(z, np.float64))))


def test_mean_probability_is_exact_far_from_one_half() -> None:
    z = np.random.default_rng(0).normal(scale=12, size=(3, 4, 5, 2)).astype("float32")
    p = sigmoid(z).mean(axis=0)
    q = sigmoid(-z.astype(np.float64)).mean(axis=0)
    got = keras.ops.convert_to_numpy(kr.layers.MeanProbability()(list(z)))
    np.testing.assert_allclose(got, np.log(p) - np.log(q), rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="`inputs` must be a list of logits"):
        kr.layers.MeanProbability()(z)


@pytest.mark.parametrize("prior", [0.0, 50.0])
def test_fit_base_rate_is_the_minimum(prior: float) -> None:
    rng = np.random.default_rng(1)
    z, w = rng.normal(size=500) - 1, rng.uniform(0, 2, size=500)
    y = (rng.uniform(size=500) < sigmoid(z + 0.7)).astype(float)
    b = kr.layers.fit_base_rate(y, z, prior=prior, start=0.3, weights=w)
    p = sigmoid(z + 0.3)
    pull = prior * (w * p * (1 - p)).mean()

    def loss(at: float) -> float:
        return float((w * (np.logaddexp(0, z + at) - y * (z + at))).sum() + pull / 2 * (at - 0.3) ** 2)

    around = np.linspace(b - 0.5, b + 0.5, 101)
    assert loss(b) <= min(map(loss, around)) + 1e-9
    if not prior:  # then the mean probability is the share of positives
        np.testing.assert_allclose((w * sigmoid(z + b)).sum(), (w * y).sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([1, 1], {"prior": 0.0}, "one kind alone"),
        ([1, 0], {"prior": -1.0}, "`prior` must be a finite number of rows"),
        ([1, 2], {}, "must be in"),
        ([1], {}, "must be of one shape"),
    ],
)
@pytest.mark.one_backend
def test_fit_base_rate_refuses(labels: list[float], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.layers.fit_base_rate(labels, [0.0, 0.0], **settings)


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=12, days=3, seed=0)


def built(kind: str, log: Any, count: int = 2, **settings: Any) -> Any:
    schema = log.schema.fit(log.events)
    members = []
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        members.append(getattr(kr.models, kind)(schema, **MODELS[kind]))
    return kr.models.ensemble(members, **settings), members


RELEASE = ("FeedSR", "LiGR", "AmortizedDLRM")  # rows as CADET's, requests as LiRank's


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.release) if kind in RELEASE else kind for kind in MODELS])
def test_every_graph_is_the_mean_of_the_members(kind: str, log: Any, tmp_path: Any) -> None:
    model, members = built(kind, log, base_rate=True)
    offsets_of(model)["click"].offset.assign(0.25)
    sequences = kr.data.build_sequences(log.events, model.schema)
    rows = kr.training.model_requests(model, sequences) if model.form == "requests" else kr.data.pack(sequences, 256)
    towers = [kr.training.predict_events(one, rows)["click"] for one in (model, *members)]
    scored = ~np.isnan(towers[0])
    mean = np.mean(towers[1:], axis=0)[scored]
    want = sigmoid(np.log(mean) - np.log1p(-mean) + 0.25)
    np.testing.assert_allclose(towers[0][scored], want, rtol=0, atol=2e-6)
    assert np.abs(towers[1][scored] - towers[2][scored]).max() > 1e-3  # control: the members differ
    found = kr.data.requests(log.events, model.schema, max_history=8, delay=model.arguments["delay"])
    which = np.argsort(found.history_begin - found.history_end, kind="stable")[[0, 1, -1]]
    tensors = found.tensors(which, list(model.serving_model.input))
    served = np.asarray(keras.ops.convert_to_numpy(model.serving_model(tensors)["click"]))
    of_members = np.mean([keras.ops.convert_to_numpy(one.serving_model(tensors)["click"]) for one in members], axis=0)
    real = np.arange(served.shape[1])[None] < tensors["candidate_count"][:, None]
    odds = np.log(of_members[real]) - np.log1p(-of_members[real])
    if model.boundaries and "tower_prior" not in model.arguments:
        np.testing.assert_allclose(served[real], sigmoid(odds + 0.25), rtol=0, atol=2e-6)
    cached = keras.ops.convert_to_numpy(model.score(model.encode(tensors), tensors)["click"])[..., model.serving_tower]
    np.testing.assert_allclose(sigmoid(cached)[real], served[real], rtol=0, atol=2e-6)
    model.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(again.serving_model(tensors)["click"]), served)
    assert len(members_of(again)) == 2 and again.tasks == model.tasks


@pytest.mark.quickest
def test_a_cache_grows_as_those_of_the_members(log: Any) -> None:
    model, members = built("AmortizedDLRM", log)
    found = kr.data.requests(log.events, model.schema, max_history=8)
    which = [int(np.argmax(found.history_end - found.history_begin))]
    tensors = found.tensors(which, [*model.encoder.input, *model.serving_model.input])
    parts: list[dict[str, Any]] = []
    for part in (slice(0, 4), slice(4, None)):
        rows = {k: v[:, part] if v.ndim > 1 and k.startswith("history_") else v for k, v in tensors.items()}
        length = np.clip(tensors["history_length"] - (part.start or 0), 0, rows["history_time"].shape[1])
        parts.append({**rows, "history_length": length.astype("int32")})
    try:
        longer = [one.score(one.extend(one.encode(parts[0]), parts[1]), tensors)["click"] for one in (model, *members)]
    except ValueError as error:
        assert "cannot be extended" in str(error)
        with pytest.raises(ValueError, match="cannot be extended"):
            members[0].extend(members[0].encode(parts[0]), parts[1])
        return
    probabilities = [sigmoid(keras.ops.convert_to_numpy(each)) for each in longer]
    np.testing.assert_allclose(probabilities[0], np.mean(probabilities[1:], axis=0), rtol=0, atol=2e-6)


@pytest.mark.quickest
def test_what_cannot_be_joined_is_refused(log: Any) -> None:
    model, members = built("LiRank", log)
    other = kr.models.LiRank(model.schema, **{**MODELS["LiRank"], "hidden": (4,)})
    for wrong, message in (
        ([], "at least one model"),
        ([members[0], other], r"models that differ in \['arguments'\]"),
        ([model], "Received: an ensemble"),
        ([keras.Sequential()], "must hold ranking models"),
        ([kr.serving.quantize_embeddings(members[0])], "one with int8 tables"),
    ):
        with pytest.raises(ValueError, match=message):
            kr.models.ensemble(wrong)
    of_choice = kr.models.LiRank(model.schema, **MODELS["LiRank"], choice=("click",))
    with pytest.raises(ValueError, match="`base_rate` is not for tasks that are choices"):
        kr.models.ensemble([of_choice], base_rate=True)
    assert kr.models.ensemble([of_choice, of_choice]).choice == ["click"]
    with pytest.raises(ValueError, match="a model without offsets"):
        kr.training.follow_base_rate(members[0], kr.data.build_sequences(log.events, model.schema))
    small = kr.serving.quantize_embeddings(model)
    assert small.quantized and len(members_of(small)) == 2


@pytest.mark.quickest
def test_the_base_rate_of_later_rows_is_followed(log: Any) -> None:
    model, _ = built("CADET", log, count=1, base_rate=True)
    sequences = kr.data.build_sequences(log.events, model.schema)
    before = kr.training.predict_events(model, kr.data.pack(sequences, 256))["click"]
    found = kr.training.follow_base_rate(model, sequences, prior=0.0)
    again = kr.training.follow_base_rate(model, sequences, prior=0.0)
    np.testing.assert_allclose(again["click"], found["click"], atol=1e-5)
    after = kr.training.metrics_of(model, kr.data.pack(sequences, 256))["click"] if hasattr(kr.training, "metrics_of") else None
    assert after is None or abs(after["observed_over_expected"] - 1) < 1e-5
    now = kr.training.predict_events(model, kr.data.pack(sequences, 256))["click"]
    moved = (np.log(now) - np.log1p(-now)) - (np.log(before) - np.log1p(-before))
    np.testing.assert_allclose(moved[~np.isnan(moved)], found["click"], atol=1e-4)


@pytest.mark.quickest
@pytest.mark.slow
def test_train_makes_an_ensemble_that_goes_on(log: Any, tmp_path: Any) -> None:
    counts = (kr.Count("item_id", action="click"),)
    log = replace(log, schema=log.schema.model_copy(update={"features": (*log.schema.features, *counts)}))
    options = {**MODELS["LiRank"], "features": ("age_hours", counts[0].name), "history_features": (), "epochs": 1}
    options = {name: value for name, value in options.items() if name != "max_history"}
    run = tmp_path / "run"
    model, history = kr.training.train(log, "lirank", run, seed=3, options={**options, "ensemble": 2}, verbose=False)
    assert [one["seed"] for one in history["members"]] == [3, 4] and len(member_folders(run)) == 2
    alone, _ = kr.training.train(log, "lirank", seed=4, options=options, verbose=False)
    for got, want in zip(members_of(model)[1].get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
    # A run that was cut off in its second member: its checkpoint says what is missing.
    (run / "model.keras").unlink()
    shutil.rmtree(run / "members" / "1")
    again, _ = kr.training.train(log, "lirank", run, seed=3, options={**options, "ensemble": 2}, resume=True, verbose=False)
    for got, want in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
    new = (log.events["split"] == "validation").to_numpy()
    later, _ = kr.training.warm_start(log, run, new, tmp_path / "next", verbose=False)
    assert len(members_of(later)) == 2 and (tmp_path / "next" / "members" / "1" / "checkpoint.npz").is_file()
    assert kr.data.saved_counts(run) is not None
    assert kr.training.evaluate(tmp_path / "next", log)["click"]["log_loss"] > 0
    with pytest.raises(ValueError, match="`ensemble` must be a positive number"):
        kr.training.train(log, "lirank", options={**options, "ensemble": 0})


@pytest.mark.few(1)
@pytest.mark.parametrize("copy", ["int8", "ensemble"])
def test_copies_have_numbers_of_their_own(log: Any, copy: str) -> None:
    """On JAX a step gives up the arrays of its model: those of a copy stay."""
    model = kr.models.LiRank(log.schema.fit(log.events), **MODELS["LiRank"])
    other = kr.serving.quantize_embeddings(model) if copy == "int8" else kr.models.ensemble([model])
    rows = kr.training.model_requests(model, kr.data.build_sequences(log.events, model.schema))
    first, second, again = (kr.training.predict_events(each, rows)["click"] for each in (model, other, model))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(second, first, rtol=0, atol=2e-2 if copy == "int8" else 2e-6)
