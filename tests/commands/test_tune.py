"""`tune` and `train --from-study` in this process: what goes together, listing, the chosen setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.commands import tuning
from keras_ranking.tuning import Float, Search
from keras_ranking.tuning.running import work
from keras_ranking.tuning.store import ENVIRONMENT
from keras_ranking.tuning.studies import make, objective_of
from tests.commands.shell import one_line, usage_error
from tests.training.small import SMALL

pytestmark = pytest.mark.quickest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "DIR"], "`--out` needs --data SOURCE."),
        (["--join", "DIR", "--sampler", "tpe"], "`--sampler` is that of the study"),
        (["--join", "DIR", "--list"], "`--list` needs --study DIR."),
        (["--study", "DIR", "--trials", "3", "--list"], "need --out DIR or --join DIR"),
        (["--study", "DIR"], "`--study` needs one of --list, --best, --report, --cancel TRIAL and --dashboard."),
        (["--study", "DIR", "--list"], "no study in 'DIR'"),
        (["--out", "DIR", "--data", "simulated", "--json"], "`--json` needs --study DIR."),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    "arguments", [[], ["--join", "a", "--out", "b"], ["--out", "a", "--confirm", "5"], ["--study", "a", "--cancel", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert usage_error("tune", *arguments) == 2
    assert usage_error("train", "--out", "a") == 2


@pytest.mark.slow
def test_a_study_is_run_listed_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The processes of the workers are this one: they are tested in tests/tuning/test_workers.py."""
    log = kr.data.simulate(members=20, days=4, seed=0)
    log.events.to_parquet(tmp_path / "log.parquet")
    log.schema.save(tmp_path / "schema.json")
    (tmp_path / "space.json").write_text('{"learning_rate": {"type": "float", "low": 0.001, "high": 0.01, "log": true}}')
    monkeypatch.chdir(tmp_path)

    def here(store: Any, command: list[str], workers: int, environment: Any, name: str | None = None) -> int:
        assert environment[ENVIRONMENT] == store.url and "--worker" in command and store.url not in command and workers == 2
        work(store, objective_of(store), name, verbose=False)
        return 0

    monkeypatch.setattr("keras_ranking.tuning.supervising.supervise", here)
    given = ["--data", "parquet:log.parquet", "--schema", "schema.json", "--space", "space.json", "--trials", "2", "--workers", "2"]
    for name, value in SMALL.items():
        given += ["--set", f"{name}={json.dumps(value)}"]
    assert main(["tune", "--model", "lirank", "--out", "study", *given, "--set", "epochs=1", "--confirm", "2x2"]) == 0
    assert "fresh seeds" in capsys.readouterr().out and (tmp_path / "study" / "report.html").is_file()
    assert main(["tune", "--study", "study", "--list"]) == 0
    assert capsys.readouterr().out.count("finished, ") == 2
    assert main(["tune", "--study", "study", "--list", "--json"]) == 0
    assert [row["trial"] for row in json.loads(capsys.readouterr().out)] == [0, 1]
    assert main(["tune", "--study", "study", "--best", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert main(["train", "--from-study", "study", "--out", "tuned", "--quiet"]) == 0
    history = json.loads((tmp_path / "tuned" / "history.json").read_text())
    assert history["training"]["learning_rate"] == best["training"]["learning_rate"]
    assert "recipe" not in history, "all training rows are learned"
    assert history["train_events"] == int((log.events["split"] == "train").sum())
    assert main(["train", "--from-study", "study", "--out", "tuned", "--epochs", "3"]) == 2
    assert "`--epochs` is that of the study" in one_line(capsys)


def test_a_source_is_found_from_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tuning._absolute("parquet:log.parquet") == f"parquet:{tmp_path / 'log.parquet'}"
    assert tuning._absolute("simulated") == "simulated"


def test_a_study_made_in_python_asks_for_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = kr.data.simulate(members=12, days=3, seed=0)
    settings = {"search": Search(), "space": {"learning_rate": Float(1e-3, 1e-2)}, "trials": 1, "options": {**SMALL, "epochs": 1}}
    store, _ = make(log, "lirank", tmp_path / "study", settings)
    assert main(["tune", "--join", str(tmp_path / "study")]) == 2
    assert "was given in Python and is not stored" in one_line(capsys)
    with pytest.raises(ValueError, match="`log` must be given"):
        objective_of(store)
