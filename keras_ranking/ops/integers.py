"""Integer tensors, whatever Keras's float type: where it is bfloat16, Keras makes float32 of numbers and arrays on JAX."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops


def as_tensor(values: Any) -> Any:
    """`keras.ops.convert_to_tensor(values)`, with integers and booleans in their own type."""
    if isinstance(values, keras.KerasTensor):
        return values
    kept = isinstance(values, (np.ndarray, np.generic)) and values.dtype.name in ("int32", "bool")
    return ops.convert_to_tensor(values, dtype=values.dtype.name) if kept else ops.convert_to_tensor(values)


def int32(value: Any) -> Any:
    """A Python integer as a tensor of int32; a tensor as it is."""
    return ops.convert_to_tensor(value, dtype="int32") if isinstance(value, int) else value


def at_least(x: Any, least: Any) -> Any:
    """max(x, least) of int32: a tensor, and a tensor or a Python integer."""
    return ops.maximum(x, int32(least))


def at_most(x: Any, most: Any) -> Any:
    """min(x, most) of int32: a tensor, and a tensor or a Python integer."""
    return ops.minimum(x, int32(most))
