"""Fisher snapshots against closed forms in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.training import FisherSnapshot
from keras_ranking.training.incremental import squared_gradients
from keras_ranking.training.incremental.layer_gradients import row_squares, variable_path
from tests.layers.common import sigmoid
from tests.training.incremental.models import LOSS, Batches, logistic, points, sequence_model, sequences

TOLERANCE = {"rtol": 1e-5, "atol": 1e-8}


def residuals(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and p - y in float64: a sample's gradient is their product."""
    kernel, bias = (ops.convert_to_numpy(weight.value).astype("float64") for weight in model.trainable_variables)
    x = x.astype("float64")
    return x, sigmoid(x @ kernel + bias) - y


def sequence_fisher(model: keras.Model, ids: np.ndarray, y: np.ndarray, square_first: bool = False) -> dict[str, np.ndarray]:
    """Gradients of single samples by hand; `square_first`: the wrong order for repeated ids."""
    table, kernel, bias, out, shift = (weight.astype("float64") for weight in model.get_weights())
    total = {variable_path(model, weight): np.zeros(weight.shape) for weight in model.trainable_variables}
    names = list(total)
    for row, label in zip(ids, y[:, 0], strict=True):
        e = table[row]
        h = np.tanh(e @ kernel + bias)
        delta = sigmoid(h.mean(0) @ out + shift)[0] - label
        dz = delta * out[:, 0] / len(row) * (1 - h**2)
        at_table = np.zeros_like(table)
        np.add.at(at_table, row, (dz @ kernel.T) ** 2 if square_first else dz @ kernel.T)
        grads = [at_table, e.T @ dz, dz.sum(0), delta * h.mean(0)[:, None], np.array([delta])]
        for i, (name, grad) in enumerate(zip(names, grads, strict=True)):
            total[name] += grad if square_first and i == 0 else grad**2
    return {name: part / len(ids) for name, part in total.items()}


def test_logistic_regression_has_its_closed_form() -> None:
    model, (x, y) = logistic(), points()
    found = FisherSnapshot.measure(model, Batches(x, y, size=16))
    wide, r = residuals(model, x, y)
    np.testing.assert_allclose(found.fisher["d/kernel"][:, 0], ((wide * r) ** 2).mean(0), **TOLERANCE)
    np.testing.assert_allclose(found.fisher["d/bias"], (r**2).mean(0), **TOLERANCE)
    assert found.samples == 50
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(found.weights[variable_path(model, variable)], ops.convert_to_numpy(variable.value))
    # Control: the squared gradients of the batches are several times smaller.
    batches = [((wide * r)[i : i + 16].mean(0)) ** 2 for i in range(0, 48, 16)]
    assert (np.mean(batches, axis=0) < 0.5 * found.fisher["d/kernel"][:, 0]).all()


def test_samples_without_weight_are_not_counted() -> None:
    model, (x, y) = logistic(), points()
    weight = np.random.default_rng(3).choice([0.0, 0.5, 2.0], size=50).astype("float32")
    x[weight == 0] = np.nan
    found = FisherSnapshot.measure(model, Batches(x, y, weight))
    kept = weight > 0
    wide, r = residuals(model, x[kept], y[kept])
    np.testing.assert_allclose(found.fisher["d/kernel"][:, 0], ((weight[kept, None] * wide * r) ** 2).mean(0), **TOLERANCE)
    assert found.samples == kept.sum()
    with pytest.raises(ValueError, match="at least one sample with a weight other than zero"):
        FisherSnapshot.measure(model, Batches(x, y, 0 * weight))
    with pytest.raises(ValueError, match="gradient of 'd/kernel' is not finite"):
        FisherSnapshot.measure(model, Batches(np.where(kept[:, None], x, 1), np.where(kept[:, None], y, np.nan)))


def test_a_limit_of_samples_and_another_loss() -> None:
    model, (x, y) = logistic(), points()
    found = [FisherSnapshot.measure(model, Batches(x, y), samples=20, seed=seed) for seed in (0, 0, 5)]
    assert [snapshot.samples for snapshot in found] == [20, 20, 20]
    np.testing.assert_array_equal(found[0].fisher["d/kernel"], found[1].fisher["d/kernel"])
    assert (found[0].fisher["d/kernel"] != found[2].fisher["d/kernel"]).any()
    whole = FisherSnapshot.measure(model, [(x, y)]).fisher["d/kernel"]
    for loss in (keras.losses.BinaryCrossentropy(from_logits=True), lambda y, p: keras.losses.binary_crossentropy(y, p, from_logits=True)):
        scaled = FisherSnapshot.measure(model, [(x, y, np.full(50, 2.0))], loss=loss, batch_size=7).fisher["d/kernel"]
        np.testing.assert_allclose(scaled, 4 * whole, **TOLERANCE)
    with pytest.raises(ValueError, match="`loss` must be given for a model that is not compiled"):
        FisherSnapshot.measure(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), [(x, y)])


@pytest.mark.few(1)
@pytest.mark.parametrize("way", ["by layer", "plain", "looped"])
def test_repeated_ids_are_summed_before_they_are_squared(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = sequence_model(), sequences()
    if way == "plain":  # every weight by (samples, rows, dim), without layer gradients
        monkeypatch.setattr(squared_gradients, "layer_gradients_of", lambda model: [])
    if way == "looped":
        made = squared_gradients.per_sample_step

        def refuse(loss: Any, reduce: Any, vectorized: bool) -> Any:
            if vectorized:
                raise NotImplementedError("no rule for this operation")
            return made(loss, reduce, vectorized)

        monkeypatch.setattr(squared_gradients, "per_sample_step", refuse)
        with pytest.warns(UserWarning, match="one sample at a time, which is slower: NotImplementedError: no rule"):
            found = FisherSnapshot.measure(model, Batches(x, y, size=10))
    else:
        found = FisherSnapshot.measure(model, Batches(x, y, size=10))
    expected = sequence_fisher(model, x["ids"], y["click"])
    for path, fisher in expected.items():
        np.testing.assert_allclose(found.fisher[path], fisher, err_msg=path, **TOLERANCE)
    assert not found.fisher["table/embeddings"][-1].any()
    wrong = sequence_fisher(model, x["ids"], y["click"], square_first=True)["table/embeddings"]
    assert np.abs(wrong - found.fisher["table/embeddings"]).max() > 0.1 * wrong.max()


def test_a_table_with_a_second_use_is_differentiated_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = keras.Input((4,), dtype="int32")
    table, dense = keras.layers.Embedding(6, 3, name="table"), keras.layers.Dense(3, name="twice")
    x = dense(dense(keras.layers.BatchNormalization(name="norm")(keras.layers.GlobalAveragePooling1D()(table(ids)))))

    class Tied(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return ops.matmul(x, ops.transpose(table.embeddings))

    model = keras.Model(ids, Tied()(x))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(4)
    data = [(rng.integers(0, 6, (9, 4)).astype("int32"), rng.integers(0, 6, 9).astype("int32"))]
    before = model.get_weights()
    found = FisherSnapshot.measure(model, data)
    monkeypatch.setattr(squared_gradients, "layer_gradients_of", lambda model: [])
    plain = FisherSnapshot.measure(model, data)
    assert set(plain.fisher) == {"table/embeddings", "twice/kernel", "twice/bias", "norm/gamma", "norm/beta"}
    for path, fisher in plain.fisher.items():
        assert fisher.max() > 0
        np.testing.assert_allclose(found.fisher[path], fisher, err_msg=path, rtol=2e-5, atol=1e-8)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_dropout_is_off_unless_training() -> None:
    x, y = points()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1, name="d")])
    model.compile(loss=LOSS)
    wide, r = residuals(model, x, y)
    expected = ((wide * r) ** 2).mean(0)
    np.testing.assert_allclose(FisherSnapshot.measure(model, [(x, y)]).fisher["d/kernel"][:, 0], expected, **TOLERANCE)
    trained = FisherSnapshot.measure(model, [(x, y)], training=True, samples=10).fisher["d/kernel"][:, 0]
    assert np.isfinite(trained).all() and np.abs(trained / expected - 1).max() > 0.1


@pytest.mark.quickest
def test_rows_outside_the_table_are_refused() -> None:
    rows, squares = row_squares(np.array([[-1, 2, 0]]), np.array([[[1.0], [2.0], [4.0]]]), rows=3)
    assert rows.tolist() == [0, 2] and squares.tolist() == [[16.0], [9.0]]
    with pytest.raises(ValueError, match="ids must be below the number of rows of the table, 3. Received: 0 to 3"):
        row_squares(np.array([[0, 3]]), np.ones((1, 2, 1)), rows=3)


def test_save_load_and_accumulate(tmp_path: Path) -> None:
    model, (x, y) = sequence_model(), sequences()
    found = FisherSnapshot.measure(model, [(x, y)])
    found.save(tmp_path / "day.npz")
    loaded = FisherSnapshot.load(tmp_path / "day.npz")
    assert loaded.samples == found.samples
    for part in ("weights", "fisher"):
        assert list(getattr(loaded, part)) == list(getattr(found, part))
        for path, array in getattr(found, part).items():
            np.testing.assert_array_equal(getattr(loaded, part)[path], array)
            assert getattr(loaded, part)[path].dtype == np.float32
    fewer = FisherSnapshot(*({**part, "table/embeddings": part["table/embeddings"][:5]} for part in (found.weights, found.fisher)), 3)
    table = found.accumulate(fewer, decay=0.5).fisher["table/embeddings"]
    np.testing.assert_allclose(table[:5], 1.5 * found.fisher["table/embeddings"][:5], rtol=1e-6)
    np.testing.assert_array_equal(table[5:], found.fisher["table/embeddings"][5:])
    with pytest.raises(ValueError, match=r"is \(5, 3\), and was \(7, 3\)"):
        fewer.accumulate(found, decay=0.5)
    with pytest.raises(ValueError, match="`decay` must be a finite number, at least 0. Received: decay=-1"):
        found.accumulate(found, decay=-1)
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="must be a snapshot of format 1. Received:"):
        FisherSnapshot.load(tmp_path / "other.npz")
