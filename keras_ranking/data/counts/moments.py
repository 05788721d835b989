"""Moments of keys: the rows of a key in one second as one, in order of key and time; and a search for the newest one."""

from __future__ import annotations

import numpy as np


def merged_moments(codes: np.ndarray, times: np.ndarray, amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (M,), times (M,) and summed amounts (M, A) of the moments of rows in any order, sorted by code and time."""
    order = np.lexsort((times, codes))
    codes, times, amounts = codes[order], times[order], amounts[order]
    begins = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (times[1:] != times[:-1])]) if len(codes) else codes
    return codes[begins], times[begins], np.add.reduceat(amounts, begins, axis=0) if len(codes) else amounts


def places_up_to(codes: np.ndarray, times: np.ndarray, of: np.ndarray, until: np.ndarray) -> np.ndarray:
    """Place of the last moment that is not after (code, time), in the order of `merged_moments`; it may be of an earlier code, or -1.

    Args:
        codes, times: of the moments, at least one.
        of, until: codes and times that are asked for.
    """
    first = int(times.min())
    span = int(times.max()) - first + 2
    kept = codes * span + (times - first) + 1
    return np.asarray(np.searchsorted(kept, of * span + np.clip(until - first, -1, span - 2) + 1, side="right") - 1)
