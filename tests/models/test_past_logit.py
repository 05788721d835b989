"""`past_logit`: the linear sums of the past are added to the logits of every model, in rows, streams, requests and caches alike."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRequests, build_sequences, pack, requests
from tests.models.test_past_requests import DLRM, LIGR, RANKER, randomise, sigmoid

pytestmark = pytest.mark.usefixtures("quick_calls")

SEQUENCE: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4}
READS: dict[str, Any] = {"past_heads": 1, "past_linear": 2, "past_matches": ("topic",), "past_dim": 4, "past_logit": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cadet": ("CADET", {**SEQUENCE, "auxiliary_tasks": {"like": 0.5}}),
    "feedsr": ("FeedSR", SEQUENCE),
    "lirank": ("LiRank", {**RANKER, "calibration": False}),
    "dlrm": ("AmortizedDLRM", {**DLRM, "history_mask": "causal"}),
    "ligr": ("LiGR", LIGR),
    "ligr add": ("LiGR", {**LIGR, "merge": "add"}),
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=6, days=5, seed=1, feedback_delay=60)


def made(log: Any, name: str, **more: Any) -> Any:
    keras.utils.set_random_seed(0)
    kind, arguments = MODELS[name]
    return getattr(kr.models, kind)(log.schema.fit(log.events), **{**arguments, **READS, **more})


def array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), dtype=np.float64)


def dataset_of(model: Any, sequences: Any, names: Any = None) -> Any:
    if model.form == "rows":
        return PackedDataset(pack(sequences, 256), 4, inputs=model.input_columns, tasks=model.tasks, shuffle=False)
    found = kr.training.model_requests(model, sequences)
    return PackedRequests(found, 64, 4, names=names or model.input_columns, tasks=model.tasks, shuffle=False)


def maps(model: Any) -> list[Any]:
    return [weight for weight in model.weights if "past_logit_" in weight.path]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.quickest
def test_a_logit_moves_by_the_weighted_sums(log: Any, name: str) -> None:
    """For each task and tower: logit with the weights = logit without + sums x weights; at first the weights are 0."""
    model = made(log, name, **({"top_k": None} if name.startswith("ligr") else {}))  # other logits would choose other items
    kernels = {weight.path.split("/")[-2].removeprefix("past_logit_"): weight for weight in maps(model)}
    assert sorted(kernels) == sorted(model.tasks) and all((array(kernel) == 0).all() for kernel in kernels.values())
    randomise(model)
    for kernel in kernels.values():
        kernel.assign(np.zeros(kernel.shape, "float32"))
    x = dataset_of(model, build_sequences(log.events, model.schema))[0][0]
    sums = array(keras.Model(model.inputs, model.get_layer("past_linear").output)(x))
    before = {output: array(value) for output, value in model(x).items()}
    rng = np.random.default_rng(0)
    drawn = {task: (50 * rng.normal(size=kernel.shape)).astype("float32") for task, kernel in kernels.items()}
    for task, kernel in kernels.items():
        kernel.assign(drawn[task])
    for output, value in model(x).items():
        expected = sums @ drawn[output.removesuffix("_pointwise")]
        np.testing.assert_allclose(array(value) - before[output], expected + 0 * before[output], rtol=1e-4, atol=5e-6)
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.quickest
def test_rows_streams_and_requests_agree(log: Any, name: str) -> None:
    model = made(log, name)
    randomise(model)
    for kernel in maps(model):
        kernel.assign(array(kernel) * 100)  # the sums of these weights are small
    sequences = build_sequences(log.events, model.schema)
    served = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    if model.form == "rows":
        offline = kr.training.predict_events(model, pack(sequences, 512))["click"]
        offline = offline[:, model.serving_tower] if offline.ndim > 1 else offline
        np.testing.assert_allclose(served, offline, rtol=0, atol=2e-6)
        return
    for names in filter(None, (model.input_columns, model.stream_columns)):
        dataset = dataset_of(model, sequences, names)
        rows = [array(model.predict_on_batch(dataset[batch][0])["click"]) for batch in range(len(dataset))]
        packed = dataset.scatter(np.concatenate(rows)[: len(dataset.slots)])[:, 0]
        np.testing.assert_allclose(sigmoid(packed), served, rtol=0, atol=2e-6)


@pytest.mark.release("tensorflow", "jax")
@pytest.mark.parametrize("name", ["ligr", "cadet", "lirank"])
def test_caches_learning_and_files(log: Any, name: str, tmp_path: Any) -> None:
    model = made(log, name)
    randomise(model)
    sequences = build_sequences(log.events, model.schema)
    found = requests(sequences)
    which = np.argsort(found.history_begin - found.history_end, kind="stable")[:3]
    tensors = found.tensors(which, list(model.serving_model.input))
    whole = array(model.serving_model(tensors)["click"])
    scored = sigmoid(array(model.score(model.encode(tensors), tensors)["click"]))[..., model.serving_tower]
    real = np.arange(whole.shape[1]) < tensors["candidate_count"][:, None]
    np.testing.assert_allclose(scored[real], whole[real], rtol=0, atol=2e-6)
    before = [array(weight) for weight in maps(model)]
    model.compile("adam", model.losses_by_task(), jit_compile=False)
    model.train_on_batch(*dataset_of(model, sequences)[0])
    assert before and all((array(weight) != value).all() for weight, value in zip(maps(model), before, strict=True))
    model.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path / "model.keras")
    assert again.arguments["past_logit"] is True
    np.testing.assert_array_equal(*(array(each.serving_model(tensors)["click"]) for each in (model, again)))


@pytest.mark.quickest
def test_off_by_default(log: Any) -> None:
    model = made(log, "lirank", past_logit=False)
    assert "past_logit" not in model.arguments and model.arguments["past_linear"] == 2 and not maps(model)
    with pytest.raises(ValueError, match="`past_logit` adds linear sums to logits: it needs `past_linear`. Received: past_linear=0"):
        kr.models.LiGR(log.schema, past_heads=2, past_logit=True)


@pytest.mark.quickest
def test_exploration_draws_the_trunk_alone(log: Any) -> None:
    """What the past adds is not drawn: with a posterior without spread the drawn score is the score."""
    model = made(log, "lirank", explore=["click"])
    randomise(model)
    found = requests(build_sequences(log.events, model.schema))
    tensors = found.tensors([5, 6], [name for name in model.explore_model.input if name != "seed"])
    drawn = []
    for spread in (1.0, 0.0):
        factor = model.last_layers("posteriors")["click"].factor
        factor.assign(array(factor) * spread)
        drawn.append(array(model.explore_model({**tensors, "seed": np.array([1, 2], "int32")})["click"]))
    scores = array(model.serving_model(tensors)["click"])
    np.testing.assert_allclose(drawn[1], scores, rtol=0, atol=2e-6)
    assert np.abs(drawn[0] - scores).max() > 1e-3, "control"
