"""Shared by benchmarks that measure in processes of their own: the lines they print, and the package of another revision."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def print_lines(command: Sequence[str], env: Mapping[str, str], json_file: Path | None) -> None:
    """Run a command, print what it prints, and append its lines of JSON to a file.

    Raises:
        SystemExit: the command failed.
    """
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout or ():
            print(text, end="", flush=True)
            if json_file and text.startswith("{"):
                with json_file.open("a", encoding="utf-8") as file:
                    file.write(text)
    if process.returncode:
        raise SystemExit(process.returncode)


@contextlib.contextmanager
def packages(baseline: str | None) -> Iterator[dict[str, str]]:
    """Folders for PYTHONPATH by revision: that of `baseline`, a revision of this repository, if there is one, and this one."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"this": str(ROOT)}
        if baseline:
            archive = subprocess.run(["git", "archive", baseline, "keras_ranking"], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            found = {baseline: folder, **found}
        yield found
