"""`list_context`, `list_pooling` and `choice`: the same in rows and in requests, whatever the order; a candidate sees the others."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, pack, requests

pytestmark = pytest.mark.usefixtures("quick_calls")

SIZES: dict[str, dict[str, Any]] = {
    "LiRank": {"hidden": (8,), "cross_layers": 1, "rank": 2, "max_history": 4, "history_options": {"num_layers": 1, "latest": 2}},
    "AmortizedDLRM": {"hidden": (8,), "cross_layers": 1, "rank": 2, "dim": 8, "num_layers": 1, "max_history": 4},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "setwise_layers": 0, "max_history": 4},
    "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_boundaries": (), "tower_hidden": (8,)},
    "FeedSR": {"dim": 8, "num_layers": 1, "num_heads": 2, "position_offsets": 0, "head_options": {"hidden": (8,)}},
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=10, days=3, seed=1)


def make(log: Any, kind: str, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    options = {"tasks": ("click",), "id_dim": 4, **SIZES[kind], **settings}
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **options)
    rng = np.random.default_rng(0)
    model.set_weights([w + (0.05 * rng.normal(size=w.shape)).astype(w.dtype) if w.dtype == "float32" else w for w in model.get_weights()])
    return model


def served(model: Any, found: Any, which: np.ndarray, order: Any = None, **change: Any) -> np.ndarray:
    tensors = found.tensors(which, list(model.serving_model.input))
    for name, value in list(tensors.items()):
        if order is not None and name.startswith("candidate_") and value.ndim > 1:
            tensors[name] = value[:, order]
    tensors |= {name: function(tensors[name]) for name, function in change.items()}
    return np.asarray(keras.ops.convert_to_numpy(model.serving_model(tensors)["click"]))


CHOICE = {"choice": ("click",), "choice_several": "split"}
LISTS = {
    "context": {"list_context": True},
    "pooling": {"list_pooling": 8},
    "both": {"list_context": True, "list_pooling": 8},
    "choice": CHOICE,
    "all": {"list_context": True, "list_pooling": 8, **CHOICE},
}
CASES = [
    *(("LiRank", {"history_features": ()}, lists) for lists in ("context", "pooling", "all")),
    *(("AmortizedDLRM", {}, lists) for lists in ("both", "choice")),
    ("LiRank", {"calibration": True, "dtype": "mixed_bfloat16"}, "all"),
    ("LiGR", {}, "context"),
    ("LiGR", {"setwise_layers": 1, "top_k": 3, "history_features": ()}, "choice"),
    *(("CADET", {}, lists) for lists in ("context", "pooling")),
    ("CADET", {"calibration": True, "mask": "session"}, "choice"),
    *(("CADET", {"layout": layout, "max_history": 5}, "all") for layout in ("value", "fused")),
    ("FeedSR", {"past_linear": 1, "past_logit": True}, "all"),
]


def offline(model: Any, sequences: Any) -> np.ndarray:
    rows = kr.training.model_requests(model, sequences) if model.form == "requests" else pack(sequences, 256)
    return kr.training.predict_events(model, rows)["click"].reshape(-1)


@pytest.mark.parametrize(("kind", "settings", "lists"), CASES)
@pytest.mark.quickest
def test_rows_and_requests_agree(log: Any, kind: str, settings: dict[str, Any], lists: str) -> None:
    model = make(log, kind, **LISTS[lists], **settings)
    sequences = build_sequences(log.events, model.schema)
    other = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    tolerance = 2e-6 if "dtype" not in settings else 2e-2
    np.testing.assert_allclose(other, offline(model, sequences), rtol=0, atol=tolerance)
    found = requests(sequences)
    which = np.flatnonzero(found.candidate_end - found.candidate_begin > 2)[:3]
    first = served(model, found, which)
    counts = found.tensors(which, ["candidate_count"])["candidate_count"]
    size = int(counts.min())
    order = np.r_[np.arange(size)[::-1], np.arange(size, first.shape[1])]
    same = counts == size
    np.testing.assert_allclose(served(model, found, which, order)[same], first[same][:, order], rtol=0, atol=tolerance)

    def raised(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[:, 0] += 3.0
        return values

    moved = served(model, found, which, candidate_age_hours=raised)
    assert np.abs(moved - first)[:, 1:size].max() > 1e-4
    if not settings.get("setwise_layers"):
        alone = make(log, kind, **settings)  # control: without it a candidate is scored alone
        others = served(alone, found, which)[:, 1:size]
        np.testing.assert_allclose(served(alone, found, which, candidate_age_hours=raised)[:, 1:size], others, atol=1e-7)
    whole = found.tensors(which, list(model.serving_model.input))
    cached = keras.ops.convert_to_numpy(model.score(model.encode(whole), whole)["click"])
    real = np.arange(first.shape[1]) < counts[:, None]
    np.testing.assert_allclose((1 / (1 + np.exp(-cached[..., 0])))[real], first[real], rtol=0, atol=tolerance)


@pytest.mark.quickest
def test_saving_training_and_exploring(log: Any, tmp_path: Any) -> None:
    options = {**SIZES["LiRank"], **LISTS["both"], "history_features": (), "id_dim": 4, "explore": ("click",)}
    model, history = kr.training.train(log, "lirank", epochs=1, options=options, verbose=False)
    assert np.isfinite(history["epochs"]["loss"]).all() and model.arguments["list_pooling"] == 8
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    sequences = build_sequences(log.events, model.schema)
    first = kr.training.predict_served(model, sequences)["click"]
    np.testing.assert_array_equal(kr.training.predict_served(again, sequences)["click"], first)
    found = requests(sequences)
    graph = model.explore_model if hasattr(model, "explore_model") else model._graphs.wiring.explore("explore")
    tensors = found.tensors(np.arange(3), [name for name in graph.input if name != "seed"])
    out = graph({**tensors, "seed": np.arange(3, dtype="int32")})
    assert np.isfinite(keras.ops.convert_to_numpy(out["click"])).all()
    assert not {"list_context", "list_pooling"} & set(make(log, "LiRank").arguments)


@pytest.mark.quickest
@pytest.mark.parametrize("kind", ["CADET", "LiRank"])
def test_probabilities_of_a_request_sum_to_one_with_that_of_no_choice(log: Any, kind: str) -> None:
    model = make(log, kind, **CHOICE)
    sequences = build_sequences(log.events, model.schema)
    found = requests(sequences)
    share = np.nansum(np.where(found.candidate_index(np.arange(len(found))) >= 0, served(model, found, np.arange(len(found))), 0), axis=1)
    layer = model._graphs.wiring.choices.layers["click"]
    constant, slope = (float(keras.ops.convert_to_numpy(weight)) for weight in layer.weights)
    given = {**SIZES[kind], "id_dim": 4, "tasks": ("click",)}
    plain = getattr(kr.models, kind)(model.schema, **given)
    kept = {id(weight) for weight in layer.weights}
    plain.set_weights([keras.ops.convert_to_numpy(weight) for weight in model.weights if id(weight) not in kept])
    # z of each candidate: from the model without its last layer.
    z = -np.log(1 / offline(plain, sequences) - 1)
    for request in range(len(found)):
        index = np.arange(found.candidate_begin[request], found.candidate_end[request])
        none = np.exp(constant + slope * np.log(len(index)))
        assert share[request] + none / (none + np.exp(z[index]).sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.quickest
@pytest.mark.parametrize("kind", ["cadet", "ligr"])
def test_training_on_choices(log: Any, kind: str, tmp_path: Any) -> None:
    options = {**SIZES[{"cadet": "CADET", "ligr": "LiGR"}[kind]], "id_dim": 4, **CHOICE, "list_context": True, "row_length": 64}
    options |= {"setwise_layers": 1} if kind == "ligr" else {}
    model, history = kr.training.train(log, kind, epochs=1, options=options, verbose=False)
    assert np.isfinite(history["epochs"]["loss"]).all() and model.arguments["choice"] == ["click"]
    losses = model.losses_by_task(listwise_weight=0.1)
    assert {task: type(loss).__name__ for task, loss in losses.items()} == {"click": "InRequestChoice", "like": "ObservedTowerLoss"}
    assert losses["click"].several == "split"
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    sequences = build_sequences(log.events, model.schema)
    first = offline(model, sequences)
    np.testing.assert_array_equal(offline(again, sequences), first)
    assert not {"choice", "list_context", "choice_several"} & set(make(log, {"cadet": "CADET", "ligr": "LiGR"}[kind]).arguments)


@pytest.mark.quickest
@pytest.mark.parametrize("kind", list(SIZES))
def test_a_listwise_loss_next_to_binary_ones(log: Any, kind: str) -> None:
    """`listwise_weight` of every model: one weighted sum of all tasks, each with its list."""
    model = make(log, kind, tasks=("click", "like"), **({"history_features": ()} if kind == "LiRank" else {}))
    sequences = build_sequences(log.events, model.schema)
    if model.form == "requests":
        data = kr.data.PackedRequests(kr.training.model_requests(model, sequences), 64, 4, names=model.input_columns, tasks=model.tasks)
    else:
        data = kr.data.PackedDataset(pack(sequences, 64), 4, inputs=model.input_columns, tasks=model.tasks)
    x, y, weights = data[0]
    model.compile(loss=model.losses_by_task(listwise_weight=0.5), loss_weights={"click": 1.0, "like": 0.25})
    outputs = {task: keras.ops.convert_to_tensor(value) for task, value in model(x, training=False).items()}
    whole = float(model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weights, training=False))
    parts = {"click": 1.0, "like": 0.25}
    binary, lists = (
        sum(part * float(loss(y[task], outputs[task], weights[task])) for task, part in parts.items())
        for loss in (kr.losses.ObservedTowerLoss(), kr.losses.InRequestSoftmax())
    )
    assert whole == pytest.approx(binary + 0.5 * lists, rel=1e-5)
    assert lists > 0.1


@pytest.mark.quickest
def test_requests_with_several_positives_are_refused(log: Any) -> None:
    with pytest.raises(ValueError, match=r"task 'click' is a choice.*\d of \d+ requests with several positives: rows \[\d+, "):
        kr.training.train(log, "lirank", epochs=1, options={**SIZES["LiRank"], "choice": ("click",)}, verbose=False)
    model = make(log, "CADET", choice=("click",))
    model.compile(loss=model.losses_by_task())
    rows = pack(build_sequences(log.events, model.schema), 64)
    batch = kr.data.PackedDataset(rows, 8, inputs=model.input_columns, tasks=["click"])[0]
    with pytest.raises(ValueError, match=r"task 'click': `y_true` must hold at most one positive for each request.* requests with more"):
        model.train_on_batch(*batch)


@pytest.mark.quickest
def test_errors(log: Any) -> None:
    with pytest.raises(ValueError, match="needs at least one number"):
        make(log, "LiRank", list_context=True, features=("topic",))
    for option in ({"list_context": True}, {"list_pooling": 8}):
        with pytest.raises(ValueError, match="does not go with fusion='append_self'"):
            make(log, "AmortizedDLRM", fusion="append_self", **option)
    with pytest.raises(ValueError, match="`list_pooling` must be a positive width, or 0. Received: list_pooling=-1"):
        make(log, "LiRank", list_pooling=-1)
    with pytest.raises(ValueError, match="`list_pooling` is not for LiGR, whose `setwise_layers` read the list"):
        make(log, "LiGR", list_pooling=8)
    with pytest.raises(ValueError, match=r"`choice` must hold no task of a model with towers.*; `tower_boundaries=\(\)` has one"):
        make(log, "CADET", choice=("click",), tower_boundaries=(1,))
    with pytest.raises(ValueError, match="`choice` must hold no task of a model with offsets by position; `position_offsets=0` has none"):
        make(log, "FeedSR", choice=("click",), position_offsets=3, serving_position=1)
    with pytest.raises(ValueError, match="`choice` must hold no task of `random_effects` or `explore`, which are fitted to a logit"):
        make(log, "LiRank", choice=("click",), explore=("click",))
    with pytest.raises(ValueError, match=r"`choice` must hold tasks of \['click'\], each once. Received: choice=\['buy'\]"):
        make(log, "LiGR", choice=("buy",))
    with pytest.raises(ValueError, match="`choice` does not go with fusion='append_self'"):
        make(log, "AmortizedDLRM", fusion="append_self", choice=("click",))
    with pytest.raises(ValueError, match="`choice_none` has no effect without `choice`. Received: choice=\\(\\)"):
        make(log, "LiRank", choice_none="constant")
    with pytest.raises(ValueError, match="`choice_several` must be one of"):
        make(log, "LiRank", choice=("click",), choice_several="first")
    with pytest.raises(ValueError, match="`list_context` needs a number among `token_features` and `late_features`. Received: none"):
        make(log, "CADET", list_context=True, token_features=("topic",), late_features=())
    with pytest.raises(ValueError, match=r"tasks in the model's `choice` alone, \[\]. Received: InRequestChoice for \['click'\]"):
        make(log, "LiRank").compile(loss=kr.losses.InRequestChoice())
