"""The LiRank builder: presets, wiring, saving, training, int8 tables, exploration, random effects, and its export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking import training
from keras_ranking.data import PackedRequests, build_sequences, requests
from keras_ranking.layers import BayesianLinear, IsotonicCalibration, ParallelDCN, QuantizedEmbedding
from keras_ranking.training.scoring.events import model_requests

pytestmark = pytest.mark.usefixtures("quick_calls")

SMALL: dict[str, Any] = {"hidden": (8, 8), "rank": 4, "id_dim": 4, "max_history": 6, "calibration_options": {"step": 0.5}}


def array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=12, days=2, seed=1)


@pytest.fixture(scope="module")
def schema(log: Any) -> kr.Schema:
    """Three tasks, and a second column of topics."""
    plain = log.schema.fit(log.events)
    tasks = [*plain.tasks, kr.Task("contribution", label="like")] if "contribution" not in [t.name for t in plain.tasks] else plain.tasks
    return plain.model_copy(update={"tasks": tuple(tasks)})


@pytest.fixture(scope="module")
def sequences(log: Any, schema: kr.Schema) -> Any:
    return build_sequences(log.events, schema)


def make(schema: kr.Schema, scale: float = 0.1, **arguments: Any) -> kr.models.RankingModel:
    keras.utils.set_random_seed(0)
    model = kr.models.LiRank(schema, **{**SMALL, **arguments})
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign_add(rng.normal(0, scale, variable.shape).astype("float32"))
    return model


def batch(model: Any, sequences: Any, rows: int = 4) -> Any:
    return PackedRequests(model_requests(model, sequences), 64, rows, model.input_columns, tasks=model.tasks, shuffle=False)[0]


def of_kind(model: Any, kind: type) -> list[Any]:
    return [layer for layer in model._flatten_layers(include_self=False) if type(layer) is kind]


@pytest.mark.quickest
def test_presets(schema: kr.Schema) -> None:
    feed, ads, jobs = (make(schema, preset=preset) for preset in ("feed", "ads", "jobs"))
    count = len(feed.tasks)
    assert [len(of_kind(model, ParallelDCN)) for model in (feed, ads, jobs)] == [1, count, count]
    assert [len(of_kind(model, IsotonicCalibration)) for model in (feed, ads, jobs)] == [count, count, 0]
    assert [model.arguments["cross"] for model in (feed, ads, jobs)] == ["residual", "low_rank", "low_rank"]
    assert ["history_time" in model.input_columns for model in (feed, ads, jobs)] == [True, True, False]
    assert set(feed.arguments["groups"]) == {"click", "contribution"}
    # without a history there is nothing to encode, and nothing to ask a client for
    assert not [name for name in jobs.serving_model.input if name.startswith("history") or name == "request_time"]
    assert jobs.encode({}) == {} and jobs.form == "requests" and jobs.boundaries == ()
    with pytest.raises(ValueError, match="reads no history"):
        _ = jobs.encoder


@pytest.mark.quickest
def test_one_table_for_an_id_wherever_it_stands(schema: kr.Schema, sequences: Any) -> None:
    model = make(schema, shared_tables={"things": ["item_id"]})
    tables = [variable for variable in model.trainable_variables if variable.path.endswith("embeddings")]
    assert len([table for table in tables if "things" in table.path]) == 1
    x, _, _ = batch(model, sequences)
    before = array(model(x)["click"])
    moved = {**x, "history_item_id": x["history_item_id"][..., ::-1]}
    assert np.abs(array(model(moved)["click"]) - before).max() > 1e-5, "control: past ids are read"


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "news"}, "`preset` must be of"),
        ({"tasks": ["purchase"]}, "unknown task 'purchase'"),
        ({"features": ["click"]}, "known only after scoring"),
        ({"features": []}, "`features` must name at least one column"),
        ({"groups": {"a": ["click"]}}, "`groups` must hold each of"),
        ({"cross": "deep"}, "`cross` must be of"),
        ({"delay": 10}, "`delay` must be at least the schema's feedback_delay"),
        ({"preset": "ads", "head": "mmoe"}, "`head` needs shared_trunk=True"),
        ({"history_features": ["item_views_24h"]}, "`history_features` must be known='item'"),
        ({"shared_tables": {"t": ["age_hours"]}}, "`shared_tables` must name id or category columns"),
        ({"random_effects": {"click": "age_hours"}}, "`random_effects` must map tasks"),
        ({"explore": ["purchase"]}, "`explore` must be tasks of"),
    ],
)
def test_bad_arguments_are_named(schema: kr.Schema, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.models.LiRank(schema, **{**SMALL, **arguments})


@pytest.mark.release("jax")
@pytest.mark.parametrize(
    "arguments",
    [
        {"preset": "feed", "head": "mmoe", "head_options": {"num_experts": 2, "expert": [6]}, "random_effects": {"click": "item_id"}},
        pytest.param({"preset": "ads", "explore": ["click"], "calibration_features": ("topic",)}, marks=pytest.mark.quickest),
        pytest.param({"preset": "jobs"}, marks=pytest.mark.quickest),
    ],
    ids=["feed", "ads", "jobs"],
)
def test_saved_and_loaded(schema: kr.Schema, sequences: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = make(schema, **arguments)
    model.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path)
    x, _, _ = batch(model, sequences)
    for task, logit in model(x).items():
        assert logit.shape == (*x["request_slot"].shape, 1) and keras.backend.standardize_dtype(logit.dtype) == "float32"
        np.testing.assert_array_equal(array(again(x)[task]), array(logit))


@pytest.mark.release("jax")
def test_fit_learns_and_padding_moves_no_moment(schema: kr.Schema, sequences: Any) -> None:
    model = make(schema)
    options = training.TrainingOptions(row_length=64, batch_size=4, epochs=2, table_optimizer="adagrad", learning_rate=5e-3)
    dataset, window = training.setup.training_data(model, sequences, options)
    training.setup.compile_for(model, options, steps=2 * len(dataset), window=window)
    losses = model.fit(dataset, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    x, _, _ = batch(model, sequences)
    norm = next(layer for layer in model._flatten_layers() if layer.name == "number_norm")
    ends = []
    for pad in (0, 64):
        twin = kr.models.RankingModel.from_config(model.get_config())
        twin.set_weights(model.get_weights())
        wide = {
            name: np.pad(v, ((0, 0), (0, pad)) + ((0, 0),) * (v.ndim - 2), constant_values=0 if name == "request_slot" else 1)
            if name == "request_slot" or name.startswith("candidate_")
            else v
            for name, v in x.items()
        }
        twin(wide, training=True)
        ends.append(array(next(layer for layer in twin._flatten_layers() if layer.name == "number_norm").moving_mean.value))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)
    assert np.abs(ends[0] - array(norm.moving_mean.value)).max() > 1e-6, "control: moments do move"


@pytest.mark.release("jax")
def test_int8_tables(schema: kr.Schema, sequences: Any, tmp_path: Path) -> None:
    model = make(schema)
    small = kr.serving.quantize_embeddings(model)
    assert small.quantized and not model.quantized and kr.serving.quantize_embeddings(small) is small
    assert of_kind(small, QuantizedEmbedding) and not of_kind(small, keras.layers.Embedding)
    x, _, _ = batch(model, sequences)
    exact, rounded = array(model(x)["click"]), array(small(x)["click"])
    assert 0 < np.abs(exact - rounded).max() < 0.05
    small.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(kr.models.load(tmp_path)(x)["click"]), rounded)
    with pytest.raises(ValueError, match="`model` must be a RankingModel"):
        kr.serving.quantize_embeddings(keras.Sequential())
    table = next(layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding))
    table.embeddings.assign(np.full(table.embeddings.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="table '.*embeddings': `table` must be finite"):
        kr.serving.quantize_embeddings(model)


@pytest.mark.quickest
def test_exploration(schema: kr.Schema, sequences: Any) -> None:
    model = make(schema, preset="ads", explore=["click"])
    before = [array(w) for w in model.get_weights()]
    tensors = {**requests(sequences).tensors(np.arange(6), list(model.serving_model.input)), "seed": np.arange(6, dtype=np.int32)}
    greedy = {task: array(p) for task, p in model.serving_model({k: v for k, v in tensors.items() if k != "seed"}).items()}
    wide = {task: array(p) for task, p in model.explore_model(tensors).items()}
    spread = training.fit_exploration(model, sequences)["click"]
    assert np.isfinite(spread[sequences.target]).all() and (spread[sequences.target] > 0).all()
    for task, p in model.serving_model({k: v for k, v in tensors.items() if k != "seed"}).items():
        np.testing.assert_array_equal(array(p), greedy[task])  # the posterior moves no score without a seed
    narrow = {task: array(p) for task, p in model.explore_model(tensors).items()}
    again = {task: array(p) for task, p in model.explore_model(tensors).items()}
    np.testing.assert_array_equal(narrow["click"], again["click"])
    other = {task: array(p) for task, p in model.explore_model({**tensors, "seed": tensors["seed"] + 99}).items()}
    assert np.abs(other["click"] - narrow["click"]).max() > 1e-4
    real = np.arange(narrow["click"].shape[1])[None, :] < tensors["candidate_count"][:, None]
    assert np.abs(narrow["click"] - greedy["click"])[real].mean() < np.abs(wide["click"] - greedy["click"])[real].mean()
    np.testing.assert_allclose(narrow["contribution"], greedy["contribution"], atol=1e-6)  # not explored
    posterior = of_kind(model, BayesianLinear)[0]
    assert posterior.precision.trace() > len(posterior.precision)
    assert len(before) == len(model.get_weights())
    assert make(schema, preset="jobs").explore_model is None
    with pytest.raises(ValueError, match="must be made with `explore`"):
        training.fit_exploration(make(schema), sequences)


def test_random_effects(schema: kr.Schema, sequences: Any) -> None:
    model = make(schema, preset="jobs", random_effects={"click": "item_id"})
    plain = training.predict_events(model, model_requests(model, sequences))["click"][:, 0]
    fit = training.fit_random_effects(model, sequences, l2=2.0)["click"]
    moved = training.predict_events(model, model_requests(model, sequences))["click"][:, 0]
    label, ids = sequences.labels["click"], sequences.columns["item_id"]

    def loss(p: np.ndarray) -> float:
        return float(-np.mean(label * np.log(p) + (1 - label) * np.log1p(-p)))

    assert loss(moved) < loss(plain)
    logit = np.log(plain / (1 - plain))
    assert set(ids) == set(fit.ids)
    expected = 1 / (1 + np.exp(-logit - fit.effects[np.searchsorted(fit.ids, ids)]))
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    # an id that was not there adds exactly nothing
    unseen = next(row for row in range(1, 65536) if row not in set(fit.ids))
    x, _, _ = batch(model, sequences)
    x = {**x, "candidate_item_id": np.full_like(x["candidate_item_id"], unseen)}
    with_effects = array(model(x)["click"])
    model.last_layers("effects")["click"].effects.assign(np.zeros(model.last_layers("effects")["click"].rows, np.float32))
    np.testing.assert_array_equal(with_effects, array(model(x)["click"]))
    with pytest.raises(ValueError, match="must be made with `random_effects`"):
        training.fit_random_effects(make(schema), sequences)


@pytest.mark.slow
@pytest.mark.one_backend
def test_export_in_int8_with_exploration(schema: kr.Schema, sequences: Any, tmp_path: Path) -> None:
    """Three tasks, isotonic layers, int8 tables and both signatures: the graph in a fresh V1 session against Keras."""
    from keras_ranking.serving.protocol.model_folder import read_card
    from tests.invariants.test_processes import fresh_process

    tasks = (kr.Task("click"), kr.Task("contribution", label="like"), kr.Task("long_dwell", label="click"))
    # Cross layers at random weights give logits in the hundreds, whose rounding alone passes the bound: near the start.
    model = make(
        schema.model_copy(update={"tasks": tasks}),
        scale=0.02,
        explore=["click"],
        id_dim=128,
        calibration_features=("topic",),
        history_features=(),
    )
    labels = {**sequences.labels, "long_dwell": sequences.labels["click"]}
    training.fit_exploration(model, replace(sequences, schema=model.schema, labels=labels))
    version = kr.serving.export(model, tmp_path / "small", quantize="int8")
    card = read_card(version)
    assert card is not None and card.quantized and card.verified["largest_difference"] <= 1e-5
    small = kr.serving.quantize_embeddings(model)
    tensors = requests(sequences).tensors(np.arange(9), list(model.serving_model.input))
    for signature, graph, extra in (
        ("serving_default", small.serving_model, {}),
        ("explore", small.explore_model, {"seed": np.arange(9, dtype=np.int32)}),
    ):
        feed = {**tensors, **extra}
        np.savez(tmp_path / "in.npz", **feed, signature=signature)
        fresh_process(SESSION, version, tmp_path / "in.npz", tmp_path / "out.npz")
        out = dict(np.load(tmp_path / "out.npz"))
        assert sorted(out) == ["click", "contribution", "long_dwell"]
        for task, expected in graph(feed).items():
            np.testing.assert_allclose(out[task], array(expected), atol=1e-5)
        if signature == "serving_default":
            lost = max(np.abs(out[task] - array(exact)).max() for task, exact in model.serving_model(feed).items())
            assert 1e-5 < lost < 2e-2, f"control: int8 differs from float32, {lost}"
    assert np.abs(array(model.serving_model(tensors)["click"]) - out["click"]).max() > 1e-5, "control: other numbers than the greedy ones"

    tables = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding) and layer.output_dim == 128]
    held = [layer for layer in small._flatten_layers() if isinstance(layer, QuantizedEmbedding) and layer.dim == 128]
    before = sum(array(layer.embeddings.value).nbytes for layer in tables)
    after = sum(array(w.value).nbytes for layer in held for w in layer.weights)
    assert after < 0.3 * before
    on_disk = sum(file.stat().st_size for file in (version / "variables").iterdir())
    rest = sum(array(w.value).nbytes for w in model.weights) - before  # stays as it is
    assert on_disk - rest < 0.3 * before
    with pytest.raises(ValueError, match="`quantize` must be 'int8' or None"):
        kr.serving.export(model, tmp_path / "bad", quantize="int4")


SESSION = """
import sys, numpy as np, tensorflow as tf
folder, inputs_file, out_file = sys.argv[1:]
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    inputs = dict(np.load(inputs_file))
    signature = meta.signature_def[str(inputs.pop("signature"))]
    feed = {signature.inputs[name].name: x for name, x in inputs.items()}
    names = sorted(signature.outputs)
    values = session.run([signature.outputs[name].name for name in names], feed)
np.savez(out_file, **dict(zip(names, values)))
"""
