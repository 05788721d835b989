"""A separate process for a part of an export, and the error of a failed export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class ExportError(RuntimeError):
    """The model was not exported; nothing was left in the folder."""


def run_worker(module: str, arguments: list[str], work: Path, **environment: str) -> None:
    """Run `python -m <module>` with this process's import path.

    Raises:
        ExportError: the process failed; the message is its error in one line.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    # The worker runs on the CPU: this process may have filled the memory of the accelerator.
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
