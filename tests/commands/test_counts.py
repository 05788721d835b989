"""Counts of the schema on the command line: a log without the columns is trained on, evaluated, continued, and scored from its run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.commands.exports import _checked_events
from tests.commands.shell import one_line

COUNTS = (kr.Count("item_id", action="click"), kr.Count(("member_id", "topic"), of="views"))
NAMES = [count.name for count in COUNTS]
MODEL = ("--model", "lirank", "--epochs", "1", "--set", f"features={json.dumps([*NAMES, 'age_hours'])}", "--set", "history_features=[]")
pytestmark = pytest.mark.quickest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three days in parquet, the same with a fourth day, a schema with counts, and a run on the first."""
    path = tmp_path_factory.mktemp("counts")
    log = kr.data.simulate(members=30, days=4, seed=0)
    schema = log.schema.model_copy(update={"features": (*log.schema.features, *COUNTS)})
    schema.save(path / "schema.json")
    events = log.events.sort_values("time", kind="stable")
    events.to_parquet(path / "all.parquet")
    events[events["split"] != "test"].to_parquet(path / "log.parquet")
    events[events["split"] == "test"].assign(split="train").to_parquet(path / "day.parquet")
    assert main(["train", *source(path), *MODEL, "--set", "hidden=[4]", "--out", str(path / "run"), "--quiet"]) == 0
    return path


def source(path: Path, name: str = "log") -> list[str]:
    return ["--data", f"parquet:{path / name}.parquet", "--schema", str(path / "schema.json")]


def test_evaluate_reads_the_states_of_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder / "run"), *source(folder), "--json", str(folder / "results.json")]) == 0
    got = json.loads((folder / "results.json").read_text())
    log = kr.data.open_log(f"parquet:{folder}/log.parquet", schema=folder / "schema.json")
    assert got["click"] == kr.training.evaluate(kr.models.load(folder / "run"), kr.data.with_counts(log))["click"]
    assert "click" in capsys.readouterr().out


def test_the_daily_step_goes_on(folder: Path, tmp_path: Path) -> None:
    more = ["--resume", str(folder / "run"), "--new-events", f"parquet:{folder}/day.parquet", "--out", str(tmp_path), "--quiet"]
    assert main(["train", *source(folder), *more]) == 0
    log = kr.data.open_log(f"parquet:{folder}/all.parquet", schema=folder / "schema.json")
    assert kr.data.saved_counts(tmp_path).digest == kr.data.with_counts(log).counts.digest


def test_score_fills_the_candidates(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events = pd.read_parquet(folder / "all.parquet")
    now = int(pd.read_parquet(folder / "log.parquet")["time"].max()) + 30
    model, counts = kr.models.load(folder / "run"), kr.data.saved_counts(folder / "run")
    known = [feature.name for feature in model.schema.inputs() if feature.name not in NAMES]
    candidates = events[known].tail(5).reset_index(drop=True)
    from keras_ranking.commands import score_here

    wanted = score_here(model, pd.DataFrame(), counts.with_features(candidates, now, member_id=3), now)["click"]
    rows = json.loads(candidates.to_json(orient="records"))
    for more in ({"member": 3}, {"history": [{"member_id": 3, "time": now - 50}]}):
        (tmp_path / "request.json").write_text(json.dumps({"time": now, "candidates": rows, **more}))
        assert main(["score", str(tmp_path / "request.json"), "--model", str(folder / "run"), "--json"]) == 0
        got = {row["candidate"]: row["click"] for row in json.loads(capsys.readouterr().out)}
        np.testing.assert_allclose([got[row] for row in range(5)], wanted, rtol=1e-6)
    (tmp_path / "request.json").write_text(json.dumps({"time": now, "candidates": rows}))
    assert main(["score", str(tmp_path / "request.json"), "--model", str(folder / "run")]) == 2
    assert "counts of 'member_id' need the key member of the request" in one_line(capsys)


def test_rows_for_a_check_of_skew_are_counted(folder: Path) -> None:
    got = _checked_events(str(folder / "log.parquet"), str(folder / "run"))
    log = kr.data.open_log(f"parquet:{folder}/log.parquet", schema=folder / "schema.json")
    pd.testing.assert_frame_equal(got[NAMES], kr.data.with_counts(log).events[NAMES])


def test_a_log_without_what_is_counted_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.read_parquet(folder / "log.parquet").drop(columns="topic").to_parquet(folder / "less.parquet")
    assert main(["train", *source(folder, "less"), *MODEL, "--out", str(folder / "x")]) == 2
    assert "column 'topic' of the schema is not in the log" in one_line(capsys)
