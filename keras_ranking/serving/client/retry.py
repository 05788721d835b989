"""Rules for repeating a call: within a budget, and not beyond the deadline."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.forks import renew_after_fork


@dataclass(frozen=True)
class Retry:
    """Rules for repeating a call after UNAVAILABLE or RESOURCE_EXHAUSTED (a limit on load; a call that is too large is not repeated).

        wait before attempt n+1 = max(wait stated by the server, u * min(longest_wait, first_wait * 2^(n-1))), u uniform in 0.5 .. 1

    Scoring has no side effects, so every call may be repeated. The budget bounds the load that many clients add to an overloaded
    server: each call adds `budget` retries, up to `burst`. All defaults are our choice.

    Args:
        attempts: how often a call is sent at most; 1 = no retry.
        first_wait, longest_wait: seconds.
        budget: retries that each call adds.
        burst: largest number of saved retries, and their number at the beginning.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> retry = kr.serving.Retry(attempts=2, first_wait=0.05)
        >>> retry.attempts, retry.longest_wait
        (2, 2.0)
    """

    attempts: int = 4
    first_wait: float = 0.1
    longest_wait: float = 2.0
    budget: float = 0.2
    burst: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"`attempts` must be a positive integer. Received: attempts={self.attempts!r}")
        for name in ("first_wait", "longest_wait", "budget", "burst"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative. Received: {name}={getattr(self, name)!r}")


class Budget:
    """The retries that all calls of one client share. Safe for threads; a forked process has its own."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._left = retry.burst
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A lock of this process."""
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Add the retries of a new call."""
        with self._lock:
            self._left = min(self._retry.burst, self._left + self._retry.budget)

    def wait(self, error: ServingError, attempt: int, deadline: float) -> float | None:
        """Seconds to wait before attempt `attempt` + 1, or None if the error is final.

        Args:
            attempt: how many times the call was sent.
            deadline: of the call, in `time.monotonic()` seconds.
        """
        passing = error.code == "UNAVAILABLE" or (error.code == "RESOURCE_EXHAUSTED" and error.http_status != 413)
        if not passing or attempt >= self._retry.attempts:
            return None
        backoff = min(self._retry.longest_wait, self._retry.first_wait * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        wait: float = max(error.retry_after or 0.0, backoff)
        if time.monotonic() + wait >= deadline:
            return None
        with self._lock:
            if self._left < 1:
                return None
            self._left -= 1
        return wait
