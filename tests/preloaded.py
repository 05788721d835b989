"""New processes without the seconds that importing TensorFlow or torch takes.

One process per backend imports what is heavy and runs nothing. Each `run` is a fork of it: a process that has the modules in memory,
and no model, session, thread or random state. Whatever must be seen to work from `python -m` on, such as an installed package or
flags that a library reads when it is imported, is tested with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Keras imports TensorFlow wherever it is installed, on any backend, when it sets the random seed.
MODULES = {
    "tensorflow": ("tensorflow", "keras", "keras_ranking.models", "keras_ranking.training", "keras_ranking.serving.checking.saved_model"),
    "torch": ("torch", "tensorflow", "keras", "keras_ranking.models", "keras_ranking.training"),
}

_started: dict[str, subprocess.Popen[str]] = {}


def run(
    arguments: Sequence[str], backend: str = "tensorflow", env: dict[str, str] | None = None, cwd: str | Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` returns, for `-c CODE` and `-m MODULE`."""
    if backend not in MODULES:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "KERAS_BACKEND": backend, **(env or {})}
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    process = _started.get(backend)
    if process is None or process.poll() is not None:
        process = _started[backend] = _start(backend)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        what = {
            "arguments": list(map(str, arguments)),
            "env": {**os.environ, "KERAS_BACKEND": backend, **(env or {})},
            "cwd": str(cwd or os.getcwd()),
            "files": [str(out), str(err)],
        }
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "the preloaded process stopped"
        return subprocess.CompletedProcess([sys.executable, *arguments], int(line), out.read_text(), err.read_text())


def _start(backend: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "tests.preloaded", backend]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def _serve(backend: str) -> None:
    """Import, then fork for each line of stdin and write the exit status of the fork."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in MODULES[backend]:
        __import__(module)
    for line in sys.stdin:
        what = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(what)
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


def _become(what: dict[str, Any]) -> None:
    """In the fork: run what was asked for as Python would, with its own files, environment, folder and arguments."""
    for number, name in ((0, os.devnull), *zip((1, 2), what["files"], strict=True)):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(what["env"])
    os.chdir(what["cwd"])
    sys.path[:] = ["", *filter(None, what["env"].get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    kind, program, *rest = what["arguments"]
    if kind == "-m":
        sys.argv = [program, *rest]
        sys.modules.pop(program, None)
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - what `python -c` does


if __name__ == "__main__":
    _serve(sys.argv[1])
