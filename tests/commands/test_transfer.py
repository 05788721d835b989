"""`train --from` in this process: what goes together, both parts, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keras_ranking.cli import main
from tests.commands.shell import one_line
from tests.training.transfer import surfaces

pytestmark = pytest.mark.quickest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "DIR", "--tasks", "like"], "`--tasks` needs `--from DIR`, the trained model."),
        (["--out", "DIR", "--train", "heads"], "`--train` needs `--from DIR`"),
        (["--from", "DIR", "--out", "DIR", "--model", "cadet"], "`--model` does not go with `--from`"),
        (["--from", "DIR", "--resume", "DIR"], "`--resume` does not go with `--from`"),
        (["--from", "DIR", "--out", "DIR"], "no model at 'DIR'"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "simulated", *arguments]) == 2
    assert message in one_line(capsys)


@pytest.mark.slow
def test_a_transfer_is_trained_compared_and_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    surfaces.source("lirank", Path("feed"))
    log = surfaces.second()
    log.events.to_parquet("clips.parquet")
    log.schema.save(Path("clips.json"))
    data = ["--data", "parquet:clips.parquet", "--schema", "clips.json"]
    given = ["--from", "feed", "--tasks", "like", "--epochs", "1", "--out", "clips", "--quiet", "--compare", "validation"]
    assert main(["train", *data, *given]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[-4:]] == ["source", "scratch", "heads", "all"]
    rows = json.loads(Path("clips/transfer.json").read_text())["rows"]
    assert [row["scored_by"] for row in rows] == ["click", "", "", ""] and all(0 < row["auc"] < 1 for row in rows)
    history = json.loads(Path("clips/history.json").read_text())["transfer"]
    assert history["train"] == "heads" and history["frozen"] == history["kept"]
    assert main(["train", *data, "--resume", "clips"]) == 2
    assert "is finished" in one_line(capsys)
