"""Random delays after which actions become visible, one draw per request."""

from __future__ import annotations

from collections.abc import Sequence
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


def checked_delays(distribution: Any) -> np.ndarray:
    """Logged delays as (M,) int32 whole seconds, at least 1."""
    logged = np.atleast_1d(np.asarray(distribution, dtype=np.float64))
    if logged.ndim != 1 or not len(logged):
        raise ValueError(f"a distribution of delays must hold at least one delay. Received: shape {logged.shape}")
    bad = ~((logged >= 0) & (logged <= _LARGEST))
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(f"a delay must be a number of seconds from 0 to {_LARGEST}. Received: {logged[place]} at {place}")
    return np.maximum(np.ceil(logged), 1).astype(np.int32)
