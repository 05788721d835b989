"""Columns of the member: the scores are those of the same columns sent with each candidate, in each graph and model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRequests, Requests, Sequences, build_sequences, pack, requests
from keras_ranking.data.member_values import HeldOnce
from keras_ranking.training.scoring.events import model_requests
from tests.layers.common import numpy
from tests.member_columns import OF_MEMBER, log_of

SIZES: dict[str, dict[str, Any]] = {
    "LiRank": {
        "hidden": (8,),
        "cross": "none",
        "max_history": 6,
        "history_options": {"num_layers": 1},
        "action_dim": 4,
        "calibration_features": ("country",),
        "random_effects": {"click": "home"},
        "explore": ("click",),
    },
    "AmortizedDLRM": {
        "hidden": (8,),
        "cross": "none",
        "dim": 8,
        "num_layers": 1,
        "max_history": 6,
        "action_dim": 4,
        "fusion": "append_falcon",
    },
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "max_history": 6, "action_dim": 4},
    "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,)},
    "FeedSR": {"dim": 8, "num_layers": 1, "num_heads": 2, "head_options": {"hidden": (4,)}},
}
pytestmark = pytest.mark.usefixtures("quick_calls")


@pytest.fixture(scope="module")
def logs() -> dict[str, Any]:
    log = kr.data.simulate(members=8, days=4, seed=1, feedback_delay=60)
    return {known: log_of(log, known) for known in ("member", "context")}


def make(log: Any, builder: str, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, builder)(log.schema, tasks=("click",), id_dim=4, **{**SIZES[builder], **settings})
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def training_batch(model: Any, sequences: Sequences, names: Any = None) -> dict[str, np.ndarray]:
    names = model.input_columns if names is None else names
    if model.form == "rows":
        return PackedDataset(pack(sequences, 96), 4, inputs=names, shuffle=False)[0][0]
    return PackedRequests(model_requests(model, sequences), 96, 2, names=names, shuffle=False)[0][0]


@pytest.mark.few(2)
@pytest.mark.parametrize("builder", SIZES)
def test_scores_are_those_of_columns_of_candidates(logs: dict[str, Any], builder: str) -> None:
    """Served, cached, in the training graph and from the same weights."""
    found: dict[str, dict[str, Any]] = {}
    for known, log in logs.items():
        model = make(log, builder)
        sequences = build_sequences(log.events, log.schema)
        tensors = requests(sequences).tensors([0, 9, 20], list(model.serving_model.input))
        cached = numpy(model.score(model.encode(tensors), tensors)["click"])
        real = np.arange(cached.shape[1]) < tensors["candidate_count"][:, None]
        found[known] = {
            "served": numpy(model.serving_model(tensors)["click"]),
            "cached": cached[real],
            "trained": numpy(model(training_batch(model, sequences))["click"]),
        }
        if model.stream_columns:
            found[known]["streams"] = numpy(model(training_batch(model, sequences, model.stream_columns))["click"])
        names = [name for name in tensors if "profile" in name]
        assert names == ["member_profile" if known == "member" else "candidate_profile"]
        assert tensors[names[0]].shape == ((3, 6) if known == "member" else (3, tensors["candidate_item_id"].shape[1], 6))
    assert np.ptp(found["member"]["served"]) > 1e-3
    for graph, values in found["member"].items():
        np.testing.assert_allclose(values, found["context"][graph], rtol=0, atol=1e-6, err_msg=graph)


@pytest.mark.few(2)
@pytest.mark.parametrize("builder", SIZES)
def test_a_value_is_that_of_its_request_alone(logs: dict[str, Any], builder: str) -> None:
    """Of one request another value: its scores change, those of other requests and the encoded history stay to the bit."""
    log = logs["member"]
    model, sequences = make(log, builder), build_sequences(log.events, log.schema)
    found = requests(sequences)
    begin, end = found.candidate_begin[9], found.candidate_end[9]
    columns = dict(sequences.columns)
    column: Any = columns["profile"]
    values = np.concatenate([column.values, np.full((1, 6), 3.0, "float32")])
    run = column.run.copy()
    run[begin:end] = len(column.values)
    columns["profile"] = HeldOnce(values, run)
    for name in set(OF_MEMBER) - {"profile"}:
        columns[name] = np.asarray(columns[name])  # other runs than those of `profile`
    changed = replace(sequences, columns=columns)
    before, after = (of_events(model, one) for one in (sequences, changed))
    inside = np.zeros(sequences.num_events, dtype=bool)
    inside[begin:end] = True
    np.testing.assert_array_equal(before[~inside], after[~inside])
    assert np.abs(before[inside] - after[inside]).max() > 1e-3
    tensors = found.tensors([0, len(found) - 1], list(model.serving_model.input))
    swapped = {name: x[::-1] if name.startswith("member_") else x for name, x in tensors.items()}
    assert np.abs(numpy(model.serving_model(tensors)["click"]) - numpy(model.serving_model(swapped)["click"])).max() > 1e-4, "control"


def of_events(model: Any, sequences: Sequences) -> np.ndarray:
    """Logits of all events, from training batches."""
    if model.form == "rows":
        rows = pack(sequences, 256)
        dataset: Any = PackedDataset(rows, len(rows.index), inputs=model.input_columns, shuffle=False)
        return rows.scatter(numpy(model(dataset[0][0])["click"]))
    data = model_requests(model, sequences)
    dataset = PackedRequests(data, 256, 8, names=model.input_columns, shuffle=False)
    return dataset.scatter(np.concatenate([numpy(model(dataset[at][0])["click"]) for at in range(len(dataset))])[: len(dataset.slots)])


def test_saved_and_loaded(logs: dict[str, Any], tmp_path: Any) -> None:
    log = logs["member"]
    model = make(log, "CADET")
    model.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path / "model.keras")
    tensors = requests(build_sequences(log.events, log.schema)).tensors([3], list(model.serving_model.input))
    np.testing.assert_array_equal(numpy(again.serving_model(tensors)["click"]), numpy(model.serving_model(tensors)["click"]))
    assert again.schema.of_member == OF_MEMBER and "member_slot" in again.input_columns


def test_lists_read_no_columns_of_the_member(logs: dict[str, Any]) -> None:
    """Inside a request they do not differ; with list context the other numbers are set against those of the list."""
    for builder in ("CADET", "LiRank"):
        model = make(logs["member"], builder, list_context=True)
        numbers = model._graphs.wiring
        read = numbers.list_numbers.features if builder == "CADET" else numbers.numbers.features[: numbers.of_list]
        assert not {feature.name for feature in read} & set(OF_MEMBER)
        sequences = build_sequences(logs["member"].events, logs["member"].schema)
        found = requests(sequences)
        scores = numpy(model.serving_model(found.tensors([9], list(model.serving_model.input)))["click"])
        row = of_events(model, sequences)[found.candidate_begin[9] : found.candidate_end[9]]
        trained = model.served(1 / (1 + np.exp(-row)))
        np.testing.assert_allclose(scores[0], trained, atol=1e-5)


def test_what_is_refused(logs: dict[str, Any]) -> None:
    schema = logs["member"].schema
    with pytest.raises(ValueError, match="`token_features` are of items and their context. Received: 'country', known='member'"):
        kr.models.CADET(schema, token_features=("item_id", "country"))
    with pytest.raises(ValueError, match="`features` must name at least one column of the candidate"):
        kr.models.LiRank(schema, features=("country",), history_features=())
    with pytest.raises(ValueError, match="`history_features` must be known='item'. Received: 'home', known='member'"):
        kr.models.LiRank(schema, history_features=("home",))


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["CADET", "LiRank"])
def test_forests_read_them(logs: dict[str, Any], builder: str) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    found = {}
    for known, log in logs.items():
        x = kr.training.forest_rows(log.events, log.schema, ["age_hours", "tenure", "country"])
        options = {"objective": "binary", "verbose": -1, "num_threads": 1, "seed": 0}
        booster = lightgbm.train(options, lightgbm.Dataset(x, log.events["click"], categorical_feature=["country"]), 3)
        network = make(log, builder, late_features=("device",)) if builder == "CADET" else make(log, builder, features=("item_id", "home"))
        model = kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(booster), weights=(0.5, 2.0))
        data: Requests = requests(build_sequences(log.events, log.schema))
        served = numpy(model.serving_model(data.tensors([0, 9], list(model.serving_model.input)))["click"])
        found[known] = served, of_events(model, data.sequences)
    for own, wide in zip(found["member"], found["context"], strict=True):
        np.testing.assert_allclose(own, wide, rtol=0, atol=1e-6, equal_nan=True)
