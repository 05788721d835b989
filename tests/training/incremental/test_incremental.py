"""Fisher snapshots and incremental training against closed forms in float64, and on a stream that drifts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.training import FisherSnapshot, IncrementalPenalty, fit_incremental
from keras_ranking.training.incremental import squared_gradients
from keras_ranking.training.incremental.layer_gradients import row_squares, variable_path
from tests.layers.common import run_example, sigmoid

Data = tuple[Any, ...]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-8}
LOSS = keras.losses.BinaryCrossentropy(from_logits=True)
# torch.compile takes most of a minute here; it was tried by hand.
COMPILED = {"tensorflow": (False, True), "jax": (False, True), "torch": (False,)}[keras.backend.backend()]


class Batches(keras.utils.PyDataset):
    """Arrays in batches, as `fit` and `measure` read them."""

    def __init__(self, *arrays: Any, size: int = 16) -> None:
        super().__init__()
        self.arrays, self.size = arrays, size

    def __len__(self) -> int:
        return -(-len(keras.tree.flatten(self.arrays[0])[0]) // self.size)

    def __getitem__(self, index: int) -> Data:
        part = slice(index * self.size, (index + 1) * self.size)
        return tuple(keras.tree.map_structure(lambda array: array[part], array) for array in self.arrays)


def logistic(features: int = 3, bias: bool = True) -> keras.Model:
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(1, use_bias=bias, name="d")])
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    return model


def points(count: int = 50, features: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)).astype("float32"), (rng.random((count, 1)) < 0.4).astype("float32")


def residuals(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and p - y in float64: a sample's gradient is their product."""
    kernel, bias = (ops.convert_to_numpy(weight.value).astype("float64") for weight in model.trainable_variables)
    x = x.astype("float64")
    return x, sigmoid(x @ kernel + bias) - y


def sequence_model(rows: int = 7, dim: int = 3, hidden: int = 4) -> keras.Model:
    """mean_t tanh(E[id_t] W + b) v + c."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Dense(hidden, activation="tanh", name="inner")(keras.layers.Embedding(rows, dim, name="table")(ids))
    model = keras.Model({"ids": ids}, {"click": keras.layers.Dense(1, name="logit")(keras.layers.GlobalAveragePooling1D()(x))})
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.7, weight.shape).astype("float32") for weight in model.weights])
    model.compile(keras.optimizers.SGD(0.1), {"click": LOSS})
    return model


def sequences(count: int = 20, length: int = 5, rows: int = 7) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, rows - 1, (count, length)).astype("int32")
    ids[:, 3] = ids[:, 0]  # some id twice in each sample; the last row never
    return {"ids": ids}, {"click": (rng.random((count, 1)) < 0.5).astype("float32")}


def sequence_fisher(model: keras.Model, ids: np.ndarray, y: np.ndarray, square_first: bool = False) -> dict[str, np.ndarray]:
    """Per-sample gradients by hand; `square_first`: the wrong order for repeated ids."""
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


# -- Fisher -------------------------------------------------------------------------------------------------------------------


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


def test_samples_without_weight_do_not_count() -> None:
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


def test_a_cap_on_samples_and_a_loss_of_its_own() -> None:
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


@pytest.mark.parametrize("way", ["tapped", "plain", "looped"])
def test_repeated_ids_are_summed_before_they_are_squared(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = sequence_model(), sequences()
    if way == "plain":  # every weight by (samples, rows, dim): what the taps save
        monkeypatch.setattr(squared_gradients, "taps_of", lambda model: [])
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


def test_a_table_with_a_second_use_takes_the_general_way(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(squared_gradients, "taps_of", lambda model: [])
    plain = FisherSnapshot.measure(model, data)
    assert set(plain.fisher) == {"table/embeddings", "twice/kernel", "twice/bias", "norm/gamma", "norm/beta"}
    for path, fisher in plain.fisher.items():
        assert fisher.max() > 0
        np.testing.assert_allclose(found.fisher[path], fisher, err_msg=path, rtol=2e-5, atol=1e-8)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_dropout_is_off_unless_asked_for() -> None:
    x, y = points()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1, name="d")])
    model.compile(loss=LOSS)
    wide, r = residuals(model, x, y)
    expected = ((wide * r) ** 2).mean(0)
    np.testing.assert_allclose(FisherSnapshot.measure(model, [(x, y)]).fisher["d/kernel"][:, 0], expected, **TOLERANCE)
    trained = FisherSnapshot.measure(model, [(x, y)], training=True, samples=10).fisher["d/kernel"][:, 0]
    assert np.isfinite(trained).all() and np.abs(trained / expected - 1).max() > 0.1


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


# -- penalty ------------------------------------------------------------------------------------------------------------------


def snapshot_at(model: keras.Model, seed: int, holes: bool = True) -> FisherSnapshot:
    """Random weights and precisions, a third of these zero."""
    rng = np.random.default_rng(seed)
    shapes = {variable_path(model, variable): tuple(variable.shape) for variable in model.trainable_variables}
    weights = {path: rng.normal(size=shape).astype("float32") for path, shape in shapes.items()}
    fisher = {path: (rng.random(shape) * (rng.random(shape) > holes / 3)).astype("float32") for path, shape in shapes.items()}
    return FisherSnapshot(weights, fisher, 10)


def nothing(y: Any, y_pred: Any) -> Any:
    return ops.sum(0 * y_pred, axis=-1)


def two_look_ups() -> keras.Model:
    a, b = (keras.Input((3,), dtype="int32", name=name) for name in "ab")
    table = keras.layers.Embedding(8, 2, name="table")
    x = ops.sum(table(a), axis=1) + ops.sum(table(b), axis=1)
    return keras.Model({"a": a, "b": b}, keras.layers.Dense(1, name="d")(x))


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_one_step_moves_each_row_it_meets_once(alpha: float, jit_compile: bool) -> None:
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


def test_new_rows_and_variables_are_free_and_other_state_is_left_alone() -> None:
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


def test_numbers_out_of_range_are_refused() -> None:
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


def test_the_model_is_as_before_after_detaching_and_after_an_error(tmp_path: Path) -> None:
    model, (x, y) = sequence_model(), sequences()
    data = Batches(x, y, size=10)
    model.fit(data, verbose=0)  # a compiled step that knows no penalty
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

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_incremental(model, data, snapshot, verbose=0, callbacks=[Stop()])
    assert own_methods() == []


# -- a stream that drifts -----------------------------------------------------------------------------------------------------

IDS, BATCH, COLD_DAYS = 60, 30, 20
DEGREES, COUNT = 0.5, 120


class Stream:
    """Clicks from two features, whose weights turn by 2 degrees a day, and a lasting effect an id; few ids come on any one day."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.effects = self.rng.normal(0, 1.5, IDS)

    def draw(self, day: int, ids: np.ndarray, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        x, row = self.rng.normal(size=(count, 2)), self.rng.choice(ids, count)
        angle = np.radians(DEGREES * day)
        p = sigmoid(1.5 * x @ [np.cos(angle), np.sin(angle)] + self.effects[row])
        return {"x": x.astype("float32"), "id": row[:, None].astype("int32")}, p[:, None]

    def day(self, day: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        x, p = self.draw(day, self.rng.choice(IDS, IDS // 3, replace=False), COUNT)
        return x, (self.rng.random(p.shape) < p).astype("float32")


def stream_model() -> keras.Model:
    x, ids = keras.Input((2,), name="x"), keras.Input((1,), dtype="int32", name="id")
    logit = keras.layers.Dense(1, name="d")(x) + keras.layers.Flatten()(keras.layers.Embedding(IDS, 1, name="effect")(ids))
    model = keras.Model({"x": x, "id": ids}, logit)
    model.compile(keras.optimizers.Adam(0.05), LOSS)
    return model


def expected_loss(model: keras.Model, x: dict[str, np.ndarray], p: np.ndarray) -> float:
    """Log loss against the probabilities that the labels are drawn from, less that of knowing them."""
    logit = model.predict_on_batch(x).astype("float64")
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return float((p * np.logaddexp(0, -logit) + (1 - p) * np.logaddexp(0, logit) - entropy).mean())


def follow(seed: int, days: int = 4, epochs: int = 5) -> dict[str, float]:
    """Regret on the next day, a mean over days, and after the last day that of ids not seen for three days."""
    stream, found = Stream(seed), {}
    past = [stream.day(day) for day in range(COLD_DAYS)]
    cold = Batches({k: np.concatenate([x[k] for x, _ in past]) for k in ("x", "id")}, np.concatenate([y for _, y in past]), size=BATCH)
    model = stream_model()
    model.fit(cold, epochs=2, verbose=0)
    # H is a mean over samples: of COLD_DAYS days it is worth as many times that of one.
    first = FisherSnapshot.measure(model, cold)
    first = first.accumulate(first, decay=COLD_DAYS - 1)
    fresh = [Batches(*stream.day(COLD_DAYS + day), size=BATCH) for day in range(days)]
    nexts = [stream.draw(COLD_DAYS + day + 1, np.arange(IDS), 2000) for day in range(days)]
    absent = np.setdiff1d(np.arange(IDS), np.concatenate([day.arrays[0]["id"][:, 0] for day in fresh[-3:]]))
    lost = stream.draw(COLD_DAYS + days, absent, 2000)
    assert len(cold) == COLD_DAYS * len(fresh[0])  # steps an epoch of a retraining on such a window, for each one of ours
    found["cold"] = float(np.mean([expected_loss(model, *held_out) for held_out in nexts]))
    for name in ("plain", "penalty"):
        model.set_weights([first.weights[variable_path(model, variable)] for variable in model.weights])
        snapshot, regrets = first, []
        model.compile(keras.optimizers.Adam(0.05), LOSS)
        for day, held_out in zip(fresh, nexts, strict=True):
            if name == "plain":
                model.fit(day, epochs=epochs, verbose=0)
            else:
                _, snapshot = fit_incremental(model, day, snapshot, forgetting=1.0, accumulate=0.95, epochs=epochs, verbose=0)
            regrets.append(expected_loss(model, *held_out))
        found[name], found[f"{name}_absent"] = float(np.mean(regrets)), expected_loss(model, *lost)
    return found


@pytest.mark.slow
def test_incremental_training_beats_fine_tuning_on_the_next_day() -> None:
    found = [follow(seed) for seed in range(3)]
    mean = {name: np.mean([one[name] for one in found]) for name in found[0]}
    print({name: round(float(value), 4) for name, value in mean.items()})
    assert all(one["penalty"] < one["plain"] for one in found)
    assert mean["penalty"] < 0.75 * mean["plain"]
    assert mean["penalty"] < mean["cold"]
    assert mean["penalty_absent"] < mean["plain_absent"]


@pytest.mark.parametrize("documented", [FisherSnapshot, IncrementalPenalty, fit_incremental])
def test_examples(documented: Callable[..., Any]) -> None:
    run_example(documented)
