"""`Past` of LiRank, AmortizedDLRM and LiGR: the same in streams, rows, requests and caches, and nothing of what is not yet known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedRequests, Sequences, build_sequences, requests
from tests.models.test_max_history import array

pytestmark = pytest.mark.usefixtures("quick_calls")

DELAY, WINDOW = 900, 7
PAST: dict[str, Any] = {"past_heads": 2, "past_linear": 1, "past_matches": ("author_id", "topic"), "past_dim": 4}
RANKER: dict[str, Any] = {"hidden": (8,), "rank": 4, "id_dim": 4, "action_dim": 4, "max_history": WINDOW, "tasks": ["click"]}
DLRM: dict[str, Any] = {**RANKER, "dim": 8, "num_layers": 1}
LIGR: dict[str, Any] = {
    "dim": 8,
    "num_heads": 2,
    "num_layers": 1,
    "id_dim": 4,
    "action_dim": 4,
    "max_history": WINDOW,
    "tasks": ["click"],
    "top_k": 3,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lirank": ("LiRank", RANKER),
    "lirank appended": ("LiRank", {**RANKER, "history_options": {"fusion": "append_cross", "num_layers": 1}}),
    "dlrm": ("AmortizedDLRM", DLRM),
    "dlrm causal": ("AmortizedDLRM", {**DLRM, "fusion": "append_falcon", "history_mask": "causal"}),
    "dlrm pooled": ("AmortizedDLRM", {**DLRM, "pool": True, "latest": 2}),
    "dlrm concat": ("AmortizedDLRM", {**DLRM, "fusion": "concat"}),
    "dlrm convolution": ("AmortizedDLRM", {**DLRM, "fusion": "convolution"}),
    "ligr": ("LiGR", LIGR),
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=8, days=5, seed=1, feedback_delay=DELAY)


def randomise(model: Any, scale: float = 0.1) -> None:
    """Weights far from their initial values, at a scale at which products of cross layers stay small."""
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, scale, w.shape).astype(w.dtype) for w in model.get_weights()])


def made(log: Any, name: str, **more: Any) -> Any:
    keras.utils.set_random_seed(0)
    kind, arguments = MODELS[name]
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **{**arguments, **PAST, **more})
    randomise(model, 0.05 if name == "lirank" else 0.1)  # its logits are of the size of the others' then
    return model


def by_event(model: Any, sequences: Sequences, names: Any) -> np.ndarray:
    """(E,) logits of a pass over rows of slots."""
    found = kr.training.model_requests(model, sequences)
    dataset = PackedRequests(found, 64, 4, names=names, tasks=model.tasks, shuffle=False)
    rows = [array(model.predict_on_batch(dataset[batch][0])["click"]) for batch in range(len(dataset))]
    scores: np.ndarray = dataset.scatter(np.concatenate(rows)[: len(dataset.slots)])[:, 0]
    return scores


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.quickest
def test_streams_rows_and_requests_agree(log: Any, name: str) -> None:
    model = made(log, name)
    sequences = build_sequences(log.events, model.schema)
    assert bool(model.stream_columns) == (name in ("dlrm", "dlrm causal", "ligr", "lirank appended"))
    served = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    for names in filter(None, (model.input_columns, model.stream_columns)):
        np.testing.assert_allclose(sigmoid(by_event(model, sequences, names)), served, rtol=0, atol=2e-6)
    assert served.std() > 0.02


@pytest.mark.quickest
def test_each_candidate_as_a_request_of_its_own(log: Any) -> None:
    """fusion='append_self', whose rows are read so."""
    model = made(log, "dlrm", fusion="append_self")
    sequences = build_sequences(log.events, model.schema)
    packed, found = by_event(model, sequences, model.input_columns), requests(sequences)
    which = np.argsort(found.history_begin - found.history_end, kind="stable")[:4]
    tensors, index = found.tensors(which, list(model.serving_model.input)), found.candidate_index(which)
    for place in range(3):
        one = {key: x[:, place : place + 1] if key.startswith("candidate_") and x.ndim > 1 else x for key, x in tensors.items()}
        served = array(model.serving_model({**one, "candidate_count": np.ones(4, "int32")})["click"])[:, 0]
        np.testing.assert_allclose(served, sigmoid(packed[index[:, place]]), rtol=0, atol=2e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["lirank", "dlrm causal", "ligr"])
def test_what_is_read_moves_scores_on_every_backend(log: Any, name: str) -> None:
    """Rows or streams and requests; without the weights of the past the scores are others."""
    model = made(log, name)
    sequences = build_sequences(log.events, model.schema)
    packed = by_event(model, sequences, model.stream_columns or model.input_columns)
    found = requests(sequences)
    which = np.argsort(found.history_begin - found.history_end, kind="stable")[:4]
    served = array(model.serving_model(found.tensors(which, list(model.serving_model.input)))["click"])
    index = found.candidate_index(which)
    real = np.arange(served.shape[1]) < (found.candidate_end - found.candidate_begin)[which][:, None]
    np.testing.assert_allclose(served[real], sigmoid(packed[index[real]]), rtol=0, atol=2e-6)
    for weight in model.weights:
        if "past_" in weight.path:
            weight.assign(array(weight) * 0)
    without = array(model.serving_model(found.tensors(which, list(model.serving_model.input)))["click"])
    assert np.abs(without - served)[real].max() > 1e-3


@pytest.mark.quickest
def test_exact_matches_against_the_log(log: Any) -> None:
    """Counts of visible events with the topic of the candidate, one event of the log at a time."""
    schema = log.schema.fit(log.events)
    model = kr.models.LiRank(schema, **RANKER, past_matches=("topic",), past_numbers=("click",))
    layer = model.get_layer("past_matches")
    read = keras.Model(model.inputs, layer.output)
    sequences = build_sequences(log.events, schema)
    found = kr.training.model_requests(model, sequences)
    dataset = PackedRequests(found, 64, 4, names=model.input_columns, tasks=model.tasks, shuffle=False)
    rows = [array(read(dataset[batch][0])) for batch in range(len(dataset))]
    got = dataset.scatter(np.concatenate(rows)[: len(dataset.slots)])
    rates, columns = np.log1p(np.exp(array(layer.rate)))[0], sequences.columns
    request = np.repeat(np.arange(len(sequences.request_starts) - 1), np.diff(sequences.request_starts))
    matched = 0
    for event in range(0, sequences.num_events, 2):
        if np.isnan(got[event]).all():
            continue
        moment = sequences.time[sequences.request_starts[request[event]]]
        member = np.flatnonzero(sequences.member == sequences.member[event])
        seen = member[sequences.time[member] <= moment - DELAY][-WINDOW:]
        same = seen[columns["topic"][seen] == columns["topic"][event]]
        gap = np.log1p((moment - sequences.time[same]).astype("float64") / 3600)
        expected = [np.log1p((np.exp(-rate * gap) * x).sum()) for rate in rates for x in (np.ones(len(same)), columns["click"][same])]
        np.testing.assert_allclose(got[event], expected, rtol=1e-5, atol=1e-6)
        matched += len(same)
    assert matched > 60


@pytest.mark.parametrize("name", ["lirank", "dlrm", "dlrm causal", "ligr"])
@pytest.mark.quickest
def test_what_is_not_yet_known_changes_no_bit(log: Any, name: str) -> None:
    """Actions, items and numbers of events younger than the delay, or later than the request, in streams, rows and requests."""
    model = made(log, name)
    sequences = build_sequences(log.events, model.schema)
    member = int(np.argmax(np.diff(sequences.offsets)))
    events = np.arange(*sequences.offsets[member : member + 2])
    moment = int(sequences.time[events[len(events) // 2]])
    later = events[sequences.time[events] > moment - DELAY]
    columns = dict(sequences.columns)
    for action in model.schema.actions:
        columns[action.name] = columns[action.name].copy()
        columns[action.name][later] += 3
    moved = replace(sequences, columns=columns)
    first = np.flatnonzero((sequences.time <= moment) | (sequences.member != member))
    rest = np.setdiff1d(np.arange(sequences.num_events), first)
    for names in filter(None, (model.input_columns, model.stream_columns)):
        before, after = (by_event(model, each, names) for each in (sequences, moved))
        np.testing.assert_array_equal(after[first], before[first])
        assert np.nanmax(np.abs(after[rest] - before[rest])) > 1e-3, "control: later requests see these events"
    before, after = (kr.training.predict_served(model, each, whole_session=False)["click"] for each in (sequences, moved))
    np.testing.assert_array_equal(after[first], before[first])
    assert np.nanmax(np.abs(after[rest] - before[rest])) > 1e-4


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["dlrm causal", "ligr"])
def test_a_cache_is_extended(log: Any, name: str) -> None:
    model = made(log, name, max_history=64)
    found = requests(build_sequences(log.events, model.schema), max_history=40)
    which = np.argsort(found.history_begin - found.history_end, kind="stable")[:2]
    tensors = found.tensors(which, [*model.encoder.input, *model.serving_model.input])
    history, length = {name: tensors[name] for name in model.encoder.input}, tensors["history_length"]
    count = np.array([9, 4], "int32")

    def rows(x: np.ndarray, begin: np.ndarray, width: int) -> np.ndarray:
        index = np.minimum(begin[:, None] + np.arange(width), x.shape[1] - 1)
        return np.stack([values[places] for values, places in zip(x, index, strict=True)])

    first = {name: x if x.ndim > 1 else length - count for name, x in history.items()}
    rest = {name: rows(x, length - count, 9) if x.ndim > 1 else count for name, x in history.items()}
    grown, whole = model.extend(model.encode(first), rest), model.encode(history)
    assert {"past_key", "past_value", "past_numbers", "past_id_topic", "past_id_author_id"} <= set(grown)
    scores = [array(model.score(cache, tensors)["click"]) for cache in (grown, whole, model.encode(first))]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=2e-6)
    assert np.abs(scores[2] - scores[1]).max() > 1e-3, "control"


@pytest.mark.quickest
def test_chunks_of_candidates_against_one_cache(log: Any) -> None:
    for name in ("lirank", "dlrm", "dlrm pooled"):
        model = made(log, name)
        found = requests(build_sequences(log.events, model.schema))
        which = np.argsort(found.history_begin - found.history_end, kind="stable")[:3]
        tensors = found.tensors(which, list(model.serving_model.input))
        cache, whole = model.encode(tensors), array(model.serving_model(tensors)["click"])
        for begin in range(0, whole.shape[1], 4):
            part = {key: x[:, begin : begin + 4] if key.startswith("candidate_") and x.ndim > 1 else x for key, x in tensors.items()}
            got = sigmoid(array(model.score(cache, part)["click"])[..., 0])
            real = np.arange(begin, begin + got.shape[1]) < tensors["candidate_count"][:, None]
            np.testing.assert_allclose(got[real], whole[:, begin : begin + 4][real], rtol=0, atol=2e-6)


def fitted(log: Any, name: str, **compiled: Any) -> Any:
    """A model after an epoch, in which every weight of the past has moved."""
    model = made(log, name)
    found = kr.training.model_requests(model, build_sequences(log.events, model.schema))
    dataset = PackedRequests(found, 64, 4, names=model.stream_columns or model.input_columns, tasks=model.tasks)
    before = {weight.path: array(weight) for weight in model.trainable_weights if "past_" in weight.path}
    model.compile("adam", model.losses_by_task(), **compiled)
    model.fit(dataset, epochs=1, verbose=0)
    after = {weight.path: array(weight) for weight in model.trainable_weights}
    assert len(before) == 7 and all(np.abs(after[path] - value).max() > 0 for path, value in before.items())
    return model


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["ligr", "lirank"])
def test_it_learns_in_compiled_steps(log: Any, name: str) -> None:
    fitted(log, name)


@pytest.mark.parametrize("name", ["lirank", "dlrm", "ligr"])
@pytest.mark.quickest
def test_what_it_learned_is_saved(log: Any, name: str, tmp_path: Any) -> None:
    model = fitted(log, name, jit_compile=False)
    sequences = build_sequences(log.events, model.schema)
    model.save(tmp_path / "model.keras")
    again, copy = kr.models.load(tmp_path / "model.keras"), type(model).from_config(model.get_config())
    assert again.arguments == model.arguments == copy.arguments and again.arguments["past_keys"] == ["item_id", "author_id", "topic"]
    copy.set_weights(model.get_weights())
    first, *others = (kr.training.predict_served(each, sequences)["click"] for each in (model, again, copy))
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("name", ["lirank", "dlrm", "ligr"])
@pytest.mark.quickest
def test_as_an_object_and_as_options(log: Any, name: str) -> None:
    kind, arguments = MODELS[name]
    build, schema = getattr(kr.models, kind), log.schema.fit(log.events)
    model = build(schema, kr.models.Past(**PAST), **arguments)
    assert model.arguments == build(schema, **PAST, **arguments).arguments
    assert build(schema, **model.arguments).arguments == model.arguments
    without = build(schema, **arguments)
    assert not any(argument.startswith("past") for argument in without.arguments)
    assert not any("past" in weight.path for weight in without.weights)


@pytest.mark.parametrize("options", [{}, {"number_embedding": "linear", "number_width": 3}], ids=["plain", "vectors"])
@pytest.mark.quickest
def test_numbers_of_events_are_keys_too(log: Any, options: dict[str, Any]) -> None:
    """A number of an item in `past_keys` is read as the history encoder reads it."""
    columns = [feature.name for feature in log.schema.features_known("item")]
    numbers = [name for name in columns if log.schema.inputs([name])[0].dtype == "float32"]
    assert numbers
    model = made(log, "dlrm causal", past_keys=("topic", numbers[0]), past_matches=(), **options)
    sequences = build_sequences(log.events, model.schema)
    served = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    np.testing.assert_allclose(sigmoid(by_event(model, sequences, model.input_columns)), served, rtol=0, atol=2e-6)


@pytest.mark.quickest
def test_errors(log: Any) -> None:
    with pytest.raises(ValueError, match=r"must be of `history_features`, \['topic'\]. Received: \['author_id'\]"):
        kr.models.LiRank(log.schema, history_features=("topic",), past_matches=("author_id",))
    with pytest.raises(ValueError, match="reading the past needs a history: `history_features` must name its columns"):
        kr.models.LiRank(log.schema, preset="jobs", past_heads=1)
    with pytest.raises(ValueError, match="reading the past needs a history: `history_features` must name its columns"):
        kr.models.LiGR(log.schema, history_features=(), past_linear=1)
    with pytest.raises(ValueError, match=r"`past_numbers` must name actions that are numbers, of .* Received: \['click_residual'\]"):
        kr.models.AmortizedDLRM(log.schema, past_heads=1, past_numbers=("click", "click_residual"))
