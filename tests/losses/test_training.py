"""The losses inside `compile` and `fit`: several tasks, weights per task, compiled, unknown batch size, mixed precision."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking import metrics
from keras_ranking.losses import ObservedTowerLoss
from tests.losses.helpers import random_batch

BOUNDARIES = (1, 4)
ROWS, TOKENS, WIDTH = 12, 16, 5


def _data() -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
    click, _, weight, _ = random_batch(rng, ROWS, TOKENS)
    dwell = click.copy()
    click[..., 0] = x[..., 0] > 0.3
    dwell[..., 0] = x[..., 1] > 0.3
    return x, {"click": click, "dwell": dwell}, {"click": weight, "dwell": (weight > 0.3).astype(np.float32)}


def _model(policy: str = "float32") -> keras.Model:
    inputs = keras.Input((None, WIDTH), name="x")
    towers = {name: keras.layers.Dense(3, name=name, dtype=policy)(inputs) for name in ("click", "dwell")}
    return keras.Model(inputs, towers)


class Rows(keras.utils.PyDataset):
    """Batches of 5, 5 and 2 rows, the second shorter: in TensorFlow neither the batch size nor the row length is known."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.w = _data()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        rows, length = slice(5 * index, 5 * index + 5), TOKENS - 3 if index == 1 else TOKENS
        y, w = ({name: value[rows, :length] for name, value in part.items()} for part in (self.y, self.w))
        return self.x[rows, :length], y, w


COMPILED = {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}[keras.backend.backend()]


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.release("jax"))])
def test_fit_learns_both_tasks(jit_compile: bool, policy: str) -> None:
    model = _model(policy)
    loss = {name: ObservedTowerLoss(BOUNDARIES, 0.2, 0.2, same_bucket=False, window=6) for name in ("click", "dwell")}
    model.compile(keras.optimizers.Adam(0.2), loss=loss, jit_compile=jit_compile)
    history = model.fit(Rows(), epochs=8, verbose=0).history
    assert set(history) == {"loss", "click_loss", "dwell_loss"}
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    for name in ("click", "dwell"):
        assert history[f"{name}_loss"][-1] < 0.7 * history[f"{name}_loss"][0]


def test_fit_reports_the_loss_that_a_call_gives() -> None:
    x, y, w = _data()
    model, loss = _model(), ObservedTowerLoss(BOUNDARIES, 0.2, 0.2, window=6)
    model.compile("sgd", loss={"click": loss, "dwell": loss})
    result = model.evaluate(x, y, sample_weight=w, batch_size=ROWS, verbose=0, return_dict=True)
    logits = model.predict(x, batch_size=ROWS, verbose=0)
    each = {name: float(loss(y[name], logits[name], w[name])) for name in ("click", "dwell")}
    assert result["click_loss"] == pytest.approx(each["click"], rel=1e-5)
    assert result["loss"] == pytest.approx(sum(each.values()), rel=1e-5)
    # Control: without its weights the loss differs.
    assert float(loss(y["click"], logits["click"])) != pytest.approx(each["click"], rel=1e-3)


def test_a_saved_model_keeps_its_loss(tmp_path: Any) -> None:
    model = _model()
    loss = ObservedTowerLoss(BOUNDARIES, pairwise_weight=0.2, window=6)
    model.compile("sgd", loss={"click": loss, "dwell": loss})
    x, y, w = _data()
    wanted = model.evaluate(x, y, sample_weight=w, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.evaluate(x, y, sample_weight=w, verbose=0, return_dict=True) == pytest.approx(wanted, rel=1e-6)


def test_a_keras_mask_is_a_weight_of_zero() -> None:
    x, y, w = _data()
    hidden = x.copy()
    hidden[:, TOKENS // 2 :] = 0.0
    inputs = keras.Input((None, WIDTH))
    masked = keras.layers.Masking()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(masked))
    loss = ObservedTowerLoss(BOUNDARIES, 0.2, 0.2)
    logits = model(hidden)
    shown = w["click"].copy()
    shown[:, TOKENS // 2 :] = 0.0
    wanted = float(loss(y["click"], ops.convert_to_numpy(logits), shown))
    assert float(loss(y["click"], logits, w["click"])) == pytest.approx(wanted, rel=1e-6)
    assert float(loss(y["click"], ops.convert_to_numpy(logits), w["click"])) != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_a_keras_mask_in_a_training_step(eager: bool) -> None:
    """In compiled steps too, where JAX keeps the mask apart from the tensor: labels of padding change neither loss nor metrics."""
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Embedding(10, 4, mask_zero=True)(ids)))
    own = [metrics.NormalizedEntropy(from_logits=True), metrics.ReplayContributionRate()]
    model.compile("sgd", ObservedTowerLoss(), metrics=own, run_eagerly=eager)
    found = []
    for padding in (0.0, 1.0):
        y = np.ones((1, 5, 3), np.float32)
        y[0, :, 0] = [0.0, 1.0, 0.0, padding, padding]
        found.append(model.evaluate(np.array([[1, 2, 3, 0, 0]], np.int32), y, verbose=0))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.compile is torch's")
def test_torch_compile() -> None:
    """One task: to compile the loss of each further one takes half a minute."""
    inputs = keras.Input((None, WIDTH), name="x")
    model = keras.Model(inputs, {"click": keras.layers.Dense(3, name="click")(inputs)})
    x, y, w = _data()
    batch = {"y": {"click": y["click"]}, "sample_weight": {"click": w["click"]}, "verbose": 0, "return_dict": True}
    losses = []
    for jit_compile in (False, True):
        model.compile("sgd", loss={"click": ObservedTowerLoss(BOUNDARIES, 0.2, 0.2, window=6)}, jit_compile=jit_compile)
        losses.append(model.evaluate(x, **batch)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
