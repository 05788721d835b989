"""Commands find a wrong schema, file or column before Keras starts, in the words of the shell; `--on-error drop` tells what it left out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import build_parser, main
from tests.commands.shell import one_line

QUICK = ("--model", "lirank", "--epochs", "1", "--set", 'features=["age_hours"]', "--set", "history_features=[]", "--set", "hidden=[4]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet log with two bad rows in a training split, its schema, and files with mistakes."""
    path = tmp_path_factory.mktemp("logs")
    log = kr.data.simulate(members=12, days=2, seed=0)
    events = log.events.copy()
    events.to_parquet(path / "good.parquet")
    events.loc[events.index[[3, 5]], "age_hours"] = [-1.0, np.inf]
    events.to_parquet(path / "bad.parquet")
    events.drop(columns="topic").to_parquet(path / "less.parquet")
    log.schema.save(path / "schema.json")
    (path / "wrong.json").write_text((path / "schema.json").read_text().replace('"id"', '"ident"', 1))
    return path


def test_a_wrong_schema_is_found_before_keras_starts(folder: Path) -> None:
    code = (
        "import sys; from keras_ranking.cli import main\n"
        f"for schema, log in (('wrong', 'good'), ('schema', 'less'), ('none', 'good'), ('schema', 'none')):\n"
        f"    files = ['--data', f'parquet:{folder}/{{log}}.parquet', '--schema', f'{folder}/{{schema}}.json']\n"
        "    assert main(['train', *files, '--out', 'x']) == 2\n"
        "assert 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("keras-ranking train")]
    kinds = "'id', 'category', 'ids', 'semantic_id', 'number', 'vector' or 'count'"
    assert "wrong.json, line " in lines[0] and f"`kind` must be {kinds}" in lines[0]
    assert "column 'topic' of the schema is not in the log" in lines[1]
    assert len(lines) == 4 and "starting keras" not in done.stderr


def test_events_and_tasks_are_checked_before_keras_starts(folder: Path) -> None:
    """By `export --events`, `skew` and `score`, with the schema of the run."""
    (folder / "request.json").write_text('{"time": 5, "candidates": []}')
    code = (
        "import sys; from keras_ranking.cli import main\n"
        f"less, run = '{folder}/less.parquet', '{folder}'\n"
        "assert main(['export', run, '--out', 'x', '--events', less]) == 2\n"
        "assert main(['skew', '--model', 'x', '--keras', run, '--events', less]) == 2\n"
        f"assert main(['score', '{folder}/request.json', '--model', run, '--task', 'clik']) == 2\n"
        "assert 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("keras-ranking ")]
    assert len(lines) == 3 and all("column 'topic' of the schema is not in the log" in line for line in lines[:2])
    assert "unknown task 'clik'" in lines[2]


def test_bad_rows_stop_or_are_left_out_and_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        "train",
        "--data",
        f"parquet:{folder}/bad.parquet",
        "--schema",
        f"{folder}/schema.json",
        "--out",
        str(tmp_path / "run"),
        *QUICK,
    )
    assert main([*source, "--quiet"]) == 2
    line = one_line(capsys)
    assert "the log has 2 problems" in line and "--on-error drop leaves such rows out and counts them" in line and "on_error" not in line
    assert main([*source, "--quiet", "--on-error", "drop"]) == 0
    told = capsys.readouterr().err
    assert re.search(
        r"warning: \d+ of \d+ rows kept\n  1 left out: column 'age_hours' must hold finite numbers \(first: inf at row 5 ", told
    )
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert sum(entry["rows"] for entry in history["left_out"].values()) == 2

    # `evaluate` takes the schema of the run, and the same argument.
    evaluate = ("evaluate", str(tmp_path / "run"), "--data", f"parquet:{folder}/bad.parquet")
    assert main([*evaluate]) == 2
    assert "--on-error drop" in one_line(capsys)
    assert main([*evaluate, "--on-error", "drop"]) == 0
    assert "auc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "num_layers=two"), "`num_layers` must be an integer. Received: num_layers='two'"),
        (("--set", "dim=8", "--set", "dim=16"), "`dim` must be given once. Received: dim=8, dim=16"),
        (("--epochs", "2", "--set", "epochs=3"), r"`--epochs` must be given once. Received: epochs=2 and options\['epochs'\]=3"),
        (("--model", "lirank", "--preset", "feed", "--set", "preset=ads"), "`--preset` must be given once"),
    ],
)
def test_settings_are_named(
    arguments: tuple[str, ...], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("train", "--data", f"parquet:{folder}/good.parquet", "--schema", f"{folder}/schema.json", "--out", str(tmp_path / "run"))
    assert main([*source, *arguments]) == 2
    assert re.search(message, one_line(capsys))


def test_evaluate_names_the_splits(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.keras").touch()
    (tmp_path / "schema.json").write_text((folder / "schema.json").read_text())
    assert main(["evaluate", str(tmp_path), "--data", f"parquet:{folder}/good.parquet", "--split", "val"]) == 2
    assert "the log 'good' has no rows with split 'val'. It has: ['test', 'train', 'validation']" in one_line(capsys)


def test_a_csv_without_a_header_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame([[5, 1.5, "a"], [6, 2.5, "b"]]).to_csv(tmp_path / "rows.csv", index=False, header=False)
    assert main(["score", "--candidates", str(tmp_path / "rows.csv"), "--time", "5", "--model", str(tmp_path)]) == 2
    assert "rows.csv must begin with a line of column names. Received: a first line of values, ['5', '1.5', 'a']" in one_line(capsys)


def test_the_arguments_are_in_the_help() -> None:
    for command in ("train", "evaluate"):
        parsed = build_parser().parse_args([command, *(["run"] if command == "evaluate" else ["--out", "run"]), "--data", "simulated"])
        assert parsed.on_error is None
