"""New processes without the seconds that importing TensorFlow, JAX or torch takes.

One process per backend imports what is heavy and runs nothing. Each `run` is a fork of it: a process that has the modules in memory,
and no model, session, program, thread or random state. It serves all processes of a test run through a socket, its own forks too: what
a fork starts for an export is a fork again. Whatever must be seen to work from `python -m` on, such as an installed package or flags
that a library reads when it is imported, is tested with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Keras imports TensorFlow wherever it is installed, on any backend, when it sets the random seed.
_ALL = ("tensorflow", "keras", "keras_ranking.models", "keras_ranking.training", "keras_ranking.serving.checking.worker_process")
MODULES = {
    "tensorflow": (*_ALL, "keras_ranking.serving.checking.saved_model"),
    "jax": ("jax", *_ALL),
    "torch": ("torch", *_ALL),
}
FOLDER = "KR_PRELOADED"  # environment variable: where the sockets are


def begin() -> None:
    """Make the folder of the sockets, unless a process that started this one has."""
    if FOLDER not in os.environ:
        folder = tempfile.mkdtemp(prefix="kr-")
        os.environ[FOLDER] = folder
        Path(folder, "owner").write_text(str(os.getpid()))
        atexit.register(_end, folder, os.getpid())


def _end(folder: str, owner: int) -> None:
    """The processes end when their socket is gone."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def run(
    arguments: Sequence[str],
    backend: str = "tensorflow",
    env: dict[str, str] | None = None,
    cwd: str | Path | None = None,
    quick_exports: bool = True,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` returns, for `-c CODE`, `-m MODULE` and `FILE`.

    quick_exports: whether the processes that an export starts are forks as well.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        status = Process(arguments, backend, env, cwd, out, err, quick_exports).wait()
        return subprocess.CompletedProcess([sys.executable, *arguments], status, out.read_text(), err.read_text())


class Process:
    """A fork that goes on, with the methods of `subprocess.Popen`; it adds to the files `out` and `err`."""

    def __init__(
        self,
        arguments: Sequence[str],
        backend: str,
        env: dict[str, str] | None,
        cwd: str | Path | None,
        out: Path,
        err: Path,
        quick_exports: bool = True,
    ) -> None:
        begin()
        what = {
            "arguments": list(map(str, arguments)),
            "env": {**os.environ, "KERAS_BACKEND": backend, **(env or {})},
            "cwd": str(cwd or os.getcwd()),
            "files": [str(out), str(err)],
            "quick_exports": quick_exports,
        }
        self._connection = _connected(backend)
        self._connection.sendall(f"{json.dumps(what)}\n".encode())
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        ended = self.returncode is not None or select.select([self._connection], [], [], 0)[0]
        return self.wait() if ended else None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_command(
    command: Sequence[str], env: dict[str, str] | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """In place of `subprocess.run` in code that starts Python with the backend of this process, or with that in `env`."""
    done = run(command[1:], (env or os.environ)["KERAS_BACKEND"], env)
    if check:
        done.check_returncode()
    return done


QUICK = SimpleNamespace(run=run_command, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)


def _connected(backend: str) -> socket.socket:
    folder = Path(os.environ[FOLDER])
    with open(folder / f"{backend}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / backend
        if not path.exists():
            _start(backend, folder)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return connection


def _start(backend: str, folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with open(folder / f"{backend}.txt", "w") as log:
        command = [sys.executable, "-m", "tests.preloaded", backend, str(folder)]
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    while not (folder / backend).exists():
        assert process.poll() is None, (folder / f"{backend}.txt").read_text()
        time.sleep(0.02)


def _serve(backend: str, folder: Path) -> None:
    """Import, then for each connection fork what it asks for, and answer with its exit status."""
    for module in MODULES[backend]:
        __import__(module)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / f"{backend}.new"))
        listener.listen(16)
        listener.settimeout(1)
        (folder / f"{backend}.new").rename(folder / backend)
        while (folder / backend).exists() and Path("/proc", (folder / "owner").read_text()).exists():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _answer(connection)
                return
            connection.close()


def _answer(connection: socket.socket) -> None:
    """In a fork: fork once more, which goes on in `_become`, and wait for it."""
    what = json.loads(connection.makefile().readline())
    child = os.fork()
    if child:
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)
    connection.close()
    _become(what)


def _become(what: dict[str, Any]) -> None:
    """Run what was asked for as Python would, with its own files, environment, folder and arguments."""
    for number, name in ((0, os.devnull), *zip((1, 2), what["files"], strict=True)):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(what["env"])
    os.chdir(what["cwd"])
    sys.path[:] = ["", *filter(None, what["env"].get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    if what["quick_exports"]:
        from keras_ranking.serving.checking import worker_process

        worker_process.subprocess = QUICK  # type: ignore[assignment]
    atexit.register(gc.freeze)  # the graphs and models that are left need no look through before the end
    kind, *rest = what["arguments"]
    if kind == "-m":
        sys.argv = rest
        sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind != "-c":
        sys.argv = what["arguments"]
        runpy.run_path(kind, run_name="__main__")
    else:
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - what `python -c` does


if __name__ == "__main__":
    from tests import preloaded  # as `run_for_export` finds it, not `__main__`

    preloaded._serve(sys.argv[1], Path(sys.argv[2]))
