"""Whole numbers of int32: times, ids, lengths and positions, checked before anything is computed from them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any
LOWEST, HIGHEST = -(2**31), 2**31 - 1
# Whose values all fit int32.
_SMALL = ("int8", "int16", "int32", "uint8", "uint16")


def whole_numbers(values: Tensor, name: str) -> Tensor:
    """`values` as they are if they are tensors of int32 or a smaller type, else as int32 if every value is a whole number of int32.

    A float cannot hold them: of Unix seconds, float32 keeps every 128th. int64 is read and checked where that is possible: in arrays,
    lists, and tensors outside a compiled program.

    Args:
        values: array, list or tensor.
        name: of the argument, for the message.

    Raises:
        ValueError: another type than integers, a value outside int32, or a 64-bit tensor whose values cannot be read.
    """
    if hasattr(values, "to_numpy"):  # pandas: its own types are no numpy types
        values = values.to_numpy()
    if not hasattr(values, "dtype"):
        values = np.asarray(values)
        if values.size == 0:
            values = values.astype(np.int32)
    dtype = _dtype(values)
    if dtype in _SMALL:
        return values
    if "int" not in dtype:
        raise ValueError(
            f"`{name}` must be integers (int32). Received: dtype={dtype}. Times are whole seconds since the epoch of the log, and ids are "
            "row numbers, which floats round. Cast an array with .astype('int32'); declare an input as keras.Input(..., dtype='int32')."
        )
    if isinstance(values, keras.KerasTensor):
        raise ValueError(f"`{name}` must be int32. Received: dtype={dtype}. Declare the input as keras.Input(..., dtype='int32').")
    found = read(values)
    if found is None:
        raise ValueError(f"`{name}` must be int32. Received: dtype={dtype}, in a compiled program, where its values cannot be checked.")
    if found.size and not (int(found.min()) >= LOWEST and int(found.max()) <= HIGHEST):
        outside = int(found.max()) if int(found.max()) > HIGHEST else int(found.min())
        hint = ""
        if name.endswith(("time", "times")):
            hint = " Times are whole seconds, counted from an epoch near the log; milliseconds do not fit."
        raise ValueError(f"`{name}` must be whole numbers of int32, in -2**31 .. 2**31 - 1. Received: {outside}.{hint}")
    return found.astype(np.int32) if isinstance(values, np.ndarray) else ops.cast(values, "int32")


def _dtype(values: Any) -> str:
    if isinstance(values, (np.ndarray, np.generic)):
        return values.dtype.name
    return str(keras.backend.standardize_dtype(values.dtype))


def read(values: Any) -> np.ndarray | None:
    """The values of an array or list, or of a tensor that has some now, else None."""
    if isinstance(values, (np.ndarray, np.generic)):
        return np.asarray(values)
    try:
        return np.asarray(ops.convert_to_numpy(values))
    except Exception:  # each backend has its own error for a symbolic tensor
        return None
