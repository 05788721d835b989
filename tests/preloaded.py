"""New processes without the seconds that importing TensorFlow, JAX or torch takes.

One process per backend imports what is heavy and runs nothing. Each `run` is a fork of it: a process that has the modules in memory,
and no model, session, thread or random state. All processes of a test run share these: they are reached through sockets in the
folder that `KR_PRELOADED` names, and end with the process that made it. Whatever must be seen to work from `python -m` on, such as an
installed package or flags that a library reads when it is imported, is tested with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_OWN = ("keras", "keras_ranking.models", "keras_ranking.training", "keras_ranking.serving")
# Keras imports TensorFlow wherever it is installed, on any backend, when it sets the random seed.
MODULES = {
    "tensorflow": ("tensorflow", *_OWN, "keras_ranking.serving.exporting.worker", "keras_ranking.serving.checking.saved_model"),
    "torch": ("torch", "tensorflow", *_OWN),
    "jax": ("jax", "tensorflow", *_OWN),
}


def run(
    arguments: Sequence[str],
    backend: str = "tensorflow",
    env: dict[str, str] | None = None,
    cwd: str | Path | None = None,
    quick_exports: bool = False,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` returns, for `-c CODE` and `-m MODULE`.

    Args:
        quick_exports: whether the processes that an export starts are forks too.
    """
    with tempfile.TemporaryDirectory() as folder, _connected(backend) as connection:
        out, err = Path(folder, "out"), Path(folder, "err")
        what = {
            "arguments": list(map(str, arguments)),
            "env": {**os.environ, "KERAS_BACKEND": backend, **(env or {})},
            "cwd": str(cwd or os.getcwd()),
            "files": [str(out), str(err)],
            "quick_exports": quick_exports,
        }
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(what) + "\n")
            stream.flush()
            line = stream.readline()
        assert line, f"the preloaded process of {backend} stopped"
        return subprocess.CompletedProcess([sys.executable, *arguments], int(line), out.read_text(), err.read_text())


def export_workers() -> Any:
    """In the place of `subprocess` in `worker_process`: the process that an export starts on TensorFlow is a fork."""

    def start(command: list[str], env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
        if env.get("KERAS_BACKEND", os.environ["KERAS_BACKEND"]) == "tensorflow":
            return run(command[1:], env=env)
        return subprocess.run(command, env=env, **options)  # type: ignore[call-overload, no-any-return]

    return SimpleNamespace(run=start, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)


def folder() -> Path:
    """Folder of the sockets, made by the first process of a test run that asks for it."""
    if "KR_PRELOADED" not in os.environ:
        made = tempfile.mkdtemp(prefix="kr-preloaded-")
        owner = os.getpid()
        Path(made, "owner").write_text(str(owner))
        atexit.register(lambda: shutil.rmtree(made, ignore_errors=True) if os.getpid() == owner else None)
        os.environ["KR_PRELOADED"] = made
    return Path(os.environ["KR_PRELOADED"])


@contextlib.contextmanager
def _connected(backend: str) -> Iterator[socket.socket]:
    """A connection to the process of this backend, which is started if there is none."""
    path = folder() / backend
    with socket.socket(socket.AF_UNIX) as connection:
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                _start(backend)
                connection.connect(str(path))
        yield connection


def _start(backend: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    # The environment of whoever comes first is not that of the others: each `run` brings its own.
    for name in ("XLA_FLAGS", "TF_XLA_FLAGS"):
        env.pop(name, None)
    command = [sys.executable, "-m", "tests.preloaded", backend]
    process = subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout as ready:
        assert ready.readline() == "ready\n", f"the preloaded process of {backend} did not start"


def _serve(backend: str) -> None:
    """Import, then fork for each connection and write the exit status of the fork."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in MODULES[backend]:
        __import__(module)
    gc.collect()
    gc.freeze()  # the modules stay: a fork does not look through them again
    path = folder() / backend
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        listener.settimeout(1.0)
        print("ready", file=answers, flush=True)
        answers.close()
        while _wanted():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:  # waits for the process, while the next connection is served
                break
            connection.close()
        else:
            return
        connection.settimeout(None)
    _answer(connection)


def _wanted() -> bool:
    """Whether the process that made the folder is alive."""
    try:
        os.kill(int((folder() / "owner").read_text()), 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def _answer(connection: socket.socket) -> None:
    with connection.makefile("rw", encoding="utf-8") as stream:
        what = json.loads(stream.readline())
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, file=stream, flush=True)
            os._exit(0)
    connection.close()
    _become(what)


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
    if what["quick_exports"]:
        from keras_ranking.serving.checking import worker_process

        worker_process.subprocess = export_workers()
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
