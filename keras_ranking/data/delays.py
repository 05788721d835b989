"""Random delays after which actions become visible, one draw per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_LARGEST = 2**31 - 1


def sample_delays(distribution: Any, n: int, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Draw delays from logged ones, so that training sees the same delays as serving.

    Each draw is one of the logged values, all equally likely, rounded up to whole seconds, and at least 1: at 0 seconds, the
    impressions of one request would see each other's actions. CADET hides events younger than a delay in training (stated
    second-hand); drawing it from the log is *our choice*.

    Args:
        distribution: a number of seconds (always this delay), or the logged delays, (M,) seconds >= 0.
        n: number of draws.
        seed: of the draws; an integer, or several that form one seed.

    Returns:
        (n,) int32 seconds.

    Raises:
        ValueError: no delay, a delay that is missing, negative or beyond int32, or a negative `n`.

    Example:
        >>> kr.data.sample_delays([0.0, 0.4, 30.0], n=5, seed=0).tolist()
        [30, 1, 1, 1, 1]
        >>> kr.data.sample_delays(60, n=2).tolist()
        [60, 60]
    """
    logged = checked_delays(distribution)
    if n < 0:
        raise ValueError(f"`n` must not be negative. Received: n={n}")
    return np.asarray(logged[np.random.default_rng(seed).integers(0, len(logged), size=n)])


@dataclass(frozen=True)
class LoggedDelays:
    """Logged delays as the distinct ones and how many there are of each: of a log of any size. `sample_delays` draws from it.

    Attributes:
        values: (K,) int32 whole seconds of at least 1, increasing.
        ends: (K,) how many are at most as long.
    """

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def merged(cls, parts: Sequence[Any]) -> LoggedDelays:
        """The delays of all parts.

        Raises:
            ValueError: as `sample_delays`.
        """
        found = [np.unique(checked_delays(part), return_counts=True) for part in parts if len(part)]
        if not found:
            raise ValueError("a distribution of delays must hold at least one delay. Received: none")
        values, place = np.unique(np.concatenate([values for values, _ in found]), return_inverse=True)
        return cls(values, np.cumsum(np.bincount(place, weights=np.concatenate([counts for _, counts in found])).astype(np.int64)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.values[np.searchsorted(self.ends, index, side="right")])


def checked_delays(distribution: Any) -> Any:
    """Logged delays as (M,) int32 whole seconds, at least 1, or as they are if they are `LoggedDelays`."""
    if isinstance(distribution, LoggedDelays):
        return distribution
    logged = np.atleast_1d(np.asarray(distribution, dtype=np.float64))
    if logged.ndim != 1 or not len(logged):
        raise ValueError(f"a distribution of delays must hold at least one delay. Received: shape {logged.shape}")
    bad = ~((logged >= 0) & (logged <= _LARGEST))
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(f"a delay must be a number of seconds from 0 to {_LARGEST}. Received: {logged[place]} at {place}")
    return np.maximum(np.ceil(logged), 1).astype(np.int32)
