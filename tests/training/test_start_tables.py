"""Embedding tables that start from item factors: before the first step, once, and told in the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import StartTables, train, warm_start
from tests.training.crashes import CrashAfter

OPTIONS: dict[str, Any] = {"features": ("item_id", "age_hours"), "history_features": (), "hidden": (8,), "cross_layers": 1}
OPTIONS |= {"row_length": 64, "batch_size": 2}


@pytest.fixture(scope="module")
def log() -> kr.data.Log:
    return kr.data.simulate(members=30, days=3, seed=0)


@pytest.fixture(scope="module")
def factors(log: kr.data.Log) -> kr.data.ItemFactors:
    return kr.data.item_factors(log.split("train"), "member_id", "item_id", "click", dim=8)


def table(model: Any) -> np.ndarray:
    (found,) = [variable for variable in model.trainable_variables if variable.path.endswith("table_item_id/embeddings")]
    return np.asarray(keras.ops.convert_to_numpy(found))


@pytest.mark.quickest
def test_a_table_starts_from_the_factors(log: kr.data.Log, factors: kr.data.ItemFactors, tmp_path: Path) -> None:
    options = {**OPTIONS, "learning_rate": 1e-9, "weight_decay": 0.0}
    start = StartTables({"item_id": factors}, deviation=0.3)
    model, history = train(log, "lirank", tmp_path / "a", epochs=1, options=options, callbacks=[start], verbose=False)
    expected = factors.table(log.schema.inputs(["item_id"])[0], 0.3, dim=30)
    np.testing.assert_allclose(table(model), expected, rtol=0, atol=1e-5)
    assert history["started_tables"] == {"item_id": factors.digest}
    plain, other = train(log, "lirank", epochs=1, options=options, verbose=False)
    assert np.abs(table(plain) - expected).max() > 0.02 and "started_tables" not in other, "control"
    # a training that goes on keeps its tables
    new = (log.events["split"] == "validation").to_numpy()
    further, _ = warm_start(log, tmp_path / "a", new, callbacks=[StartTables({"item_id": factors}, deviation=3.0)], verbose=False)
    assert np.abs(table(further) - expected).max() < 0.02


@pytest.mark.quickest
def test_a_resumed_training_needs_the_same_factors(log: kr.data.Log, factors: kr.data.ItemFactors, tmp_path: Path) -> None:
    options = {**OPTIONS, "checkpoint_every": 1}
    start = StartTables({"item_id": factors})
    whole, _ = train(log, "lirank", tmp_path / "b", epochs=1, options=options, callbacks=[start], verbose=False)
    with pytest.raises(RuntimeError, match="crash"):
        train(log, "lirank", tmp_path / "c", epochs=1, options=options, callbacks=[start, CrashAfter(2)], verbose=False)
    with pytest.raises(ValueError, match="started_tables"):
        train(log, "lirank", tmp_path / "c", epochs=1, options=options, verbose=False, resume=True)
    again, _ = train(log, "lirank", tmp_path / "c", epochs=1, options=options, callbacks=[start], verbose=False, resume=True)
    np.testing.assert_array_equal(table(again), table(whole))


@pytest.mark.quickest
def test_errors(log: kr.data.Log, factors: kr.data.ItemFactors) -> None:
    with pytest.raises(ValueError, match="at least one column"):
        StartTables({})
    with pytest.raises(TypeError, match="must be ItemFactors by column"):
        StartTables({"item_id": np.zeros((3, 4))})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="`deviation` must be positive"):
        StartTables({"item_id": factors}, deviation=0)
    for column in ("author_id", "age_hours", "no_such"):
        with pytest.raises(ValueError, match=f"the model embeds. Received: '{column}'"):
            train(log, "lirank", epochs=1, options=OPTIONS, callbacks=[StartTables({column: factors})], verbose=False)
    small = {**OPTIONS, "id_dim": 4}
    with pytest.raises(ValueError, match="must have at least 8 columns"):
        train(log, "lirank", epochs=1, options=small, callbacks=[StartTables({"item_id": factors})], verbose=False)
    with pytest.raises(ValueError, match="monitors 'val_loss'"):
        stop = keras.callbacks.EarlyStopping(monitor="val_loss")
        train(log, "lirank", epochs=1, options=OPTIONS, callbacks=[StartTables({"item_id": factors}), stop], verbose=False)
