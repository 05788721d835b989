"""Models trained on requests, where paths cross: hidden events and a short window, growing caches, auxiliary losses, empty fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedRequests, build_sequences, requests
from tests.compiling import JIT
from tests.models.test_max_history import array, randomise

pytestmark = pytest.mark.usefixtures("quick_calls")

LIGR: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "action_dim": 4, "tasks": ["click"]}
DLRM: dict[str, Any] = {"dim": 8, "num_layers": 1, "hidden": (8,), "rank": 4, "id_dim": 4, "action_dim": 4, "tasks": ["click"]}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=8, days=6, seed=1, feedback_delay=900)


def made(log: Any, kind: str, **arguments: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **arguments)
    randomise(model)
    return model


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("LiGR", {**LIGR, "max_history": 5}),
        ("LiGR", {**LIGR, "max_history": 5, "history_mask": "causal", "rotary": None}),
        ("AmortizedDLRM", {**DLRM, "max_history": 5, "history_mask": "causal"}),
        ("AmortizedDLRM", {**DLRM, "max_history": 5}),
        ("AmortizedDLRM", {**DLRM, "max_history": 5, "fusion": "concat"}),
        ("AmortizedDLRM", {**DLRM, "max_history": 5, "fusion": "convolution", "pool": True, "widths": (1, 3)}),
    ],
)
@pytest.mark.quickest
def test_a_request_reads_the_latest_events_that_are_visible(log: Any, kind: str, arguments: dict[str, Any]) -> None:
    """Events that are too young are sent as well: they take no place in the window, as in training."""
    model = made(log, kind, **arguments)
    sequences = build_sequences(log.events, model.schema)
    everything, cut = requests(sequences), requests(sequences, max_history=5, delay=model.arguments["delay"])
    sent, read = (found.history_end - found.history_begin for found in (everything, cut))
    younger = everything.history_end - cut.history_end
    which = np.flatnonzero((younger > 0) & (younger < 30) & (read == 5))[:6]
    assert len(which) >= 3 and (sent[which] > 10).all()
    names = list(model.serving_model.input)
    one, other = (array(model.serving_model(found.tensors(which, names))["click"]) for found in (everything, cut))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert one.std() > 1e-3


@pytest.mark.parametrize("rotation", [{"rotary": None}, {"rotate_by": "index"}, {}])
@pytest.mark.quickest
def test_a_cache_grows_whatever_the_rotation(log: Any, rotation: dict[str, Any]) -> None:
    model = made(log, "AmortizedDLRM", **DLRM, history_mask="causal", max_history=64, **rotation)
    found = requests(build_sequences(log.events, model.schema), max_history=40)
    which = [int(np.argmax(found.history_end - found.history_begin))]
    tensors = found.tensors(which, [*model.encoder.input, *model.serving_model.input])
    length = int(tensors["history_length"][0])
    history = {name: tensors[name] for name in model.encoder.input}
    first = {name: x[:, : length - 7] if x.ndim > 1 else x - 7 for name, x in history.items()}
    rest = {name: x[:, length - 7 : length] if x.ndim > 1 else x * 0 + 7 for name, x in history.items()}
    grown, whole = model.extend(model.encode(first), rest), model.encode(history)
    for cache in (grown, whole):
        assert int(array(cache["length"])[0]) == length
    scores = [array(model.score(cache, tensors)["click"]) for cache in (grown, whole)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.quickest
def test_lirank_serves_with_an_appended_history(log: Any) -> None:
    arguments = {name: value for name, value in DLRM.items() if name not in ("dim", "num_layers")}
    options = {"fusion": "append_cross", "num_layers": 1, "num_heads": 2, "rotary": (8.0, 1e6)}
    model = made(log, "LiRank", **arguments, max_history=5, history_features=["topic"], history_options=options)
    found = requests(build_sequences(log.events, model.schema), max_history=5, delay=model.arguments["delay"])
    which = np.flatnonzero(found.history_end > found.history_begin)[-4:]
    served = array(model.serving_model(found.tensors(which, list(model.serving_model.input)))["click"])
    expected = kr.training.predict_events(model, found)["click"][:, 0]
    index = found.candidate_index(which)
    real = np.arange(served.shape[1]) < (found.candidate_end - found.candidate_begin)[which][:, None]
    np.testing.assert_allclose(served[real], expected[index[real]], atol=1e-5)


@pytest.mark.quickest
def test_weights_and_fisher_information_know_of_pointwise_losses(log: Any) -> None:
    model = made(log, "LiGR", **{**LIGR, "tasks": ["click", "like"]}, max_history=5)
    found = requests(build_sequences(log.events, model.schema), max_history=5, delay=model.arguments["delay"])
    x, y, weight = PackedRequests(found, 64, 2, names=model.input_columns, tasks=model.tasks)[0]

    def loss(**weights: float) -> float:
        model.compile("sgd", model.losses_by_task(), loss_weights=weights or None, jit_compile=False)
        return float(array(model.compute_loss(x=x, y=y, y_pred=model(x), sample_weight=weight, training=False)))

    both, click, like = loss(), loss(click=1.0, like=0.0), loss(click=0.0, like=1.0)
    assert click > 0 and like > 0
    assert both == pytest.approx(click + like, rel=1e-5)
    assert loss(click=2.0, like=0.0) == pytest.approx(2 * click, rel=1e-5)
    assert loss(click=0.0, like=0.0) == 0

    single = PackedRequests(found, 64, 4, names=model.input_columns, tasks=model.tasks, single=True, shuffle=False)

    class Few(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, batch: int) -> Any:
            return single[batch]

    model.compile("sgd", model.losses_by_task(), jit_compile=False)
    both_losses = kr.training.FisherSnapshot.measure(model, Few())
    without = made(log, "LiGR", **{**LIGR, "tasks": ["click", "like"]}, max_history=5, pointwise_weight=0.0)
    without.compile("sgd", without.losses_by_task(), jit_compile=False)
    alone = kr.training.FisherSnapshot.measure(without, Few())
    sums = [sum(float(values.sum()) for values in found.fisher.values()) for found in (both_losses, alone)]
    assert sums[0] > 1.01 * sums[1] > 0


def test_random_effects_stay_where_there_is_nothing_to_fit(log: Any) -> None:
    arguments = {name: value for name, value in DLRM.items() if name not in ("dim", "num_layers")}
    model = made(log, "LiRank", **arguments, history_features=(), random_effects={"click": "item_id"})
    effects = model.last_layers("effects")["click"].effects
    effects.assign(np.full(effects.shape, 0.25, dtype="float32"))
    sequences = build_sequences(log.events, model.schema)
    sequences = replace(sequences, labels={task: np.full_like(label, np.nan) for task, label in sequences.labels.items()})
    with pytest.raises(ValueError, match="no event with a known label and a known id for task 'click'"):
        kr.training.fit_random_effects(model, sequences)
    assert (array(effects) == 0.25).all()


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("AmortizedDLRM", {"fusion": "concat", "history_mask": "causal"}, "fusion='concat' always pools"),
        ("AmortizedDLRM", {"history_options": {"rotary": None}}, "`history_options` are those of LiRank's own encoder"),
    ],
)
def test_options_without_effect_are_refused(log: Any, kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(kr.models, kind)(log.schema, **arguments)


STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("LiGR", {**LIGR, "max_history": 9}),
    ("AmortizedDLRM", {**DLRM, "max_history": 9, "history_mask": "causal", "fusion": "append_falcon"}),
    ("AmortizedDLRM", {**DLRM, "max_history": 9}),
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "arguments"), STREAMS, ids=["sessions", "causal", "bidirectional"])
def test_shared_streams_have_the_scores_of_copies(log: Any, name: str, arguments: dict[str, Any]) -> None:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, name)(log.schema.fit(log.events), **arguments)
    found = kr.training.model_requests(model, build_sequences(log.events, model.schema))
    assert ("stream_prefix" in model.stream_columns) == (name == "LiGR" or "history_mask" in arguments)
    scores = []
    for names in (model.input_columns, model.stream_columns):
        dataset = PackedRequests(found, 64, 2, names=names, tasks=model.tasks, shuffle=False)
        found_by_row = [array(model.predict_on_batch(dataset[batch][0])["click"]) for batch in range(len(dataset))]
        scores.append(dataset.scatter(np.concatenate(found_by_row)[: len(dataset.slots)]))
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert np.isfinite(scores[0]).all()
    model.compile("sgd", model.losses_by_task(), jit_compile=JIT)
    before = [array(variable) for variable in model.trainable_variables]
    model.fit(PackedRequests(found, 64, 2, names=model.stream_columns, tasks=model.tasks), epochs=1, verbose=0)
    assert all(np.isfinite(array(variable)).all() for variable in model.trainable_variables)
    assert any((array(variable) != value).any() for variable, value in zip(model.trainable_variables, before, strict=True))


@pytest.mark.quickest
def test_models_without_streams(log: Any) -> None:
    assert made(log, "LiRank", max_history=5, hidden=(8,), cross="none").stream_columns == []
    assert made(log, "AmortizedDLRM", **DLRM, pool=True).stream_columns == []
