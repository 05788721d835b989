"""Running commands and reading their errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keras_ranking.cli import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--members", "60", "--days", "4")


def run(*arguments: str, backend: str = "torch", **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process. On torch, which starts and trains small models fastest."""
    command = [sys.executable, "-m", "keras_ranking.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, **settings)


def usage_error(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(str(stopped.value.code))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr with the error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("keras-ranking ")]
    assert len(lines) == 1
    return lines[0]
