"""Counts of the schema in a training: saved with the run, continued by the daily step, read by an evaluation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import evaluate, train, warm_start
from tests.training.crashes import CrashAfter

pytestmark = pytest.mark.quickest

RATE, VIEWS = kr.Count("item_id", action="click", window=7200), kr.Count("member_id", of="views")
NAMES = [RATE.name, VIEWS.name]
SMALL: dict[str, Any] = {
    "features": (*NAMES, "age_hours"),
    "history_features": (),
    "hidden": (8,),
    "cross_layers": 1,
    "batch_size": 3,
    "row_length": 64,
}
SETTINGS: dict[str, Any] = {"options": SMALL, "epochs": 1, "verbose": False, "seed": 3}


@pytest.fixture(scope="module")
def log() -> kr.data.Log:
    made = kr.data.simulate(members=30, days=4, seed=1)
    schema = made.schema.model_copy(update={"features": (*made.schema.features, RATE, VIEWS)})
    return kr.data.Log(made.events.sort_values("time", kind="stable"), schema, "mine")


@pytest.fixture(scope="module")
def day(log: kr.data.Log) -> kr.data.Log:
    """The log without its last day."""
    return replace(log, events=log.events[log.events["split"] != "test"])


@pytest.fixture(scope="module")
def run(day: kr.data.Log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("runs") / "day"
    model, history = train(day, "lirank", folder, **SETTINGS)
    return folder, model, history


def test_a_training_equals_one_on_the_columns_and_saves_the_states(day: kr.data.Log, run: tuple[Path, Any, Any]) -> None:
    folder, model, history = run
    counted = kr.data.with_counts(day)
    numbers = [kr.Number(count.name, transform=count.transform, known="context") for count in (RATE, VIEWS)]
    schema = day.schema.model_copy(update={"features": (*day.schema.features[:-2], *numbers)})
    other, _ = train(kr.data.Log(counted.events, schema, "plain"), "lirank", **SETTINGS)
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert kr.data.saved_counts(folder).digest == counted.counts.digest
    newest = int(day.events["time"].max())
    assert history["counts"] == {"columns": NAMES, "rows": len(day.events), "newest": newest, "digest": counted.counts.digest}
    assert json.loads((folder / "history.json").read_text())["counts"] == history["counts"]


def test_an_evaluation_counts_from_the_run_as_from_the_start(log: kr.data.Log, run: tuple[Path, Any, Any]) -> None:
    folder, model, _ = run
    whole = evaluate(model, log, "test")
    assert evaluate(folder, log, "test") == whole
    assert evaluate(model, kr.data.with_counts(log), "test") == whole
    late = replace(log, events=log.events[log.events["split"] == "test"])
    # Rows later than the states of the run: their past is in these. Control: counted from the first row of this log.
    assert evaluate(folder, late, "test")["click"] == pytest.approx(whole["click"], rel=1e-5)
    assert evaluate(model, late, "test")["click"] != pytest.approx(whole["click"], rel=1e-5)


@pytest.mark.parametrize("old_rows", [True, False])
def test_the_daily_step_continues_the_states(log: kr.data.Log, run: tuple[Path, Any, Any], old_rows: bool, tmp_path: Path) -> None:
    folder, _, _ = run
    marks = (log.events["split"] == "test").to_numpy()
    given = log if old_rows else replace(log, events=log.events[marks])
    new = marks if old_rows else marks[marks]
    model, history = warm_start(given, folder, new, tmp_path / "next", verbose=False)
    start = kr.data.with_counts(log)
    assert history["counts"]["digest"] == start.counts.digest == kr.data.saved_counts(tmp_path / "next").digest
    assert history["counts"]["rows"] == len(log.events)
    same = start if old_rows else replace(start, events=start.events[marks])
    other, _ = warm_start(same, folder, new, verbose=False)
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_resumed_training_saves_the_states_of_an_uninterrupted_one(day: kr.data.Log, run: tuple[Path, Any, Any], tmp_path: Path) -> None:
    _, whole, history = run
    every_step = {**SETTINGS, "options": {**SMALL, "checkpoint_every": 1}}
    with pytest.raises(RuntimeError, match="crash"):
        train(day, "lirank", tmp_path, callbacks=[CrashAfter(2)], **every_step)
    assert kr.data.saved_counts(tmp_path) is None
    model, resumed = train(day, "lirank", tmp_path, resume=True, **every_step)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed["counts"] == history["counts"]


def test_states_of_another_run_are_not_read(day: kr.data.Log, run: tuple[Path, Any, Any], tmp_path: Path) -> None:
    shutil.copytree(run[0], tmp_path / "mixed")
    kr.data.with_counts(replace(day, events=day.events.head(100))).counts.save(tmp_path / "mixed" / "counts")
    with pytest.raises(ValueError, match="are not those of the run: their digest differs"):
        evaluate(tmp_path / "mixed", day)
    numbers = [kr.Number(name, transform="standardise", known="context") for name in NAMES]
    schema = day.schema.model_copy(update={"features": (*day.schema.features[:-2], *numbers)})
    train(kr.data.Log(kr.data.with_counts(day).events, schema, "plain"), "lirank", tmp_path / "mixed", **SETTINGS)
    assert kr.data.saved_counts(tmp_path / "mixed") is None  # a training without counts leaves none of an earlier one


def test_a_training_tells_what_it_counted(day: kr.data.Log, capsys: pytest.CaptureFixture[str]) -> None:
    train(day, "lirank", **{**SETTINGS, "verbose": True})
    assert f"counts of {len(day.events):,} rows, all splits: {', '.join(NAMES)}" in capsys.readouterr().out
    given = replace(kr.data.with_counts(day), counts=None)
    _, history = train(given, "lirank", **{**SETTINGS, "verbose": True})
    assert "no state is saved for serving" in capsys.readouterr().out and "counts" not in history


def test_bad_rows_are_left_out_of_training_and_of_the_counts(day: kr.data.Log) -> None:
    events = day.events.assign(click=day.events["click"].astype(float))
    events.iloc[3, events.columns.get_loc("click")] = 7.5  # no label, but a number that could be counted
    events.iloc[5, events.columns.get_loc("click")] = np.nan
    with pytest.warns(UserWarning, match="left out"):
        _, history = train(replace(day, events=events), "lirank", on_error="drop", **SETTINGS)
    assert sum(found["rows"] for found in history["left_out"].values()) == 2
    assert history["counts"]["rows"] == len(events) - 1
