"""Worker processes of a study on this machine: started, watched, and started again when one dies."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_ranking.tuning.places import left
from keras_ranking.tuning.store import Store
from keras_ranking.tuning.watch import RESTART

_LOOK_SECONDS = 0.5
_STOP_SECONDS = 30.0
_MOST_FAILURES = 3


def supervise(
    store: Store,
    command: Sequence[str],
    workers: int,
    environment: Mapping[str, str] | None = None,
    name: str | None = None,
    start: Callable[..., Any] | None = None,
) -> int:
    """Run workers until the study is finished; returns 0, or 1 where workers fail without taking up a trial.

    A worker that is killed, as on a machine that is out of memory, or that ends itself to stop a trial that was cancelled, is replaced.

    Args:
        store: of the study.
        command: that runs one worker.
        workers: how many.
        environment: of the processes; None: that of this one.
        name: of the study in the store; None: its own.
        start: starts a process from a command; None: `subprocess.Popen`.
    """
    begin = functools.partial(start or subprocess.Popen, env=environment)
    running = [begin(command) for _ in range(workers)]
    failures = 0
    try:
        while running:
            time.sleep(_LOOK_SECONDS)
            for process in [one for one in running if one.poll() is not None]:
                running.remove(process)
                code = process.returncode
                if code == 0:
                    continue
                # An error of the worker itself, such as a log that cannot be read: more of them would fail the same way.
                failures = failures + 1 if code not in (RESTART,) and code > 0 else failures
                if failures >= (1 if code == 2 else _MOST_FAILURES):
                    return int(code)
                if any(left(store, name or store.name)):
                    if code != RESTART:
                        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
                        print(f"a worker was {how}; another one is started", file=sys.stderr, flush=True)
                    running.append(begin(command))
        return 0
    except KeyboardInterrupt:  # which the workers get too: they write checkpoints and give their trials back
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        raise
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
