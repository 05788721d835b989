"""What the commands share: quiet imports, the backend, rows of files, values for JSON, the token."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from keras_ranking.commands.common import finite, plain_value, quiet_imports, read_rows, start_keras, token


def test_the_lines_of_an_import_are_shown_only_where_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_imports():
        os.write(2, b"a line of a library\n")
    assert "library" not in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="broken"), quiet_imports():
        os.write(2, b"why it is broken\n")
        raise RuntimeError("broken")
    assert "why it is broken" in capfd.readouterr().err
    with quiet_imports(debug=True):
        os.write(2, b"a line of a library\n")
    assert "library" in capfd.readouterr().err


def test_another_backend_than_the_running_one_is_refused() -> None:
    running = keras.backend.backend()
    other = "jax" if running != "jax" else "torch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", running)
        with pytest.raises(ValueError, match=f"`--backend` cannot change once keras is imported. Received: {other}; running: {running}"):
            start_keras(argparse.Namespace(backend=other, debug=False))


def test_rows_are_read_by_the_kind_of_file(tmp_path: Path) -> None:
    rows = pd.DataFrame({"item": ["007", "8"], "age": [0.1, 2.0]})
    rows.to_json(tmp_path / "rows.json", orient="records")
    assert read_rows(str(tmp_path / "rows.json"))["item"].tolist() == ["007", "8"], "texts stay texts"
    with pytest.raises(ValueError, match=r"rows must come from a .parquet, .csv, .csv.gz or .json file. Received: rows.txt"):
        read_rows("rows.txt")
    with pytest.raises(FileNotFoundError, match="no file nothing.csv"):
        read_rows("nothing.csv")


def test_values_for_json() -> None:
    assert finite({"auc": float("nan"), "inner": {"loss": 0.5}}) == {"auc": None, "inner": {"loss": 0.5}}
    assert plain_value(np.int64(3)) == 3 and plain_value(Path("a")) == "a"


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    monkeypatch.setenv("KERAS_RANKING_TOKEN", "from-the-environment")
    assert token(argparse.Namespace(token_file=str(tmp_path / "token"))) == "from-a-file"
    assert token(argparse.Namespace(token_file=None)) == "from-the-environment"
    monkeypatch.delenv("KERAS_RANKING_TOKEN")
    assert token(argparse.Namespace(token_file=None)) is None
