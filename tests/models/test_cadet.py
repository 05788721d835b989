"""The CADET builder: arguments, saving, training, and the weights behind its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack, requests
from tests.compiling import JIT

pytestmark = pytest.mark.usefixtures("quick_calls")

SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tower_hidden": (8,)}


def array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=10, days=2, seed=1)


@pytest.fixture(scope="module")
def schema(log: Any) -> kr.Schema:
    return log.schema.fit(log.events)


@pytest.fixture(scope="module")
def rows(log: Any, schema: kr.Schema) -> Any:
    return pack(build_sequences(log.events, schema), 128)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "`dim` must be a positive multiple"),
        ({"num_layers": 0}, "`num_layers` positive"),
        ({"delay": 0}, "`delay` must be at least 1"),
        ({"delay": 599}, "`delay` must be at least the schema's feedback_delay, 600"),
        ({"layout": "stacked"}, "`layout` must be"),
        ({"gates": ("value",)}, "`gates` must be of"),
        ({"tower_boundaries": (4, 1)}, "`tower_boundaries` must be increasing"),
        ({"tower_boundaries": (0,)}, "`tower_boundaries` must be increasing"),
        ({"serving_tower": 3}, "`serving_tower` must be from 0 to 2"),
        ({"serving": "mean"}, "`serving` must be 'tower' or 'mixture'"),
        ({"serving": "mixture"}, "`tower_prior` goes with serving='mixture'"),
        ({"serving": "mixture", "tower_prior": (0.5, 0.5)}, "`tower_prior` must be 3 shares that sum to 1"),
        ({"serving": "mixture", "tower_prior": (0.5, 0.5, 0.1)}, "`tower_prior` must be 3 shares that sum to 1"),
        ({"towers": "one"}, "`towers` must be one of"),
        ({"auxiliary_tasks": {"like": 0.0}}, "`auxiliary_tasks` must have positive weights"),
        ({"auxiliary_tasks": {"like": 0.1}, "tasks": ["click", "like"]}, "`auxiliary_tasks` must have positive weights"),
        ({"auxiliary_tasks": {"save": 0.1}}, "unknown task 'save'"),
        ({"rotate_by": "place"}, "`rotate_by` must be one of"),
        ({"rotate_by": "split", "num_kv_heads": 1}, "`num_kv_heads` must be even and `rotary` must be given with rotate_by='split'"),
        ({"mask": "session", "session_by": "gap", "session_gap": 60}, "`session_gap` must be at least `delay`"),
        ({"tasks": ["purchase"]}, "unknown task 'purchase'"),
        ({"calibration_options": {"step": 0.5}}, "`calibration_options` go with `calibration=True`"),
        ({"token_features": ["click"]}, "known only after scoring"),
        ({"late_features": ["position"]}, "known only after scoring"),
        ({"token_features": ["colour"]}, "not a feature of the schema"),
        ({"num_heads": 3, "dim": 12, "num_kv_heads": 2}, "`num_heads` must be a positive multiple of `num_kv_heads`"),
        ({"rotary": (9.0, 3.0)}, "`shortest` must be"),
    ],
)
def test_bad_arguments_are_named(schema: kr.Schema, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.models.CADET(schema, **{**SMALL, **arguments})


@pytest.mark.quickest
def test_towers_need_a_position(schema: kr.Schema) -> None:
    without = schema.model_copy(update={"position": None})
    assert kr.models.CADET(without, **SMALL).boundaries == ()
    with pytest.raises(ValueError, match="need a schema with a position"):
        kr.models.CADET(without, tower_boundaries=(1,), **SMALL)


@pytest.mark.quickest
def test_inputs_are_named_by_the_schema_and_hold_nothing_known_after_scoring(schema: kr.Schema) -> None:
    model = kr.models.CADET(schema, **SMALL)
    assert set(model.input_columns) == {"time", "segment", *(f.name for f in schema.inputs()), *(a.name for a in schema.actions)}
    candidates = {name for name in model.serving_model.input if name.startswith("candidate_")}
    assert candidates == {"candidate_count", *(f"candidate_{feature.name}" for feature in schema.inputs())}


@pytest.mark.parametrize(
    "arguments",
    [{}, pytest.param({"layout": "value", "gates": (), "num_kv_heads": 1}, marks=pytest.mark.quickest), {"dtype": "mixed_bfloat16"}],
)
def test_saved_and_loaded_models_are_the_same(schema: kr.Schema, rows: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = kr.models.CADET(schema, **SMALL, **arguments)
    inputs = PackedDataset(rows, 2, inputs=model.input_columns, shuffle=False)[0][0]
    model.save(tmp_path / "model.keras")
    loaded = kr.models.load(tmp_path)
    assert loaded.arguments == model.arguments and loaded.schema == schema
    for task, logits in model(inputs).items():
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        np.testing.assert_array_equal(array(logits), array(loaded(inputs)[task]))


@pytest.mark.quickest
def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        kr.models.load(tmp_path)
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="not a ranking model"):
        kr.models.load(tmp_path)


@pytest.mark.slow
def test_only_the_observed_tower_is_trained(schema: kr.Schema, log: Any) -> None:
    model = kr.models.CADET(schema, tasks=["click"], **SMALL)
    sequences = build_sequences(log.events, schema, target=(log.events["position"] == 1).to_numpy())
    dataset = PackedDataset(pack(sequences, 128), 2, inputs=model.input_columns, tasks=model.tasks)
    towers = next(layer for layer in model.layers if layer.name == "towers_click")
    before = [[array(w) for layer in tower for w in layer.weights] for tower in towers.towers]
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=model.losses_by_task(), jit_compile=JIT)
    model.fit(dataset, epochs=1, verbose=0)
    after = [[array(w) for layer in tower for w in layer.weights] for tower in towers.towers]
    moved = [max(np.abs(a - b).max() for a, b in zip(x, y, strict=True)) for x, y in zip(before, after, strict=True)]
    assert moved[0] > 0 and moved[1] == moved[2] == 0


def moved(model: Any, scale: float = 0.3) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, scale, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def served(model: Any, log: Any, schema: kr.Schema) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Outputs of the serving graph for two requests, and which slots count."""
    tensors = requests(build_sequences(log.events, schema)).tensors([3, 20], list(model.serving_model.input))
    out = {name: array(value) for name, value in model.serving_model(tensors).items()}
    real = np.arange(out["click"].shape[1])[None, :] < tensors["candidate_count"][:, None]
    return out, real


@pytest.mark.quickest
def test_a_mixture_of_towers_is_a_mixture_of_probabilities(schema: kr.Schema, log: Any) -> None:
    prior = (0.5, 0.3, 0.2)
    model = moved(kr.models.CADET(schema, serving="mixture", tower_prior=prior, **SMALL))
    out, real = served(model, log, schema)
    towers = out["click_by_position"][real].astype("float64")
    np.testing.assert_allclose(out["click"][real], towers @ np.array(prior), rtol=1e-5)
    np.testing.assert_allclose(model.served(towers), towers @ np.array(prior), rtol=1e-12)
    assert np.abs(out["click"][real] - towers[:, 0]).max() > 1e-3  # control: no tower alone


@pytest.mark.quickest
def test_a_fixed_tower_is_served(schema: kr.Schema, log: Any) -> None:
    model = moved(kr.models.CADET(schema, serving_tower=2, **SMALL))
    out, real = served(model, log, schema)
    np.testing.assert_array_equal(out["click"], out["click_by_position"][..., 2])
    assert np.abs(out["click"] - out["click_by_position"][..., 0])[real].max() > 1e-3


@pytest.mark.quickest
def test_auxiliary_tasks_are_trained_with_their_weight_and_not_served(schema: kr.Schema, rows: Any, log: Any) -> None:
    model = kr.models.CADET(schema, auxiliary_tasks={"like": 0.25}, **SMALL)
    assert model.tasks == ["click", "like"] and model.arguments["tasks"] == ["click"]
    assert set(served(model, log, schema)[0]) == {"click", "click_by_position"}
    dataset = PackedDataset(rows, 2, inputs=model.input_columns, tasks=model.tasks, shuffle=False)
    x, y, weights = dataset[0]
    model.compile(keras.optimizers.SGD(0.0), loss=model.losses_by_task(), jit_compile=False)
    total = model.evaluate(x, y, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    one = {task: float(model.losses_by_task()[task](y[task], model(x)[task], sample_weight=weights[task])) for task in model.tasks}
    np.testing.assert_allclose(total["loss"], one["click"] + 0.25 * one["like"], rtol=1e-4)
    # Weights that are given take precedence, and the sum of both tasks is another number.
    model.compile(keras.optimizers.SGD(0.0), loss=model.losses_by_task(), loss_weights={"like": 2.0}, jit_compile=False)
    total = model.evaluate(x, y, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    np.testing.assert_allclose(total["loss"], one["click"] + 2.0 * one["like"], rtol=1e-4)


@pytest.mark.parametrize("arguments", [{"calibration": True}, {"towers": "position_feature", "serving_tower": 1, "calibration": True}])
@pytest.mark.quickest
def test_calibration_and_position_as_a_feature(schema: kr.Schema, log: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = kr.models.CADET(schema, **SMALL, **arguments)
    keras.utils.set_random_seed(3)
    plain = kr.models.CADET(schema, **SMALL, **{**arguments, "calibration": False})
    before, real = served(model, log, schema)
    without, _ = served(plain, log, schema)
    np.testing.assert_allclose(before["click_by_position"], without["click_by_position"], atol=1e-6)  # the identity at first
    after, _ = served(moved(model), log, schema)
    assert np.abs(after["click_by_position"][..., 0] - after["click_by_position"][..., 2])[real].max() > 1e-3
    np.testing.assert_array_equal(after["click"], after["click_by_position"][..., model.serving_tower])
    assert "position" not in model.input_columns
    model.save(tmp_path / "model.keras")
    again, _ = served(kr.models.load(tmp_path), log, schema)
    np.testing.assert_array_equal(again["click"], after["click"])


@pytest.mark.quickest
def test_words_for_gates_are_lists_of_gates(schema: kr.Schema) -> None:
    words = {"none": [], "representation": ["representation"], "qk": ["query", "key"], "output": ["output"]}
    words["all"] = ["representation", "query", "key"]
    for word, gates in words.items():
        model = kr.models.CADET(schema, gates=word, **SMALL)
        assert model.arguments["gates"] == gates
        assert list(next(layer for layer in model.layers if layer.name == "block_0").attention.gate_maps) == gates


@pytest.mark.parametrize("layout", ["interleaved", "value"])
@pytest.mark.parametrize("window", [0, 4, 1000])
@pytest.mark.quickest
def test_attention_weights_of_a_window_stand_at_its_events(schema: kr.Schema, log: Any, layout: str, window: int) -> None:
    model = kr.models.CADET(schema, layout=layout, max_history=window, **SMALL)
    asked = requests(build_sequences(log.events, schema))
    length = asked.history_end - asked.history_begin
    tensors = asked.tensors([int(np.argmax(length)), int(np.argmin(length))], list(model.serving_model.input))
    weights = model.attention(model.encode(tensors), tensors)
    slots = tensors["history_time"].shape[1]
    assert weights.shape == (1, 2, tensors["candidate_item_id"].shape[1], slots)
    visible = (tensors["history_time"] <= tensors["request_time"][:, None] - model.arguments["delay"]).sum(axis=1)[0]
    place = np.arange(slots)
    read = (place < visible) & (place >= visible - window)
    assert visible > 8 and read.sum() == min(window, visible)
    assert (weights[0, 0][:, read] > 0).all() and (weights[0, 0][:, ~read] == 0).all() and (weights[0, 1] == 0).all()
    if layout == "value" and window:
        np.testing.assert_allclose(weights[0, 0].sum(axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("layout", ["interleaved", "fused", "value"])
@pytest.mark.quickest
def test_attention_weights_are_those_of_the_scores(schema: kr.Schema, log: Any, layout: str) -> None:
    model = kr.models.CADET(schema, layout=layout, num_kv_heads=1, **SMALL)
    asked = requests(build_sequences(log.events, schema))
    length = asked.history_end - asked.history_begin
    which = [int(np.argmax(length)), int(np.argmin(length))]
    tensors = asked.tensors(which, list(model.serving_model.input))
    cache = model.encode(tensors)
    weights = model.attention(cache, tensors)
    assert weights.shape == (1, 2, tensors["candidate_item_id"].shape[1], tensors["history_time"].shape[1])
    visible = tensors["history_time"] <= tensors["request_time"][:, None] - model.arguments["delay"]
    visible &= np.arange(visible.shape[1])[None, :] < tensors["history_length"][:, None]
    assert (weights[0, 0][:, visible[0]] > 0).all() and (weights[0, 0][:, ~visible[0]] == 0).all()
    assert (weights[0, 1] == 0).all(), "an empty history has no weight on anything"
    if layout == "value":
        np.testing.assert_allclose(weights[0, 0].sum(axis=-1), 1.0, rtol=1e-5)
    # The block's output from these very weights, by hand.
    block = next(layer for layer in model.layers if layer.name == "block_0")
    parts = model._graphs.wiring
    x, places, seen = parts._candidates(cache, {name: keras.ops.convert_to_tensor(v) for name, v in tensors.items()})
    normed = block.attention_norm(x)
    keys = (cache["key"][:, 0], cache["value"][:, 0], seen)
    own = layout != "value"
    full = array(block.attention.candidate_weights(normed, **places, cache=keys, see_self=own))
    heads = full.shape[1]
    value = np.repeat(array(cache["value"])[:, 0], heads, axis=2)
    out = np.einsum("bhnl,blhd->bnhd", full[..., :-1], value)
    if own:
        out += np.transpose(full[..., -1:], (0, 2, 1, 3)) * np.repeat(array(block.attention._project(normed, **places)[2]), heads, axis=2)
    expected = array(block.attention.output_map(keras.ops.convert_to_tensor(out.reshape(*out.shape[:2], -1).astype("float32"))))
    np.testing.assert_allclose(array(block.attention(normed, **places, cache=keys, see_self=own)), expected, atol=1e-5)
