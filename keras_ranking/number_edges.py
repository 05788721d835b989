"""Edges of the bins of a number: quantiles of training values, and what edges must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_ranking.configuration import is_integer

MOST_BINS = 4096
SMALLEST_WIDTH = 2.0**-100
"""Smallest width of a bin: what is divided by it stays within float32 for numbers of usual size. Our choice."""


def quantile_edges(values: Any, bins: int) -> tuple[float, ...]:
    """Edges of bins that hold equal shares of the values: b_t = quantile(values, t / bins), t = 0..bins, as float32.

    Equal edges are merged, so there may be fewer bins. A constant column has one bin, which begins at its value c: [c, c + 1].
    Quantiles of training rows are *stated* (2203.05556); linear interpolation between neighbours, merging and the bin of a constant
    column are our choice.

    Args:
        values: encoded numbers, finite.
        bins: most bins.

    Returns:
        Increasing edges, from 2 to bins + 1 of them, each a float32.

    Raises:
        ValueError: no values, one that is not finite or beyond float32, or `bins` that is no positive integer.

    Example:
        >>> from keras_ranking.number_edges import quantile_edges
        >>> quantile_edges([0, 1, 2, 3, 4], 2), quantile_edges([0, 0, 0, 1], 4), quantile_edges([5, 5], 3)
        ((0.0, 2.0, 4.0), (0.0, 0.25, 1.0), (5.0, 6.0))
    """
    if not is_integer(bins) or bins < 1:
        raise ValueError(f"`bins` must be a positive integer. Received: bins={bins!r}")
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    if not numbers.size:
        raise ValueError("`values` must hold at least one number. Received: none")
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(numbers.astype(np.float32))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"`values` must be finite numbers within float32. Received: {numbers[row]} at place {row}")
    found = np.quantile(numbers, np.linspace(0.0, 1.0, int(bins) + 1)).astype(np.float32)
    kept = [float(found[0])]
    for edge in found[1:]:
        if float(edge) - kept[-1] >= SMALLEST_WIDTH:
            kept.append(float(edge))
    return tuple(kept) if len(kept) > 1 else _around(found[0])


def _around(value: Any) -> tuple[float, float]:
    """The bin of a constant column: of width 1, or of two steps of float32 where these are more."""
    number, step = float(value), max(1.0, 2.0 * float(np.spacing(abs(value))))
    upper = float(np.float32(number + step)) if number + step <= float(np.finfo(np.float32).max) else np.inf
    return (number, upper) if np.isfinite(upper) else (float(np.float32(number - step)), number)


def checked_edges(edges: Sequence[float], name: str = "edges") -> tuple[float, ...]:
    """The edges as float32.

    Args:
        edges: of one number.
        name: what they are called in messages.

    Raises:
        ValueError: fewer than two, NaN, infinite, not increasing, closer than `SMALLEST_WIDTH` or farther apart than float32 reaches.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.asarray(edges, dtype=np.float64).astype(np.float32)
            widths = np.diff(found)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a list of numbers. Received: {edges!r}") from None
    if found.ndim != 1 or found.size < 2:
        raise ValueError(f"`{name}` must be a list of at least two numbers. Received: {edges!r}")
    if not np.isfinite(found).all():
        raise ValueError(f"`{name}` must be finite numbers within float32. Received: {list(edges)}")
    if not (widths >= SMALLEST_WIDTH).all() or not np.isfinite(widths).all():
        raise ValueError(f"`{name}` must increase, in float32 and by widths from 2**-100 to the largest float32. Received: {list(edges)}")
    return tuple(float(edge) for edge in found)
