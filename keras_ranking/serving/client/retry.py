"""When a client asks again: calls that changed nothing, within a budget and never beyond the deadline."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from keras_ranking.serving.protocol.errors import ServingError


@dataclass(frozen=True)
class Retry:
    """How a client asks again after UNAVAILABLE and RESOURCE_EXHAUSTED (a limit on load; a call that is too large is not sent again).

    wait before attempt n+1 = max(what the server said, u * min(longest_wait, first_wait * 2^(n-1))), u uniform in 0.5 .. 1

    Scoring changes nothing, so every call may be sent again. The budget bounds what a crowd of clients adds to a server in
    trouble: each call earns `budget` retries, at most `burst` of them saved up. All defaults are our choice.

    Args:
        attempts: most times a call is sent; 1 = never again.
        first_wait, longest_wait: seconds.
        budget: retries a call earns.
        burst: most retries that are saved up; as many there are at the beginning.

    Raises:
        ValueError: a value out of range.
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
    """The retries that all calls of one client share. May be used by any number of threads."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._left = retry.burst
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A new call begins."""
        with self._lock:
            self._left = min(self._retry.burst, self._left + self._retry.budget)

    def wait(self, error: ServingError, attempt: int, deadline: float) -> float | None:
        """Seconds to wait before attempt `attempt` + 1, or None where the error stands.

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
