"""A process of its own for a part of an export, and the error of a model that was not exported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class ExportError(RuntimeError):
    """The model was not exported; nothing was left under the folder."""


def run_worker(module: str, arguments: list[str], work: Path, **environment: str) -> None:
    """Run `python -m <module>` with this process's import path; its error, in one line, becomes ours.

    Raises:
        ExportError: the process failed; the message is its last line.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    # A worker checks and converts; it must not take memory on an accelerator that this process may have filled.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **quiet, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    failure = work / "error.txt"
    if failure.exists():
        raise ExportError(failure.read_text(encoding="utf-8"))
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        what = f"was killed by signal {-done.returncode}" if done.returncode < 0 else (lines or ["no message"])[-1]
        raise ExportError(f"the process that writes the graph failed: {what}")
