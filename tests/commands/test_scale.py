"""Commands for logs beyond memory: `prepare`, `--data shards:FOLDER`, `score-log`."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.commands.scale import size
from tests.data.shards.logs import as_files, mixed_log

TINY = ["--epochs", "1", *[part for option in ("dim=8", "num_layers=1", "num_heads=2", "row_length=64") for part in ("--set", option)]]


@pytest.mark.slow
@pytest.mark.quickest
def test_from_files_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb", reason="the extra `scale` is not installed")
    monkeypatch.chdir(tmp_path)
    log = mixed_log()
    as_files(log, tmp_path / "logs")
    log.schema.save("schema.json")
    prepare = ["prepare", "--data", "parquet:logs", "--schema", "schema.json", "--shards", "2"]
    assert main([*prepare, "--out", "shards", "--memory", "1GB", "--keep", "seen_after"]) == 0
    assert "600 events of 40 members in 2 shards" in capsys.readouterr().out
    assert main(["train", "--data", "shards:shards", "--out", "run", *TINY, "--quiet"]) == 0
    assert main(["evaluate", "run", "--data", "shards:shards", "--split", "test"]) == 0
    assert "impression_auc" in capsys.readouterr().out
    assert main(["score-log", "run", "--data", "shards:shards", "--out", "scores", "--split", "test"]) == 0
    assert f"{kr.data.ShardedLog('shards').splits['test']} rows scored: scores" in capsys.readouterr().out
    found = pd.read_parquet("scores")
    assert set(found["row"]) == set(np.flatnonzero(log.events["split"] == "test"))
    edge = pd.Timestamp(int(log.events["at"][log.events["split"] == "train"].quantile(0.8)), unit="s").isoformat()
    assert main(["train", "--data", "shards:shards", "--resume", "run", "--new-events", edge, "--out", "next", "--quiet"]) == 0
    assert (tmp_path / "next" / "model.keras").is_file()


def test_a_simulated_log_is_prepared_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--data", "simulated", "--out", str(tmp_path / "shards"), "--shards", "2", "--seed", "1"]) == 0
    assert "in 2 shards" in capsys.readouterr().out
    assert kr.data.ShardedLog(tmp_path / "shards").preset == "simulated"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["prepare", "--data", "simulated", "--engine", "duckdb", "--out", "x"],
            "`--engine duckdb` reads parquet:LOGS.",
        ),
        (["prepare", "--data", "parquet:logs", "--out", "x"], "`--schema FILE` must say what the columns of a parquet log are."),
        (["train", "--data", "shards:none", "--out", "x"], "must hold a sharded log"),
        (["train", "--data", "shards:x", "--schema", "y", "--out", "x"], "`--schema` is that of `keras-ranking prepare`"),
        (["score-log", "none", "--data", "shards:x", "--out", "y"], "no model at 'none'"),
    ],
)
def test_wrong_uses_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_sizes_are_read() -> None:
    assert [size(text) for text in ("4GB", "500 MB", "1.5gb", "1000")] == [4e9, 5e8, 1.5e9, 1000]
    with pytest.raises(ArgumentTypeError, match="must be a size such as 4GB. Received: 'much'"):
        size("much")
