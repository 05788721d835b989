"""Updates of tables by rows against a float64 reference: touched rows right, the others equal to the bit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.ops.tables import is_updated_by_rows

ROWS, DIM, LOOKS, BATCH, STEPS, RATE, CLIP = 40, 3, 4, 6, 5, 0.1, 0.05
BACKEND = keras.backend.backend()


def data(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the lower half of the rows, with repetitions, one of them counted from the end; and targets."""
    rng = np.random.default_rng(step)
    ids = rng.integers(0, ROWS // 2, (BATCH, LOOKS)).astype("int32")
    ids[0, 0], ids[1, 1] = ids[2, 2], -ROWS + 3
    return ids, rng.normal(size=(BATCH, 1)).astype("float32")


def linear(model: Any = kr.models.TableModel, layer: Any = kr.layers.TableEmbedding, **settings: Any) -> Any:
    """target ~ sum_t kernel_t . E(id_t), with a kernel that does not train."""
    ids = keras.Input((LOOKS,), dtype="int32")
    initial = keras.initializers.RandomNormal(stddev=0.5, seed=3)
    x = keras.layers.Flatten()(layer(ROWS, DIM, embeddings_initializer=initial, name="table", **settings)(ids))
    return model(ids, keras.layers.Dense(1, use_bias=True, name="out", kernel_initializer=keras.initializers.RandomNormal(seed=4))(x))


class Reference:
    """The linear model with one table in float64, trained by AdaGrad or Adam of distinct rows."""

    def __init__(self, model: Any, rule: str, clip: float | None) -> None:
        values = {variable.path: keras.ops.convert_to_numpy(variable).astype("float64") for variable in model.trainable_variables}
        self.table, self.kernel, self.bias = (
            next(x for path, x in values.items() if path.endswith(end)) for end in ("embeddings", "kernel", "bias")
        )
        self.rule, self.clip = rule, clip
        self.sums, self.first, self.second, self.step = np.zeros(ROWS), np.zeros((ROWS, DIM)), np.zeros((ROWS, DIM)), 0

    def train(self, ids: np.ndarray, target: np.ndarray) -> None:
        """One step of SGD with rate 0.01 for kernel and bias, and of the rule for the table."""
        ids = np.where(ids < 0, ids + ROWS, ids)
        x = self.table[ids].reshape(BATCH, -1)
        slope = 2 * (x @ self.kernel + self.bias - target) / BATCH
        gradient = np.zeros((ROWS, DIM))
        np.add.at(gradient, ids, (slope @ self.kernel.T).reshape(BATCH, LOOKS, DIM))
        self.kernel, self.bias = self.kernel - 0.01 * x.T @ slope, self.bias - 0.01 * slope.sum(axis=0)
        if self.clip is not None:
            gradient *= self.clip / max(self.clip, np.sqrt((gradient**2).sum()))
        rows = np.unique(ids)
        g, self.step = gradient[rows], self.step + 1
        if self.rule == "rowwise_adagrad":
            self.sums[rows] += (g**2).mean(axis=1)
            self.table[rows] -= RATE * g / (np.sqrt(self.sums[rows]) + 1e-8)[:, None]
        else:
            self.first[rows] = 0.9 * self.first[rows] + 0.1 * g
            self.second[rows] = 0.999 * self.second[rows] + 0.001 * g**2
            rate = RATE * np.sqrt(1 - 0.999**self.step) / (1 - 0.9**self.step)
            self.table[rows] -= rate * self.first[rows] / (np.sqrt(self.second[rows]) + 1e-7)


def table_of(model: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(model.get_layer("table").embeddings)


def optimizer_of(rule: str, **settings: Any) -> kr.training.TableOptimizer:
    return kr.training.TableOptimizer(keras.optimizers.SGD(0.01), rule, learning_rate=RATE, **settings)


KINDS = {
    "compiled": (kr.models.TableModel, kr.layers.TableEmbedding, {"jit_compile": True}),
    "eager": (kr.models.TableModel, kr.layers.TableEmbedding, {"run_eagerly": True}),
    "keras model": (keras.Model, kr.layers.TableEmbedding, {"jit_compile": True}),
    "keras layer": (kr.models.TableModel, keras.layers.Embedding, {"jit_compile": False}),
}


CASES = [
    ("compiled", "rowwise_adagrad", None),
    ("compiled", "lazy_adam", CLIP),
    ("eager", "lazy_adam", None),
    ("keras model", "rowwise_adagrad", CLIP),
    ("keras layer", "lazy_adam", CLIP),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("kind", "rule", "clip"), CASES)
def test_touched_rows_are_those_of_the_reference(kind: str, rule: str, clip: float | None) -> None:
    settings = dict(KINDS[kind][2])
    if BACKEND == "torch":
        settings.pop("jit_compile", None)
    model = linear(*KINDS[kind][:2])
    start = table_of(model)
    reference = Reference(model, rule, clip)
    model.compile(optimizer_of(rule, clip_norm=clip), loss="mse", **settings)
    for step in range(STEPS):
        model.train_on_batch(*data(step))
        reference.train(*data(step))
    np.testing.assert_allclose(table_of(model), reference.table, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(table_of(model)[ROWS // 2 :], start[ROWS // 2 :])
    assert np.abs(table_of(model) - start)[: ROWS // 2].max() > 0.05  # control: the rows did move


def test_gradients_are_by_rows_where_it_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that costs what the rows cost was taken, not the one over the whole table."""
    from keras_ranking.optimizers import table_optimizer

    kinds = []
    real = table_optimizer.touched

    def watched(*arguments: Any) -> Any:
        kinds.append(type(found := real(*arguments)).__name__)
        return found

    monkeypatch.setattr(table_optimizer, "touched", watched)
    for model, layer, settings in KINDS.values():
        found = linear(model, layer)
        found.compile(optimizer_of("rowwise_adagrad"), loss="mse", **({} if BACKEND == "torch" else settings))
        found.train_on_batch(*data(0))
    whole = {"jax": {"keras model", "keras layer"}, "torch": {"keras layer"}, "tensorflow": set()}[BACKEND]
    assert len(kinds) >= len(KINDS)
    assert kinds[0] == "TouchedRows" and kinds[-1] == ("TouchedMask" if "keras layer" in whole else "TouchedRows")


def test_a_penalty_on_the_whole_table_is_not_lost() -> None:
    """A regularizer reads all rows: all of them have a gradient then, and none is dropped."""
    model, settings = linear(embeddings_regularizer=keras.regularizers.L2(0.1)), {} if BACKEND == "torch" else {"jit_compile": True}
    start = table_of(model)
    model.compile(optimizer_of("rowwise_adagrad"), loss="mse", **settings)
    model.train_on_batch(*data(0))
    assert (np.abs(table_of(model) - start) > 0).all(axis=1).all()
    ids, target = data(0)
    reference = Reference(linear(), "rowwise_adagrad", None)
    reference.train(ids, target)  # the touched rows have both gradients: only their signs are easily known
    far = np.arange(ROWS // 2, ROWS)
    # an untouched row w has the gradient 0.2 w, and moves by rate g / sqrt(mean g^2)
    expected = start[far] - RATE * start[far] / np.sqrt((start[far] ** 2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(table_of(model)[far], expected, atol=1e-5)


def two_tables() -> Any:
    """Two tables, one of them looked up twice, and a layer that is no table."""
    first, second = keras.Input((LOOKS,), dtype="int32"), keras.Input((LOOKS,), dtype="int32")
    table, small = kr.layers.TableEmbedding(ROWS, DIM, name="table"), kr.layers.TableEmbedding(ROWS // 2, DIM, name="small")
    x = keras.layers.Concatenate(axis=1)([table(first), table(second), small(first)])
    return kr.models.TableModel([first, second], keras.layers.Dense(1, name="out")(keras.layers.Flatten()(x)))


def test_several_look_ups_and_tables_below_min_rows() -> None:
    model = two_tables()
    model.compile(optimizer_of("rowwise_adagrad", min_rows=ROWS), loss="mse")
    ids, target = data(0)
    ids = np.abs(ids) % (ROWS // 2)
    others = ids + ROWS // 2
    before, small = table_of(model), keras.ops.convert_to_numpy(model.get_layer("small").embeddings)
    kernel, bias = (keras.ops.convert_to_numpy(x).astype("float64") for x in model.get_layer("out").weights)
    model.train_on_batch([ids, others], target)
    x = np.concatenate([before[ids], before[others], small[ids]], axis=1).reshape(BATCH, -1)
    slope = ((2 * (x @ kernel + bias - target) / BATCH) @ kernel.T).reshape(BATCH, 3 * LOOKS, DIM)
    gradient = np.zeros((ROWS, DIM))
    np.add.at(gradient, np.concatenate([ids, others], axis=1), slope[:, : 2 * LOOKS])
    expected = before - RATE * gradient / (np.sqrt((gradient**2).mean(axis=1, keepdims=True)) + 1e-8)
    np.testing.assert_allclose(table_of(model), expected, atol=1e-5)
    of_small = np.zeros((ROWS // 2, DIM))
    np.add.at(of_small, ids, slope[:, 2 * LOOKS :])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model.get_layer("small").embeddings), small - 0.01 * of_small, atol=1e-6)
    assert len(model.optimizer.rows._sums) == 1


def test_saved_and_loaded_it_goes_on_to_the_same_weights(tmp_path: Any) -> None:
    model = linear()
    schedule = keras.optimizers.schedules.ExponentialDecay(RATE, 2, 0.5)
    model.compile(kr.training.TableOptimizer(keras.optimizers.Adam(0.01), "lazy_adam", learning_rate=schedule, clip_norm=CLIP), loss="mse")
    for step in range(2):
        model.train_on_batch(*data(step))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert is_updated_by_rows(loaded.get_layer("table").embeddings)
    for each in (model, loaded):
        each.train_on_batch(*data(2))
    for a, b in zip([*model.variables, *model.optimizer.variables], [*loaded.variables, *loaded.optimizer.variables], strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def test_compiled_again_with_another_optimiser_the_whole_table_is_trained() -> None:
    model = linear()
    model.compile(optimizer_of("lazy_adam"), loss="mse")
    model.train_on_batch(*data(0))
    model.compile("adamw", loss="mse")
    before = table_of(model)
    model.train_on_batch(*data(1))
    assert (table_of(model) != before).any(axis=1).all()  # weight decay moves all rows


@pytest.mark.few(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str) -> None:
    """Loss scaling divides gradients by rows and looks whether they are finite; a step with infinite ones changes nothing."""
    keras.config.set_dtype_policy(policy)
    try:
        model = linear()
        model.compile(optimizer_of("rowwise_adagrad"), loss="mse")
    finally:
        keras.config.set_dtype_policy("float32")
    start, reference = table_of(model), Reference(model, "rowwise_adagrad", None)
    model.train_on_batch(*data(0))
    reference.train(*data(0))
    np.testing.assert_allclose(table_of(model), reference.table, atol=0.02)
    np.testing.assert_array_equal(table_of(model)[ROWS // 2 :], start[ROWS // 2 :])
    if policy == "mixed_float16":
        before = table_of(model)
        ids, target = data(1)
        model.train_on_batch(ids, np.full_like(target, 1e30))
        np.testing.assert_array_equal(table_of(model), before)


def test_callbacks_move_the_rates_of_tables_and_other_weights() -> None:
    """A callback sets the one `learning_rate`: tables would go on at their first rate."""
    model = linear()
    model.compile(optimizer_of("rowwise_adagrad"), loss="mse")
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(*data(0), epochs=2, callbacks=[halve], verbose=0)
    rates = model.optimizer, model.optimizer.rows
    assert [float(rate.learning_rate) for rate in rates] == pytest.approx([0.01 / 4, RATE / 4])
    model.optimizer.learning_rate = 0.0
    before = table_of(model)
    model.train_on_batch(*data(0))
    np.testing.assert_array_equal(table_of(model), before)
    model.optimizer.learning_rate = 0.01
    assert [float(rate.learning_rate) for rate in rates] == pytest.approx([0.01, RATE])
    scheduled = optimizer_of("lazy_adam")
    scheduled.rows.learning_rate = keras.optimizers.schedules.ExponentialDecay(RATE, 2, 0.5)
    scheduled.learning_rate = 0.5
    assert float(scheduled.learning_rate) == 0.5 and float(scheduled.rows.learning_rate) == pytest.approx(RATE)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "sgd"}, "`rule` must be one of"),
        ({"min_rows": 0}, "`min_rows` must be positive"),
        ({"epsilon": 0.0}, "`epsilon` must be positive"),
        ({"beta_1": 1.0}, "`beta_1` must be from 0 to below 1"),
        ({"optimizer": keras.optimizers.Adam(use_ema=True)}, "`use_ema` of `optimizer` would not hold for the tables"),
        ({"optimizer": keras.optimizers.Adam(gradient_accumulation_steps=2)}, "`gradient_accumulation_steps` of `optimizer`"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.training.TableOptimizer(**{"optimizer": "sgd", **settings})


@pytest.mark.quickest
def test_without_a_table_it_is_an_error() -> None:
    model = linear()
    model.compile(optimizer_of("lazy_adam", min_rows=ROWS + 1), loss="mse")
    with pytest.raises(ValueError, match="no trainable table has a path that matches `tables` and at least `min_rows` rows"):
        model.train_on_batch(*data(0))


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is torch's")
def test_in_torch_compile_the_gradient_is_of_the_whole_table() -> None:
    """torch.compile cannot trace sparse gradients."""
    import torch

    from keras_ranking.ops.tables import look_up

    model = linear()
    optimizer = optimizer_of("rowwise_adagrad")
    optimizer.build(model.trainable_variables)
    table, ids = model.get_layer("table").embeddings, torch.tensor([1, 1, 2])
    for compiled in (False, True):
        table.value.grad = None
        function = torch.compile(look_up, backend="eager") if compiled else look_up
        function(table, ids).sum().backward()
        assert table.value.grad.is_sparse != compiled
        np.testing.assert_array_equal(table.value.grad.to_dense()[:4].sum(1), [0, 2 * DIM, DIM, 0])


@pytest.mark.few(1)
@pytest.mark.parametrize("model", [kr.models.TableModel, keras.Model])
def test_a_loss_scale_around_it_changes_no_weight(model: Any) -> None:
    trained = []
    for scaled in (False, True):
        made = linear(model)
        optimizer: Any = kr.training.TableOptimizer(keras.optimizers.SGD(0.01), learning_rate=RATE)
        made.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, loss="mse", jit_compile=False)
        for step in range(3):
            made.train_on_batch(*data(step))
        trained.append(made.get_weights())
        assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 3
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"`loss_scale_factor` must be None: use keras.optimizers.LossScaleOptimizer"):
        kr.training.TableOptimizer("adam").loss_scale_factor = 8.0
