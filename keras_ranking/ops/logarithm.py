"""ln(1 + x) with additions, multiplications and divisions only: the same bits in numpy, in a TensorFlow graph and on any machine.

The `log1p` of libraries differ in the last bits, and numpy's differs between processors. A feature that is encoded in training and
again in a served graph must have the same bits. The formula is written once and runs on both kinds of arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MANTISSA, ONE = 0x000FFFFFFFFFFFFF, 0x3FF0000000000000  # bits of a float64: those after the point, and 1.0
_ROOT2 = 1.4142135623730951
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# Remez polynomial of (log(1 + f) - 2 s) / s in s^2, s = f / (2 + f): fdlibm's, error below 2^-58.
_SERIES = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)


def log1p(x: np.ndarray) -> np.ndarray:
    """ln(1 + x) of finite float64 x >= 0, within 4 units in the last place."""
    x = np.asarray(x, dtype=np.float64)
    bits = np.asarray(1.0 + x).view(np.int64)
    mantissa = ((bits & MANTISSA) | ONE).view(np.float64)
    return np.asarray(series(x, (bits >> 52) - 1023, mantissa, np.where, lambda k: k.astype(np.float64)))


def series(x: Any, exponent: Any, mantissa: Any, where: Any, to_float: Any) -> Any:
    """The arithmetic of `log1p` on numpy arrays or tensors.

    Args:
        x: see `log1p`.
        exponent, mantissa: int64 and float64 parts of 1 + x = mantissa 2^exponent, 1 <= mantissa < 2.
        where: select.
        to_float: int64 -> float64.
    """
    # No nested sums and no common factors: a graph optimiser may reorder these and so change the last bit.
    high = mantissa > _ROOT2
    m = where(high, mantissa * 0.5, mantissa)
    near = x < 0.41421356237309503
    f = where(near, x, m - 1.0)
    k = to_float(where(near, exponent * 0, where(high, exponent + 1, exponent)))
    s = f / (f + 2.0)
    z = s * s
    r = z * _SERIES[0]
    for coefficient in _SERIES[1:]:
        r = z * (r + coefficient)
    # k ln2 in two parts; subtracting its negative keeps the order of the sum.
    return k * _LN2_HIGH - (k * -_LN2_LOW - s * (r + 2.0))
