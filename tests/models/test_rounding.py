"""Training graphs that read a history once: equal, in float64, to those with a history for each request or slot; in float32 as exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.backend.common import dtypes

import keras_ranking as kr
from keras_ranking.data import PackedRequests, build_sequences
from keras_ranking.models import wiring
from tests.models.test_max_history import array

LIRANK: dict[str, Any] = {"calibration": False, "hidden": (16, 16), "id_dim": 8, "max_history": 20}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lirank": ("LiRank", LIRANK),
    "lirank_rotary": ("LiRank", {**LIRANK, "history_options": {"rotary": (8.0, 15_552_000.0)}}),
    "ligr": ("LiGR", {"id_dim": 8, "max_history": 20}),
    "amortized": ("AmortizedDLRM", {"id_dim": 8, "max_history": 20}),
    "amortized_causal": ("AmortizedDLRM", {"id_dim": 8, "max_history": 20, "history_mask": "causal"}),
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=6, days=5, seed=1, feedback_delay=900)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models can be made in float64: nothing in them is float32."""
    cast, dense = keras.ops.cast, keras.layers.Dense

    def wide(x: Any, dtype: str) -> Any:
        held = keras.backend.standardize_dtype(getattr(x, "dtype", "float32")) == "float64"
        return x if held and dtype == "float32" else cast(x, dtype)

    def layer(*args: Any, **settings: Any) -> Any:
        return dense(*args, **{**settings, "dtype": "float64" if settings.get("dtype") == "float32" else settings.get("dtype")})

    with monkeypatch.context() as patch:
        patch.setattr(wiring, "POLICIES", (*wiring.POLICIES, "float64"))
        patch.setattr(keras.ops, "cast", wide)
        patch.setattr(keras.layers, "Dense", layer)
        patch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")  # as Keras has it on TensorFlow
        yield


def logits(model: Any, found: Any, form: str) -> np.ndarray:
    """(E,) by the form: 'once', or 'copies' with a history for each request, for LiRank for each slot."""
    names = list(model.input_columns)
    if form == "once":
        names = model.stream_columns or names
    dataset = PackedRequests(found, 64, 2, names=names, tasks=model.tasks, shuffle=False)
    parts = []
    for batch in range(len(dataset)):
        x = {name: keras.ops.convert_to_tensor(value) for name, value in dataset[batch][0].items()}
        if form == "copies" and model.name.startswith("lirank"):
            columns = {name: value for name, value in x.items() if name.startswith("candidate_")}
            parts.append(array(model._graphs.wiring._one_by_one(x, columns, x["request_slot"])[0]["click"]))
        else:
            parts.append(array(model(x)["click"])[..., 0])
    return dataset.scatter(np.concatenate(parts)[: len(dataset.slots)])


def made(log: Any, name: str, arguments: dict[str, Any], dtype: str | None = None) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, name)(log.schema.fit(log.events), tasks=["click"], dtype=dtype, **arguments)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.05, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


@pytest.mark.quickest
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="float64 without a switch of the backend")
@pytest.mark.parametrize("name", list(MODELS))
def test_reading_a_history_once_is_as_exact(log: Any, name: str, request: pytest.FixtureRequest) -> None:
    single = made(log, *MODELS[name])
    found = kr.training.model_requests(single, build_sequences(log.events, single.schema))
    once, copies = (logits(single, found, form) for form in ("once", "copies"))
    request.getfixturevalue("float64")
    double = made(log, *MODELS[name], dtype="float64")
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in double.trainable_weights} == {"float64"}
    double.set_weights(single.get_weights())
    exact, exact_copies = (logits(double, found, form) for form in ("once", "copies"))
    scale = np.nanmax(np.abs(exact))
    assert 0.5 < scale < 50 and np.nanstd(exact) > 0.1
    np.testing.assert_allclose(exact, exact_copies, rtol=1e-12, atol=1e-12 * scale)
    assert np.nanmax(np.abs(once - exact)) > 1e-8, "control: rounding to float32 is seen"
    print(name, scale, np.nanmax(np.abs(exact - exact_copies)))
    for typical, most in ((np.nanmean, 1e-7), (np.nanmax, 1e-6)):
        error, of_copies = (np.sqrt(typical((values - exact) ** 2)) for values in (once, copies))
        print(name, error, of_copies)
        assert error <= 2 * of_copies + most * scale
