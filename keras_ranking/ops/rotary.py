"""Rotary embedding of whole seconds by integer periods, and of positions by the usual frequencies.

Pair k of a head (halves convention: components k and k + D/2) turns by the angle

    timestamps:  2 pi (t mod P_k) / P_k        t int32 seconds, P_k an integer number of seconds
    positions:   p * base**(-2k / D)           p int32 position

so that the product of a rotated query and a rotated key depends on the difference of their times (positions) alone. With
integer periods the remainder is taken in int32 before any float appears: the angle is as exact for t near 2**31 as for t = 0;
float32 seconds would have a resolution of 128 s there. Adding a constant to all times leaves attention unchanged up to the
rounding of the float32 tables.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_ranking.ops.integers import as_tensor
from keras_ranking.ops.whole import whole_numbers

Tensor = Any

_TWO_PI = 2.0 * math.pi
_INT32_MAX = 2**31 - 1


def rotary_periods(head_dim: int, shortest: float, longest: float) -> np.ndarray:
    """Integer periods in seconds of the D/2 pairs of a head: a geometric ladder from the longest to the shortest.

        theta_k = (phi_min / longest) base**(2k / D),   base = ((phi_max / phi_min) (longest / shortest))**(D / (D - 2))
        P_k = max(2, round(2 pi / theta_k)),            phi_min = pi, phi_max = pi / 4

    The slowest pair makes half a turn over `longest`, so it does not wrap around; the fastest makes an eighth of a turn over
    `shortest` (its period is 8 * shortest, clearly above two ticks of a one-second clock). With D = 2 there is one pair, the slowest.
    Source: the geometric ladder is stated second-hand for CADET; the base is inferred; phi and the rounding to whole seconds are our
    choice.

    Args:
        head_dim: D, even, at least 2.
        shortest: the shortest time difference that must be distinguished, in seconds.
        longest: the longest time span, in seconds; at most 2**30 - 1, so that periods fit int32.

    Returns:
        int32 numpy array (D/2,), non-increasing.

    Raises:
        ValueError: an odd head size, `shortest` not positive or not below `longest`, `longest` too large.

    Example:
        >>> kr.ops.rotary_periods(8, shortest=1, longest=86400)
        array([172800,   6205,    223,      8], dtype=int32)
    """
    _check_head_dim(head_dim)
    if not 0 < shortest < longest:
        raise ValueError(f"`shortest` must be positive and below `longest`. Received: shortest={shortest}, longest={longest}")
    if 2 * longest > _INT32_MAX:
        raise ValueError(f"`longest` must be at most 2**30 - 1 seconds. Received: longest={longest}")
    slowest, fastest = math.pi, math.pi / 4
    steps = np.arange(head_dim // 2, dtype=np.float64)
    # base**(2k/D) with the exponent k / (D/2 - 1): the exponent D / (D - 2) of the base is included.
    growth = (fastest / slowest) * (longest / shortest)
    theta = (slowest / longest) * growth ** (steps / max(head_dim // 2 - 1, 1))
    return np.maximum(2, np.rint(_TWO_PI / theta)).astype(np.int32)


def rotary_frequencies(head_dim: int, base: float = 10000.0) -> np.ndarray:
    """The usual frequencies of positions, base**(-2k / D) for k < D/2, as a float32 numpy array (D/2,).

    Raises:
        ValueError: an odd head size, or `base` not above 1.
    """
    _check_head_dim(head_dim)
    if not base > 1:
        raise ValueError(f"`base` must be above 1. Received: base={base}")
    return (float(base) ** (-np.arange(head_dim // 2, dtype=np.float64) * 2.0 / head_dim)).astype(np.float32)


def rotate(x: Tensor, times: Tensor, periods: Any) -> Tensor:
    """Rotate the pairs of each head by the angles 2 pi (t mod P_k) / P_k.

        [a, b] -> [a cos - b sin, a sin + b cos]      a, b: first and second half of the head

    Args:
        x: (B, T, H, D), queries or keys.
        times: int32 (B, T), seconds.
        periods: int32 (D/2,), from `rotary_periods`.

    Returns:
        (B, T, H, D) in the dtype of `x`; tables and rotation are float32.

    Raises:
        ValueError: periods whose number is not D/2, that are not integers, or below 2.

    Example:
        >>> periods = kr.ops.rotary_periods(8, shortest=1, longest=86400)
        >>> kr.ops.rotate(np.ones((1, 3, 2, 8), "float32"), np.array([[0, 60, 3600]], "int32"), periods).shape
        (1, 3, 2, 8)
    """
    table = np.asarray(periods)
    if table.dtype.kind not in "iu" or table.ndim != 1 or (table < 2).any():
        raise ValueError(f"`periods` must be integers of at least 2, of shape (D/2,). Received: periods={periods}")
    _check_pairs(x, table, "periods")
    seconds = ops.expand_dims(ops.cast(whole_numbers(times, "times"), "int32"), 2)
    # The remainder is at most 2**30: exact in int32; the division by P is done in float32 on numbers below one turn.
    remainder = ops.mod(seconds, as_tensor(table.astype(np.int32)))
    turns = _TWO_PI / table.astype(np.float64)
    angle = ops.cast(remainder, "float32") * ops.convert_to_tensor(turns.astype(np.float32))
    return _turn(x, angle)


def rotate_index(x: Tensor, positions: Tensor, frequencies: Any) -> Tensor:
    """Rotate the pairs of each head by the angles p * frequency_k; see `rotate`.

    Args:
        x: (B, T, H, D).
        positions: int32 (B, T).
        frequencies: float32 (D/2,), from `rotary_frequencies`.

    Returns:
        (B, T, H, D) in the dtype of `x`.
    """
    table = np.asarray(frequencies, dtype=np.float32)
    _check_pairs(x, table, "frequencies")
    positions = as_tensor(whole_numbers(positions, "positions"))
    angle = ops.cast(ops.expand_dims(positions, 2), "float32") * ops.convert_to_tensor(table)
    return _turn(x, angle)


def _check_head_dim(head_dim: int) -> None:
    if isinstance(head_dim, bool) or not isinstance(head_dim, (int, np.integer)) or head_dim < 2 or head_dim % 2:
        raise ValueError(f"`head_dim` must be an even integer of at least 2. Received: head_dim={head_dim}")


def _check_pairs(x: Any, table: np.ndarray, name: str) -> None:
    if len(x.shape) != 4:
        raise ValueError(f"`x` must have shape (B, T, H, D). Received: x.shape={tuple(x.shape)}")
    if x.shape[-1] != 2 * table.shape[0]:
        raise ValueError(f"`{name}` must have D/2 = {x.shape[-1]}/2 entries. Received: {table.shape[0]}")


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = ops.expand_dims(ops.cos(angle), 2), ops.expand_dims(ops.sin(angle), 2)
    a, b = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    return ops.cast(ops.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1), x.dtype)
