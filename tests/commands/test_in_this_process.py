"""Commands run in this process: simulated logs, the daily step, tasks of a score."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.commands.common import read_rows
from tests.commands.shell import SMALL, one_line


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz"])
def test_simulate_writes_log_and_schema(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "--seed", "3", "--set", "items_per_day=40", "--out", str(tmp_path / "new" / name)]) == 0
    path = tmp_path / "new" / name
    events = pd.read_parquet(path) if name.endswith("parquet") else pd.read_csv(path)
    schema = kr.Schema.load(tmp_path / "new" / "log.schema.json")
    assert set(schema.columns) | {"split"} <= set(events.columns)
    assert f"{len(events):,} impressions of 60 members" in capsys.readouterr().out
    from keras_ranking.data import simulate

    again = simulate(members=60, days=4, seed=3, items_per_day=40).events
    np.testing.assert_array_equal(events["item_id"], again["item_id"])
    assert not np.array_equal(events["item_id"][:100], simulate(members=60, days=4, seed=4, items_per_day=40).events["item_id"][:100])


@pytest.mark.quickest
def test_in_a_log_without_splits_all_earlier_rows_are_history(tmp_path: Path) -> None:
    """As in serving: a daily step reads all days between the earlier training rows and the new rows."""
    from keras_ranking.commands.learning import _with_new_events

    log = kr.data.simulate(members=20, days=5, seed=1)
    path, schema = tmp_path / "log.parquet", tmp_path / "schema.json"
    log.events.drop(columns="split").to_parquet(path)
    log.schema.save(schema)
    edge = int(np.quantile(log.events["time"], 0.95))
    day = pd.Timestamp(edge, unit="s").isoformat()
    found, new = _with_new_events(Namespace(data=f"parquet:{path}", schema=str(schema), new_events=day), 0)
    assert (found.events["split"] == "train").all()
    np.testing.assert_array_equal(new, log.events["time"].to_numpy() >= edge)
    assert 0 < new.sum() < 0.2 * len(new), "the new rows are among those that would be validation rows of a cold start"


@pytest.mark.slow
@pytest.mark.quickest
def test_the_daily_step_in_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished training continues with the rows from a day on, and with the rows of a file; both read the whole log."""
    log = kr.data.simulate(members=40, days=5, seed=1)
    old = log.events["split"] == "train"
    paths = {name: tmp_path / f"{name}.parquet" for name in ("all", "old", "new")}
    log.events.assign(split=log.events["split"].replace("validation", "train")).to_parquet(paths["all"])
    log.events[old].to_parquet(paths["old"])
    log.events[log.events["split"] == "validation"].drop(columns="split").to_parquet(paths["new"])
    schema = tmp_path / "log.schema.json"
    log.schema.save(schema)
    cold = tmp_path / "cold"
    small = [f"--set={name}={value}" for name, value in (("dim", 8), ("num_layers", 1), ("num_heads", 2), ("row_length", 64))]
    source = ["--data", f"parquet:{paths['old']}", "--schema", str(schema), "--quiet"]
    assert main(["train", *source, "--out", str(cold), "--epochs", "1", *small]) == 0
    day = pd.Timestamp(int(log.events["time"][log.events["split"] == "validation"].min()), unit="s").isoformat()
    everything = ["--data", f"parquet:{paths['all']}", "--schema", str(schema), "--quiet", "--resume", str(cold)]
    assert main(["train", *everything, "--new-events", day, "--out", str(tmp_path / "by_day")]) == 0
    more = ["--resume", str(cold), "--new-events", f"parquet:{paths['new']}"]
    assert main(["train", *source, *more, "--out", str(tmp_path / "by_file")]) == 0
    new = int((log.events["split"] == "validation").sum())
    assert capsys.readouterr().err.count(f"{new:,} new events") == 2
    one, other = (kr.models.load(tmp_path / name).get_weights() for name in ("by_day", "by_file"))
    before = kr.models.load(cold).get_weights()
    for a, b in zip(one, other, strict=True):  # the same rows either way
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one, before, strict=True))
    assert json.loads((tmp_path / "by_day" / "history.json").read_text())["train_events"] == new
    assert main(["train", *source, "--resume", str(cold)]) == 2
    assert "is finished. To train it on newer events, give --new-events and --out" in one_line(capsys)
    assert main(["train", *everything, "--new-events", "1st of May", "--out", str(tmp_path / "x")]) == 2


@pytest.mark.quickest
def test_score_with_one_of_two_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The task is not the schema's first, candidates lack a column that the model does not read, and texts of a file stay texts."""
    log = kr.data.simulate(members=10, days=2, seed=0)
    schema = log.schema.fit(log.events)
    model = kr.models.CADET(schema, dim=8, num_layers=1, num_heads=2, tasks=["like"], token_features=["topic"], late_features=["device"])
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    schema.save(tmp_path / "run" / "schema.json")
    rows = log.events[log.events["request_id"] == log.events["request_id"].iloc[-1]]
    rows[["topic", "device"]].to_json(tmp_path / "candidates.json", orient="records")
    options = [
        "--model",
        str(tmp_path / "run"),
        "--candidates",
        str(tmp_path / "candidates.json"),
        "--time",
        str(int(rows["time"].iloc[0])),
    ]
    assert main(["score", *options, "--json"]) == 0
    ranked = json.loads(capsys.readouterr().out)
    assert len(ranked) == len(rows) and set(ranked[0]) == {"rank", "candidate", "like"}
    assert main(["score", *options, "--task", "click"]) == 2
    assert "`--task` must be one that the model scores, ['like']. Received: click" in one_line(capsys)
    (tmp_path / "ids.json").write_text('[{"item_id": "007", "published_at": 1700000000}]')
    found = read_rows(str(tmp_path / "ids.json"))
    assert found["item_id"].tolist() == ["007"] and found["published_at"].tolist() == [1_700_000_000]


@pytest.mark.quickest
def test_a_recipe_in_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag is an option of `train`; a training is resumed with the recipe of its checkpoint."""
    log = kr.data.simulate(members=30, days=4, seed=1)
    log.events.to_parquet(tmp_path / "log.parquet")
    log.schema.save(tmp_path / "schema.json")
    source = ["train", "--data", f"parquet:{tmp_path / 'log.parquet'}", "--schema", str(tmp_path / "schema.json"), "--quiet"]
    small = ["--model", "LiRank", "--epochs", "2", '--set=features=["age_hours"]', "--set=history_features=[]", "--set=hidden=[8]"]
    recipe = ["--validation", "0.2", "--early-stopping", "1", "--monitor", "auc", "--schedule", "onecycle", "--metric", "NormalizedEntropy"]
    assert main([*source, *small, *recipe, "--optimizer", "adam", "--out", str(tmp_path / "run")]) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    chosen = {"validation": 0.2, "early_stopping": 1, "monitor": "auc", "schedule": "onecycle", "optimizer": "adam"}
    assert history["recipe"] == {**chosen, "metrics": ["NormalizedEntropy"]}
    assert {"val_click_auc", "click_normalized_entropy"} <= history["epochs"].keys() and history["best"]["monitor"] == "val_auc"
    capsys.readouterr()
    assert main([*source, "--resume", str(tmp_path / "run"), "--metric", "AUC"]) == 2
    assert "`--metric` is that of the training in --resume" in one_line(capsys)
    assert main([*source, *small, "--early-stopping", "1", "--out", str(tmp_path / "other")]) == 2
    assert "`--early-stopping` needs `--validation`" in one_line(capsys)
    assert main([*source, *small, "--validation", "0.2", "--set=validation=0.1", "--out", str(tmp_path / "other")]) == 2
    assert "`--validation` must be given once" in one_line(capsys)
