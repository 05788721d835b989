"""The incremental penalty against closed forms in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.training import FisherSnapshot, IncrementalPenalty, fit_incremental
from keras_ranking.training.incremental.layer_gradients import variable_path
from tests.training.crashes import CrashAfter
from tests.training.incremental.models import Batches, logistic, points, sequence_model, sequences, snapshot_at

# torch.compile takes most of a minute here.
COMPILED = {"tensorflow": (False, True), "jax": (False, True), "torch": (False,)}[keras.backend.backend()]


def nothing(y: Any, y_pred: Any) -> Any:
    return ops.sum(0 * y_pred, axis=-1)


def two_look_ups() -> keras.Model:
    a, b = (keras.Input((3,), dtype="int32", name=name) for name in "ab")
    table = keras.layers.Embedding(8, 2, name="table")
    x = ops.sum(table(a), axis=1) + ops.sum(table(b), axis=1)
    return keras.Model({"a": a, "b": b}, keras.layers.Dense(1, name="d")(x))


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_step_penalises_each_row_that_it_looks_up_once(alpha: float, jit_compile: bool) -> None:
    model, forgetting, rate = two_look_ups(), 1.7, 0.25
    previous, cold = snapshot_at(model, 1), snapshot_at(model, 2)
    model.compile(keras.optimizers.SGD(rate), nothing, jit_compile=jit_compile)
    x = {"a": np.array([[1, 1, 1], [2, 1, 5]], "int32"), "b": np.array([[5, 5, 1], [7, 7, 7]], "int32")}
    y = np.zeros((2, 1), "float32")
    before = {
        variable_path(model, variable): ops.convert_to_numpy(variable.value).astype("float64") for variable in model.trainable_variables
    }
    penalty = IncrementalPenalty(previous, cold, forgetting, cold_weight=alpha)
    with penalty.attach(model):
        loss = model.fit(x, y, batch_size=2, verbose=0).history["loss"][0]
    met = np.isin(np.arange(8), [1, 2, 5, 7])[:, None]
    value = 0.0
    for variable in model.trainable_variables:
        path = variable_path(model, variable)
        touched = met if path == "table/embeddings" else True
        grad = np.zeros(variable.shape)
        for share, prior in ((alpha, cold), (1 - alpha, previous)):
            off = before[path] - prior.weights[path]
            grad += forgetting * share * prior.fisher[path] * off
            value += forgetting / 2 * share * (touched * prior.fisher[path] * off**2).sum()
        after = ops.convert_to_numpy(variable.value)
        np.testing.assert_allclose(after, before[path] - rate * grad * touched, rtol=1e-5, atol=1e-6)
        if path == "table/embeddings":  # Control: a penalty on the whole table would have moved the others
            assert np.abs(grad[~met[:, 0]]).max() > 0.1
            np.testing.assert_array_equal(after[~met[:, 0]], before[path][~met[:, 0]].astype("float32"))
    assert loss == pytest.approx(value, rel=1e-5)


def test_the_minimiser_is_the_weighted_mean() -> None:
    model, alpha = logistic(bias=False), 0.3
    previous, cold = snapshot_at(model, 1, holes=False), snapshot_at(model, 2, holes=False)
    model.compile(keras.optimizers.SGD(1.0), nothing)
    penalty = IncrementalPenalty(previous, cold, forgetting=2.0, cold_weight=alpha)
    penalty.initialise(model)
    (w0, h0), (w1, h1) = ((part.weights["d/kernel"], part.fisher["d/kernel"]) for part in (cold, previous))
    np.testing.assert_allclose(model.get_weights()[0], alpha * w0 + (1 - alpha) * w1, rtol=1e-6)
    with penalty.attach(model):
        model.fit(*points(150), batch_size=1, verbose=0)
    best = (alpha * h0 * w0 + (1 - alpha) * h1 * w1) / (alpha * h0 + (1 - alpha) * h1)
    np.testing.assert_allclose(model.get_weights()[0], best, rtol=1e-4, atol=1e-5)
    least = (alpha * (1 - alpha) * h0 * h1 * (w0 - w1) ** 2 / (alpha * h0 + (1 - alpha) * h1)).sum()
    assert penalty.value(model) == pytest.approx(least, rel=1e-4)


def grown_model(rows: int, extra: bool) -> keras.Model:
    ids = keras.Input((2,), dtype="int32")
    x = keras.layers.BatchNormalization(name="norm")(ops.sum(keras.layers.Embedding(rows, 2, name="table")(ids), axis=1))
    x = keras.layers.Dense(2, name="new")(x) if extra else x
    return keras.Model(ids, keras.layers.Dense(1, name="d")(x))


def test_new_rows_and_variables_are_not_penalised_and_other_state_is_unchanged() -> None:
    old, model = grown_model(5, extra=False), grown_model(8, extra=True)
    model.compile(keras.optimizers.SGD(0.5), nothing)
    previous = snapshot_at(old, 1, holes=False)
    state = np.array([3.0, 4.0], "float32")
    model.get_layer("norm").moving_mean.assign(state)
    before = ops.convert_to_numpy(model.get_layer("table").embeddings.value)
    new = model.get_layer("new").get_weights()
    penalty = IncrementalPenalty(previous, forgetting=1.0)
    penalty.initialise(model)
    np.testing.assert_array_equal(ops.convert_to_numpy(model.get_layer("norm").moving_mean.value), state)
    started = ops.convert_to_numpy(model.get_layer("table").embeddings.value)
    np.testing.assert_allclose(started[:5], previous.weights["table/embeddings"], rtol=1e-6)
    np.testing.assert_array_equal(started[5:], before[5:])
    model.get_layer("table").embeddings.assign(started + 1)
    with penalty.attach(model):
        model.fit(np.array([[0, 6], [7, 7]], "int32"), np.zeros((2, 1), "float32"), verbose=0)
    after = ops.convert_to_numpy(model.get_layer("table").embeddings.value)
    np.testing.assert_array_equal(after[5:], (started + 1)[5:])
    assert (after[0] != started[0] + 1).any()
    for weight, same in zip(model.get_layer("new").get_weights(), new, strict=True):
        np.testing.assert_array_equal(weight, same)
    with pytest.raises(ValueError, match=r"'table/embeddings' is \(5, 2\) in the model and \(8, 2\) in the snapshot; only tables may grow"):
        IncrementalPenalty(snapshot_at(model, 1)).initialise(grown_model(5, extra=True))
    with pytest.raises(ValueError, match=r"a variable 'new/kernel' that the model does not have.*the model has \['d/bias'"):
        IncrementalPenalty(snapshot_at(model, 1)).attach(grown_model(8, extra=False))


def test_numbers_out_of_range() -> None:
    model = logistic()
    snapshot = snapshot_at(model, 1)
    with pytest.raises(ValueError, match="`forgetting` must be a finite number, at least 0. Received: forgetting=-1"):
        IncrementalPenalty(snapshot, forgetting=-1)
    with pytest.raises(ValueError, match="`cold_weight` must be from 0 to 1. Received: cold_weight=2"):
        IncrementalPenalty(snapshot, snapshot, cold_weight=2)
    with pytest.raises(ValueError, match="`cold_weight` needs a `cold` snapshot. Received: cold_weight=0.5, cold=None"):
        IncrementalPenalty(snapshot, cold_weight=0.5)
    with pytest.raises(ValueError, match="`samples` must be a positive integer or None. Received: samples=0"):
        FisherSnapshot.measure(model, [points()], samples=0)
    with pytest.raises(ValueError, match="`fisher` must have the paths and shapes of `weights`"):
        FisherSnapshot(snapshot.weights, {}, 1)


def test_the_model_is_restored_after_detaching_and_after_an_error(tmp_path: Path) -> None:
    model, (x, y) = sequence_model(), sequences()
    data = Batches(x, y, size=10)
    model.fit(data, verbose=0)  # a step compiled without the penalty
    snapshot = FisherSnapshot.measure(model, data)

    def own_methods() -> list[str]:
        return [name for owner in (model, *model.layers) for name in ("call", "train_step", "compute_loss") if name in vars(owner)]

    penalty = IncrementalPenalty(snapshot_at(model, 7), forgetting=50.0)
    plain = model.evaluate(data, verbose=0, return_dict=True)["loss"]
    with penalty.attach(model):
        assert own_methods() == ["train_step", "compute_loss", "call"]
        with pytest.raises(RuntimeError, match="attached to .* already; detach it first"):
            IncrementalPenalty(snapshot).attach(model)
        assert model.evaluate(data, verbose=0, return_dict=True)["loss"] == pytest.approx(plain, rel=1e-6)
        penalised = model.fit(data, shuffle=False, verbose=0).history["loss"][0]
        assert penalised > 5 * plain
        model.predict(x, verbose=0)
    assert own_methods() == []
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for weight, same in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert model.fit(data, verbose=0).history["loss"][0] < 0.5 * penalised

    with pytest.raises(RuntimeError, match="crash"):
        fit_incremental(model, data, snapshot, verbose=0, callbacks=[CrashAfter(1)])
    assert own_methods() == []
