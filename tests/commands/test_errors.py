"""Command line: bad input is exit code 2 with one line, a failure is 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from keras_ranking.cli import main
from tests.commands.shell import SMALL, one_line, write

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "--out", "log.txt"), r"`--out` must end in .parquet, .csv or .csv.gz. Received: log.txt"),
        (("simulate", "--out", "{tmp}/log.csv", "--set", "drift=2"), r"`drift` must be between 0 and 1. Received: drift=2"),
        (("simulate", "--out", "{tmp}/log.csv", "--set", "drfit=1"), r"simulate\(\) has no option 'drfit'"),
        (("score", "{tmp}/none.json", "--server", "127.0.0.1:1"), r"none.json"),
        (("score", "{tmp}/text.json", "--server", "127.0.0.1:1"), r"text.json is not JSON"),
        (("score", "{tmp}/list.json", "--server", "127.0.0.1:1"), r"a request must have the keys time, candidates"),
        (("score", "{tmp}/half.json", "--server", "127.0.0.1:1"), r"a request must have the keys .* Received: \['items', 'time'\]"),
        (("score", "--server", "127.0.0.1:1"), r"give a REQUEST file, or --candidates FILE and --time SECONDS"),
        (("score", "{tmp}/good.json", "--time", "5", "--server", "127.0.0.1:1"), r"not both"),
        (("score", "{tmp}/good.json", "--server", "127.0.0.1:1"), r"`--server` needs --schema FILE"),
        (("score", "{tmp}/good.json", "--server", "127.0.0.1:1", "--schema", "{tmp}/bad_schema.json"), r"line 1: `tasks` must be given"),
        (("score", "--candidates", "{tmp}/x.txt", "--time", "5", "--server", "127.0.0.1:1"), r"must come from a .parquet, .csv"),
        (("score", "--candidates", "{tmp}/none.csv", "--time", "5", "--server", "127.0.0.1:1"), r"no file .*none.csv"),
    ],
)
def test_bad_input_is_2_in_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "text.json", "{")
    write(tmp_path / "list.json", "[1, 2]")
    write(tmp_path / "half.json", '{"time": 5, "items": []}')
    write(tmp_path / "good.json", '{"time": 5, "candidates": [{"item_id": 1}]}')
    write(tmp_path / "bad_schema.json", '{"member": "m", "time": "t", "request": "r", "features": []}')
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    assert re.search(message, one_line(capsys))


@pytest.mark.parametrize(
    ("source", "extra", "message"),
    [
        ("simulate", (), r"`--data` must be one of simulated, ebnerd:FOLDER"),
        ("ebnerd:{tmp}/nothing", (), r"nothing"),
        ("parquet:{tmp}/none.parquet", ("--schema", "{tmp}/none.json"), r"none"),
        ("parquet:{tmp}/none.parquet", (), r"`--schema` must be given with source 'parquet:FILE'"),
        ("simulated", ("--schema", "{tmp}/none.json"), r"none.json"),
    ],
)
def test_bad_source_is_2(source: str, extra: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", "--data", source, "--out", "{tmp}/out", *extra)
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    assert re.search(message, one_line(capsys))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_missing_model_is_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = {"evaluate": ("--data", "simulated"), "export": ("--out", str(tmp_path / "served"))}[command]
    assert main([command, str(tmp_path), *rest]) == 2
    assert "no model at" in one_line(capsys)


def test_debug_raises_the_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in"):
        main(["simulate", "--out", str(tmp_path / "log.txt"), "--debug"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_a_failure_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").symlink_to("/dev/full")
    assert main(["simulate", *SMALL, "--out", str(tmp_path / "log.csv")]) == 1
    assert "No space left on device" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--new-events", "2026-01-09", "--out", "{tmp}/out"), r"`--new-events` needs `--resume DIR`"),
        (("--resume", "{tmp}", "--new-events", "2026-01-09"), r"`--new-events` needs `--out`"),
        (("--resume", "{tmp}", "--seed", "3"), r"`--seed` is that of the training in --resume. Received: 3"),
        (("--resume", "{tmp}", "--out", "{tmp}/out"), r"`--out` is that of the training in --resume"),
        (("--resume", "{tmp}", "--set", "dim=8"), r"`--set` is that of the training in --resume. Received: dim"),
        (("--resume", "{tmp}"), r"no checkpoint.npz in "),
    ],
)
def test_wrong_options_of_resume_are_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert main(["train", "--data", "simulated", *given]) == 2
    assert re.search(message, one_line(capsys))
