"""A model's graphs refuse times and ids as floats or beyond int32: Keras would cast them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from tests.compiling import JIT

SMALL = {"dim": 8, "num_layers": 1, "num_heads": 2, "id_dim": 4}


@pytest.fixture(scope="module")
def ready() -> tuple[Any, dict[str, np.ndarray]]:
    log = kr.data.simulate(members=8, days=2, seed=0)
    schema = log.schema.fit(log.events)
    model = kr.models.CADET(schema, **SMALL)
    found = kr.data.requests(log.events, schema, max_history=12)
    return model, found.tensors(np.arange(3), list(model.serving_model.input))


def click(scores: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(scores["click"]))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["history_time", "request_time", "history_item_id", "candidate_item_id", "history_length"])
def test_floats_and_numbers_beyond_int32(ready: tuple[Any, dict[str, np.ndarray]], name: str) -> None:
    model, tensors = ready
    for dtype in ("float32", "float64"):
        with pytest.raises(ValueError, match=f"`{name}` must be integers .int32.. Received: dtype={dtype}"):
            model.serving_model({**tensors, name: tensors[name].astype(dtype)})
    wide = tensors[name].astype("int64")
    np.testing.assert_array_equal(click(model.serving_model({**tensors, name: wide})), click(model.serving_model(tensors)))
    for moved in (wide + 2**32, wide - 2**33):
        with pytest.raises(ValueError, match=f"`{name}` must be whole numbers of int32"):
            model.serving_model({**tensors, name: moved})


def test_each_graph(ready: tuple[Any, dict[str, np.ndarray]]) -> None:
    model, tensors = ready
    seconds = tensors["history_time"].astype("float32")
    with pytest.raises(ValueError, match="`history_time` must be integers"):
        model.encode({**tensors, "history_time": seconds})
    cache = model.encode(tensors)
    with pytest.raises(ValueError, match="`request_time` must be integers"):
        model.score(cache, {**tensors, "request_time": tensors["request_time"].astype("float32")})
    with pytest.raises(ValueError, match="`request_time` must be integers"):
        model.serving_model.predict({**tensors, "request_time": tensors["request_time"].astype("float32")}, verbose=0)


def test_an_error_in_the_first_step_loses_no_weight(ready: tuple[Any, dict[str, np.ndarray]]) -> None:
    """On JAX, Keras takes the arrays out of the variables while it trains."""
    model, tensors = ready
    want = click(model.serving_model(tensors))
    model.compile("adam", model.losses_by_task(), jit_compile=JIT)
    sequences = kr.data.build_sequences(kr.data.simulate(members=8, days=2, seed=0).events, model.schema)
    rows = kr.data.PackedDataset(kr.data.pack(sequences, 64), 2, inputs=model.input_columns, seed=0)
    inputs, targets = rows[0][:2]
    floats = {**inputs, "time": inputs["time"].astype("float32")}
    for call in (lambda: model.fit(floats, targets, verbose=0), lambda: model.evaluate(floats, targets, verbose=0)):
        with pytest.raises(ValueError, match="`time` must be integers"):
            call()
        np.testing.assert_array_equal(click(model.serving_model(tensors)), want)
    model.fit(rows, epochs=1, verbose=0)
    assert np.abs(click(model.serving_model(tensors)) - want).max() > 0


def test_a_serving_model_can_be_saved_alone(ready: tuple[Any, dict[str, np.ndarray]], tmp_path: Any) -> None:
    model, tensors = ready
    model.serving_model.save(tmp_path / "serving.keras")
    loaded = keras.models.load_model(tmp_path / "serving.keras")
    np.testing.assert_array_equal(click(loaded(tensors)), click(model.serving_model(tensors)))


@pytest.mark.parametrize("method", ["predict", "predict_on_batch"])
def test_int64_arrays_in_a_compiled_program(ready: tuple[Any, dict[str, np.ndarray]], method: str) -> None:
    """JAX would cut them to 32 bits on the way there, and TensorFlow could not read them."""
    model, tensors = ready
    call = getattr(model.serving_model, method)
    wide = {name: values.astype("int64") if values.dtype == "int32" else values for name, values in tensors.items()}
    np.testing.assert_array_equal(click(call(wide)), click(call(tensors)))
    for name in ("request_time", "candidate_item_id"):
        with pytest.raises(ValueError, match=f"`{name}` must be whole numbers of int32"):
            call({**wide, name: wide[name] + 2**32})


def test_int64_arrays_of_a_training(ready: tuple[Any, dict[str, np.ndarray]]) -> None:
    model, _ = ready
    beyond = {"x": {"time": np.array([[2**32 + 1]])}, "y": np.zeros((1, 1))}
    valid = {"x": {"time": np.array([[1]])}, "validation_data": ({"time": np.array([[2**32 + 1]])}, np.zeros((1, 1)))}
    for call in (model.fit, model.evaluate, model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match="`time` must be whole numbers of int32"):
            call(**beyond)
    with pytest.raises(ValueError, match="`time` must be whole numbers of int32"):
        model.fit(**valid)


def test_a_step_of_fit_is_a_training_step(ready: tuple[Any, dict[str, np.ndarray]]) -> None:
    """With dropout, which inference has not: Keras reads from the arguments of `call` whether a model tells the two apart."""
    schema = ready[0].schema
    model = kr.models.CADET(schema, **SMALL, dropout=0.8)
    sequences = kr.data.build_sequences(kr.data.simulate(members=8, days=2, seed=0).events, schema)
    batch = kr.data.PackedDataset(kr.data.pack(sequences, 64), 2, inputs=model.input_columns, seed=0)[0]
    model.compile(keras.optimizers.SGD(0.0), model.losses_by_task(), jit_compile=JIT)
    trained, tested = (float(np.ravel(call(*batch))[0]) for call in (model.train_on_batch, model.test_on_batch))
    assert abs(trained - tested) > 1e-3
