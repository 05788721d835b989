"""Running commands and reading their errors."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from keras_ranking.cli import main
from tests import preloaded

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--members", "60", "--days", "4")


def run(*arguments: str, backend: str = "torch", **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process. On torch, which starts and trains small models fastest."""
    return preloaded.run(["-m", "keras_ranking.cli", *arguments], backend, {"PYTHONPATH": str(ROOT)}, quick_exports=False, **settings)


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
