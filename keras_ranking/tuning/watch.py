"""Beside a running trial: signs of life to the database, and a look whether the trial was ended from outside, which stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

LOOK_SECONDS = 0.5
AGAIN_SECONDS, HARD_SECONDS = 1.5, 3.0
RESTART = 75
"""Exit code of a worker that could not stop a trial otherwise; who watches over it starts another one."""


class TrialEnded(BaseException):
    """Raised inside a trial that was ended from outside. No `Exception`, so that what is called in between does not catch it."""


class Watch:
    """Inside, a thread gives signs of life and looks for the trial's end; at its end `TrialEnded` is raised in the main thread.

    It is raised between two steps of Python, so also in the middle of an evaluation. Outside the main thread it is raised by `check`,
    which callbacks call.

    Args:
        alive: gives a sign of life.
        ended: whether the trial was ended from outside.
        every: seconds between signs of life.
        hard: whether the process ends with `RESTART` where the trial has not stopped after `HARD_SECONDS`, such as in a long compilation.
    """

    def __init__(self, alive: Callable[[], Any], ended: Callable[[], bool], every: float, hard: bool = False) -> None:
        self._alive, self._ended, self._every, self._hard = alive, ended, every, hard
        self._asked, self._shields, self._inside = False, 0, False
        self._raised = -AGAIN_SECONDS
        self._done = threading.Event()
        self._before: Any = None
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGUSR1, self._raise)
        self._inside = True
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside = False
        self._done.set()
        self._thread.join()
        if self._main:
            signal.signal(signal.SIGUSR1, self._before)

    def check(self) -> None:
        """Raise `TrialEnded` if the trial was ended.

        Raises:
            TrialEnded: so.
        """
        if self._asked:
            raise TrialEnded

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """Inside nothing is raised: for writes to the database. After it, it is."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self.check()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        # Not at each look, so that what is closed on the way out can close.
        if self._inside and self._asked and not self._shields and time.monotonic() - self._raised >= AGAIN_SECONDS:
            self._raised = time.monotonic()
            raise TrialEnded

    def _look(self) -> None:
        last, since = 0.0, None
        while not self._done.wait(LOOK_SECONDS):
            now = time.monotonic()
            # A database that cannot be reached for a while ends no trial.
            with contextlib.suppress(Exception):
                if now - last >= self._every:
                    self._alive()
                    last = now
                self._asked = self._asked or self._ended()
            if self._asked:
                since = now if since is None else since
                if self._main and self._inside:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if self._hard and now - since > HARD_SECONDS:
                    os._exit(RESTART)
