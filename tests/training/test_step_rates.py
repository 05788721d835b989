"""`learning_rate` of a daily step: the rate of every part of the optimiser, kept by the steps that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import daily_step, read_checkpoint, train, warm_start
from tests.compiling import JIT

OPTIONS: dict[str, Any] = {
    "features": ("item_id", "age_hours"),
    "history_features": (),
    "hidden": (8,),
    "cross_layers": 1,
    "id_dim": 4,
    "row_length": 64,
    "jit_compile": JIT,
    "learning_rate": 2e-3,
}


@pytest.fixture(scope="module")
def log() -> kr.data.Log:
    return kr.data.simulate(members=20, days=3, seed=2)


@pytest.fixture(scope="module")
def new(log: kr.data.Log) -> np.ndarray:
    return (log.events["split"] == "validation").to_numpy()


class Rates(keras.callbacks.Callback):
    """The rates of the parts of an optimiser at the end of a training: of most weights, and of tables."""

    def on_train_end(self, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        own, tables = {
            "MultiOptimizer": lambda: optimizer.optimizers[::-1],
            "TableOptimizer": lambda: (optimizer.optimizer, optimizer.rows),
        }.get(type(optimizer).__name__, lambda: (optimizer, optimizer))()
        self.found = [self.now(own), self.now(tables)]

    def now(self, part: Any) -> float:
        rate = getattr(part, "learning_rate", None)
        rate = rate(self.model.optimizer.iterations) if callable(rate) else rate
        return float(keras.ops.convert_to_numpy(rate))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "constant", "onecycle"])
@pytest.mark.parametrize(("rule", "tables"), [("same", 2e-3), ("adagrad", 0.05), ("rowwise_adagrad", 0.03)])
def test_all_parts_have_the_rate_and_the_next_steps_keep_it(
    schedule: str, rule: str, tables: float, log: kr.data.Log, new: np.ndarray, tmp_path: Path
) -> None:
    own = {"schedule": schedule, "table_optimizer": rule} | ({} if rule == "same" else {"table_learning_rate": tables})
    source, _ = train(log, "lirank", tmp_path / "cold", 0, 1, {**OPTIONS, **own}, verbose=False)
    before = np.array(source.get_layer("ids").get_weights()[0])
    ended = 1.0 if schedule == "constant" else 0.01
    for given, share in ((None, ended), (1e-3, 0.5)):
        seen = Rates()
        model, _ = warm_start(log, tmp_path / "cold", new, tmp_path / "warm", verbose=False, callbacks=[seen], learning_rate=given)
        np.testing.assert_allclose(seen.found, [share * 2e-3, share * tables], rtol=1e-5)
        assert (np.array(model.get_layer("ids").get_weights()[0]) != before).any()
        assert read_checkpoint(tmp_path / "warm").about["learning_rate"] == given
    for given, share in ((None, 0.5), (4e-4, 0.2)):
        seen = Rates()
        warm_start(log, tmp_path / "warm", new, verbose=False, callbacks=[seen], learning_rate=given)
        np.testing.assert_allclose(seen.found, [share * 2e-3, share * tables], rtol=1e-5)


@pytest.mark.quickest
def test_the_optimisers_state_is_kept(log: kr.data.Log, new: np.ndarray, tmp_path: Path) -> None:
    """All but the rate goes on: one step at the rate at which a constant training ended is the step without the argument."""
    train(log, "lirank", tmp_path, 0, 1, {**OPTIONS, "schedule": "constant"}, verbose=False)
    models = [warm_start(log, tmp_path, new, verbose=False, learning_rate=rate)[0].get_weights() for rate in (None, 2e-3, 1e-3)]
    assert all(np.array_equal(one, other) for one, other in zip(models[0], models[1], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(models[0], models[2], strict=True))


@pytest.mark.quickest
def test_shards_ensembles_and_the_daily_step_take_it(log: kr.data.Log, new: np.ndarray, tmp_path: Path) -> None:
    options = {**OPTIONS, "schedule": "cosine"}
    kr.data.prepare(log, tmp_path / "shards", shards=1)
    shards = kr.data.ShardedLog(tmp_path / "shards")
    train(shards, "lirank", tmp_path / "one", 0, 1, options, verbose=False)
    seen = Rates()
    warm_start(shards, tmp_path / "one", "validation", verbose=False, callbacks=[seen], learning_rate=1e-3)
    np.testing.assert_allclose(seen.found, [1e-3, 1e-3], rtol=1e-5)
    train(log, "lirank", tmp_path / "two", 0, 1, {**options, "ensemble": 2}, verbose=False)
    warm_start(log, tmp_path / "two", new, tmp_path / "next", verbose=False, learning_rate=1e-3)
    members = [read_checkpoint(folder).about["learning_rate"] for folder in sorted((tmp_path / "next" / "members").glob("[0-9]"))]
    assert members == [1e-3, 1e-3]
    train(log, "lirank", tmp_path / "three", 0, 1, options, verbose=False)
    daily_step(log, tmp_path / "three", new, tmp_path / "four", verbose=False, callbacks=[seen], learning_rate=5e-4)
    np.testing.assert_allclose(seen.found, [5e-4, 5e-4], rtol=1e-5)


@pytest.mark.quickest
def test_wrong_rates(log: kr.data.Log, new: np.ndarray, tmp_path: Path) -> None:
    train(log, "lirank", tmp_path / "named", 0, 1, OPTIONS, verbose=False)
    for wrong in (0, -1.0, float("nan"), "1e-3", True):
        with pytest.raises(ValueError, match="`learning_rate` must be a positive number"):
            warm_start(log, tmp_path / "named", new, learning_rate=wrong)  # type: ignore[arg-type]
    own = {name: value for name, value in OPTIONS.items() if name != "learning_rate"}
    for name, option in (
        ("an optimiser", {"optimizer": keras.optimizers.Adam(1e-3)}),
        ("a schedule", {"schedule": keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.9)}),
    ):
        train(log, "lirank", tmp_path / name, 0, 1, {**own, **option}, verbose=False)
        with pytest.raises(ValueError, match=f"`learning_rate` does not go with {name} of Keras that the training was given"):
            warm_start(log, tmp_path / name, new, learning_rate=1e-3)
    with pytest.raises(TypeError, match=r"daily_step\(\) has no argument 'rate'"):
        daily_step(log, tmp_path / "named", new, tmp_path / "out", rate=1e-3)
