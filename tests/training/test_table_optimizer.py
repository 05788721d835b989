"""`train` updates large tables by rows: chosen by default, said at the start, resumed to the same weights, for each kind of id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import Log
from keras_ranking.training import TrainingOptions, train
from tests.training.crashes import CrashAfter

SMALL = {"num_layers": 1, "dim": 16, "num_heads": 2, "epochs": 1, "batch_size": 2, "row_length": 64}
LARGE = 100_001


@pytest.fixture(scope="module")
def log() -> Log:
    return kr.data.simulate(members=30, days=3, seed=0)


def with_ids(log: Log, **settings: Any) -> Log:
    """The log with another kind of id for its items."""
    features = [kr.Id("item_id", **settings) if feature.name == "item_id" else feature for feature in log.schema.features]
    return Log(log.events, log.schema.model_copy(update={"features": tuple(features)}), log.name)


def table_of(model: Any, rows: int) -> np.ndarray:
    return next(keras.ops.convert_to_numpy(x) for x in model.trainable_variables if x.path.endswith("/embeddings") and x.shape[0] == rows)


@pytest.mark.release("jax")
def test_a_large_table_is_updated_by_rows_and_it_is_said(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    data = with_ids(log, buckets=LARGE)
    model, _ = train(data, "cadet", options=SMALL, seed=1)
    assert isinstance(model.optimizer, kr.training.TableOptimizer)
    assert "tables updated by rows, rowwise_adagrad: table_item_id (100,001 rows)" in capsys.readouterr().out
    sums = keras.ops.convert_to_numpy(model.optimizer.rows._sums[0])
    assert 0 < (sums > 0).sum() <= data.events["item_id"].nunique()  # one row an item that was looked up


@pytest.mark.quickest
def test_small_tables_keep_the_other_optimiser(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = train(with_ids(log, buckets=1000), "cadet", options=SMALL, seed=1)
    assert isinstance(model.optimizer, keras.optimizers.AdamW) and "by rows" not in capsys.readouterr().out


@pytest.mark.quickest
def test_stopped_and_resumed_the_weights_are_the_same(log: Log, tmp_path: Path) -> None:
    data, options = with_ids(log, buckets=None, divisor=2**16), {**SMALL, "table_optimizer": "lazy_adam", "epochs": 2}

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    every_step = options | {"checkpoint_every": 1}
    whole, _ = train(data, "cadet", tmp_path / "whole", options=options | {"checkpoint_every": 100}, verbose=False)
    with pytest.raises(KeyboardInterrupt):
        train(data, "cadet", tmp_path / "stopped", options=every_step, verbose=False, callbacks=[Stop()])
    resumed, _ = train(data, "cadet", tmp_path / "stopped", options=every_step, verbose=False, resume=True)
    for a, b in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    start = [x for x in whole.optimizer.rows.variables if x.path.endswith("velocity")]
    assert start and all((keras.ops.convert_to_numpy(x) > 0).any() for x in start)


@pytest.mark.quickest
def test_a_daily_step_goes_on_with_the_state_of_the_rows(log: Log, tmp_path: Path) -> None:
    data = with_ids(log, buckets=500)
    model, _ = train(
        data,
        "lirank",
        tmp_path / "run",
        options={"table_optimizer": "rowwise_adagrad", "hidden": (8,), "history_features": (), "epochs": 1},
        verbose=False,
    )
    before = keras.ops.convert_to_numpy(model.optimizer.rows._sums[0])
    new = (data.events["split"] == "validation").to_numpy()
    warm, _ = kr.training.warm_start(data, tmp_path / "run", new, verbose=False)
    after = keras.ops.convert_to_numpy(warm.optimizer.rows._sums[0])
    assert (after >= before).all() and (after > before).any()


@pytest.mark.quickest
def test_tables_have_a_decay_and_a_rate_of_their_own(log: Log, tmp_path: Path) -> None:
    """Rows that no event has decay alone: each step takes rate * decay of them, and none of the other weights with decay 0."""
    data = with_ids(log, buckets=500)
    own = {"table_optimizer": "adamw", "table_weight_decay": 0.5, "table_learning_rate": 0.02, "weight_decay": 0.0, "schedule": "constant"}
    options = {**SMALL, "epochs": 2, **own}
    first: list[Any] = []

    class First(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            first[:] = [keras.ops.convert_to_numpy(v).copy() for v in self.model.trainable_variables]

    every_step = options | {"checkpoint_every": 1}
    model, _ = train(data, "cadet", tmp_path / "whole", options=options | {"checkpoint_every": 100}, verbose=False, callbacks=[First()])
    steps = kr.training.read_checkpoint(tmp_path / "whole").about["progress"]["step"]
    (number,) = [i for i, v in enumerate(model.trainable_variables) if v.path.endswith("table_item_id/embeddings")]
    table = keras.ops.convert_to_numpy(model.trainable_variables[number])
    untouched = np.isclose(table, first[number] * (1 - 0.02 * 0.5) ** steps, rtol=1e-4, atol=0).all(axis=1)
    assert 100 < untouched.sum() < 500  # the ids of the log are few, those of its events moved
    with pytest.raises(RuntimeError, match="crash"):
        train(data, "cadet", tmp_path / "stopped", options=every_step, verbose=False, callbacks=[CrashAfter(steps // 2)])
    resumed, _ = train(data, "cadet", tmp_path / "stopped", options=every_step, verbose=False, resume=True)
    for a, b in zip(model.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.quickest
def test_options() -> None:
    with pytest.raises(ValueError, match="`table_weight_decay` must not be negative. Received: table_weight_decay=-1"):
        TrainingOptions(table_optimizer="adamw", table_weight_decay=-1.0)
    with pytest.raises(ValueError, match="`table_optimizer` must be one of"):
        TrainingOptions(table_optimizer="sgd")
