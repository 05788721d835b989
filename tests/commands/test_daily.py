"""`train --new-events` with the options of the daily step: what goes together, the report, the exported version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.training import read_checkpoint
from tests.commands.shell import one_line, usage_error

pytestmark = pytest.mark.quickest
OPTIONS = {"history_features": (), "hidden": (8,), "cross_layers": 1, "row_length": 32, "explore": ("click",)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "DIR", "--penalty", "fisher"], "`--penalty` is of the daily step: it needs --resume RUN and --new-events."),
        (["--resume", "DIR", "--explore"], "`--explore` is of the daily step"),
        (["--resume", "DIR", "--learning-rate", "1e-3"], "`--learning-rate` is of the daily step"),
        (["--resume", "DIR", "--new-events", "2026-01-04", "--forgetting", "3"], "`--forgetting` needs `--penalty`."),
        (["--resume", "DIR", "--new-events", "2026-01-04", "--effects-window", "3d"], "`--effects-window` needs `--refresh-effects`."),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "simulated", *arguments]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    "arguments", [["--refresh-effects", "8"], ["--forgetting", "-1"], ["--penalty", "l2"], ["--epochs", "-1"], ["--learning-rate", "0"]]
)
def test_values_that_are_none(arguments: list[str]) -> None:
    assert usage_error("train", "--data", "simulated", "--resume", "DIR", "--new-events", "2026-01-04", *arguments) == 2


def day(folder: Path, *more: str) -> int:
    """One day of the log in the current folder."""
    given = ["--resume", "monday", "--new-events", "parquet:new.parquet", "--out", str(folder), "--quiet"]
    return main(["train", "--data", "parquet:old.parquet", *given, *more])


@pytest.fixture
def monday(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of some days and its model, and the day after."""
    monkeypatch.chdir(tmp_path)
    log = kr.data.simulate(members=20, days=3, seed=4)
    later = log.events["split"] != "train"
    log.events[~later].drop(columns="split").to_parquet("old.parquet", index=False)
    log.events[later].drop(columns="split").to_parquet("new.parquet", index=False)
    kr.training.train(log, "lirank", "monday", epochs=1, options=OPTIONS, verbose=False)


def test_a_day_is_reported(monday: None, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert day(Path("tuesday"), "--penalty", "fisher", "--forgetting", "5", "--explore", "--learning-rate", "5e-4") == 0
    printed, report = capsys.readouterr().out, json.loads(Path("tuesday/daily.json").read_text())
    assert f"{report['new_events']:,} new events" in printed and "scored before they were learned" in printed
    assert "Fisher penalty 5; measured on" in printed and "exploration: standard deviation" in printed
    assert f"{report['before']['click']['log_loss']:.4f}" in printed
    assert report["penalty"]["forgetting"] == 5.0 and "version" not in report
    assert read_checkpoint("tuesday").about["learning_rate"] == 5e-4
    # A step without a penalty keeps the rate of the step before, or takes another.
    for given, rate in (([], 5e-4), (["--learning-rate", "1e-4"], 1e-4)):
        begin = ["train", "--data", "parquet:old.parquet", "--resume", "tuesday", "--new-events", "parquet:new.parquet"]
        assert main([*begin, "--out", "wednesday", "--quiet", *given]) == 0
        assert read_checkpoint("wednesday").about["learning_rate"] == rate


@pytest.mark.slow
@pytest.mark.one_backend
def test_a_day_is_exported_as_the_canary(monday: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Two days: the label `stable` stays at the first version; a version of skewed events is not written."""
    kr.serving.export("monday", "served", verify=False)
    assert day(Path("tuesday"), "--epochs", "0", "--explore", "--export", "served") == 0
    assert "version 2 without skew; labels: canary 2, stable 1" in capsys.readouterr().out
    report = json.loads(Path("tuesday/daily.json").read_text())
    assert report["version"]["labels"] == {"canary": 2, "stable": 1} and report["loss"] == []
