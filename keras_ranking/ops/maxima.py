"""Maxima whose gradient does not depend on how a program was compiled.

Backends give the gradient of a maximum to the values that equal it. A compiler may compute the values twice, once for the maximum and once
for the comparison, and round them differently: then nothing equals the maximum, and the gradient is lost or NaN. XLA does so at its lower
levels of optimisation. Here a value has the maximum if it is as near as rounding can tell.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_LOWEST = {"float16": -6.0e4}
# How far apart two ways to round may be, as a share of the largest value. Half precision is rounded once, at the end.
_ROUNDING = {"float64": 2.0**-46, "float32": 2.0**-17, "float16": 2.0**-9, "bfloat16": 2.0**-6}


def largest(x: Any, real: Any, axis: int) -> Any:
    """max over an axis of the x that are real, or 0 where none is.

    Values that are equal up to rounding share the gradient.

    Args:
        x: float (...).
        real: bool, which broadcasts to the shape of `x`.
        axis: over which the maximum is taken.

    Returns:
        As `x` without the axis.
    """
    there = ops.logical_and(real, ops.ones_like(x, dtype="bool"))
    some = ops.any(there, axis=axis)
    lowest = _LOWEST.get(keras.backend.standardize_dtype(x.dtype), -3.0e38)

    def peaks(values: Any) -> Any:
        peak = ops.amax(ops.where(there, values, ops.full_like(values, lowest)), axis=axis)
        return ops.where(some, peak, ops.zeros_like(peak))

    if keras.backend.backend() == "torch":  # values are in memory, and computed once
        return peaks(x)

    @ops.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def peaks_of(values: Any) -> Any:
        peak = peaks(values)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            above = args[0] if upstream is None else upstream
            scale = ops.amax(ops.where(there, ops.abs(values), ops.zeros_like(values)), axis=axis, keepdims=True)
            have = share_of(values, ops.expand_dims(peak, axis), scale, there)
            count = ops.sum(have, axis=axis, keepdims=True)
            return have * ops.expand_dims(above, axis) / ops.maximum(count, ops.ones_like(count))

        return peak, gradient

    return peaks_of(x)


def share_of(values: Any, peak: Any, scale: Any, real: Any) -> Any:
    """1 for real values that are as large as their maximum, up to rounding, else 0; without a gradient.

    Args:
        values, peak: their maximum, in the type of `values`.
        scale: the largest absolute value among those that are compared.
        real: bool, as `values`.
    """
    values, peak, scale = (ops.stop_gradient(each) for each in (values, peak, scale))
    lowest = peak - _ROUNDING[keras.backend.standardize_dtype(values.dtype)] * scale
    return ops.cast(ops.logical_and(values >= lowest, real), values.dtype)
