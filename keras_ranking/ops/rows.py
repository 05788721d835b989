"""Functions in which no row of a batch needs another. On JAX with a batch on several devices each device runs them for its own rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def for_own_rows(function: Callable[..., Any], *operands: Any) -> Any:
    """`function(*operands)`; on several devices of JAX on each for its own rows, or XLA could send all rows to all devices.

    Args:
        function: of tensors, with tensors or a tuple of them as result, all with rows of the batch as first axis. For a sum over the
            batch it returns one of shape (1, ...), and the caller adds up what there is.
        operands: tensors (B, ...).
    """
    if _on_jax(operands):
        from keras_ranking.ops.backends import jax_devices

        return jax_devices.by_rows(jax_devices.place_of(*operands), function, *operands)
    return function(*operands)


def take_in_rows(values: Any, index: Any, rows: Any) -> Any:
    """`keras.ops.take(values, index, axis=0)` where an index is of a place of its own row of the batch.

    Args:
        values: (rows * M, ...), M places for each row of the batch.
        index: int32 (rows * N,) or (rows, N), from r * M to r * M + M - 1 in row r.
        rows: number of rows of the batch.
    """
    if _on_jax((values, index)):
        from keras_ranking.ops.backends import jax_devices

        return jax_devices.take_in_rows(values, index, rows)
    return ops.take(values, index, axis=0)


def _on_jax(operands: tuple[Any, ...]) -> bool:
    return keras.backend.backend() == "jax" and not any(isinstance(part, keras.KerasTensor) for part in operands)
