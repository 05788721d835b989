"""Embedding tables by rows: look-ups with gradients of the rows alone, and updates of the rows that have one."""

from __future__ import annotations

import importlib
import math
import weakref
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

_OWNER = "_updated_by_rows"
_ROWS = "_rows_without_spare"


def _backend() -> Any:
    return importlib.import_module(f"keras_ranking.ops.backends.{keras.backend.backend()}_tables")


def look_up(table: Any, ids: Any, half: bool = False) -> Any:
    """Rows of a table, as `keras.ops.take(table, ids, axis=0)`.

    If an optimiser updates the table by rows, the gradient is that of the rows: an `IndexedSlices` on TensorFlow, a sparse tensor on
    torch, and on JAX what `jax_tables.row_gradients` finds.

    Args:
        table: a `keras.Variable` (V, D).
        ids: integers (...); negative ones count from the end.
        half: whether the rows are cast to float16 next. Keras's loss scaling reads all gradients, and torch cannot read sparse ones.

    Returns:
        (..., D).
    """
    if is_updated_by_rows(table):
        return _backend().look_up(table, ids, half)
    return ops.take(table, ids, axis=0)


def is_updated_by_rows(table: Any) -> bool:
    """Whether an optimiser that still exists updates this table by rows."""
    owner = getattr(table, _OWNER, None)
    return owner is not None and owner() is not None


def update_by_rows(table: Any, owner: Any) -> None:
    """From now on, and as long as the optimiser `owner` exists, gradients of look-ups in the table are those of its rows."""
    setattr(table, _OWNER, weakref.ref(owner))


def update_whole(table: Any) -> None:
    """Gradients of look-ups in the table are those of the whole table again."""
    if hasattr(table, _OWNER):
        delattr(table, _OWNER)


def rows_over_devices(path: str, rows: int, width: int) -> int:
    """Number of rows of a table that the active `keras.distribution` can share out: rounded up to a multiple of the devices.

    Args:
        path: of the variable that is to be made.
        rows, width: its shape.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return rows
    layout = distribution.get_variable_layout(SimpleNamespace(path=path, shape=(rows, width), _layout=None))
    axes = () if layout is None or layout.device_mesh is None else layout.axes[:1]
    mesh = {} if layout is None or layout.device_mesh is None else dict(zip(layout.device_mesh.axis_names, layout.device_mesh.shape))
    devices = math.prod(int(mesh[axis]) for axis in axes if axis is not None)
    return -(-rows // devices) * devices


def mark_spare_rows(table: Any, rows: int) -> None:
    """Note that a table has spare rows from `rows` on, which no id looks up and no file holds."""
    setattr(table, _ROWS, rows)


def rows_without_spare(table: Any) -> int | None:
    """Number of rows of a table without its spare ones; None: it has none."""
    rows: int | None = getattr(table, _ROWS, None)
    return rows


def fill(variable: Any, start: int, rows: Any) -> None:
    """Set the rows of a variable from `start` on, without a second copy of it."""
    _backend().fill(variable, start, rows)


class TouchedRows:
    """The distinct rows of a table that a step's gradient touches, and the sums of their gradients.

    Attributes:
        gradients: float32 (N, D); zero where an entry is no row.
    """

    def __init__(self, ids: Any, gradients: Any) -> None:
        self.ids, self.gradients = ids, gradients

    def read(self, variable: Any) -> Any:
        """The values of these rows of a variable (V, ...), float32."""
        return ops.cast(_backend().read(variable, self.ids), "float32")

    def write(self, variable: Any, values: Any) -> None:
        """Set these rows of a variable; the others keep their bits."""
        _backend().write(variable, self.ids, values)


class TouchedMask:
    """The same for a gradient of the whole table: the rows in which it is not zero."""

    def __init__(self, gradients: Any) -> None:
        self.gradients = ops.cast(gradients, "float32")
        self.mask = ops.any(gradients != 0, axis=-1)

    def read(self, variable: Any) -> Any:
        return ops.cast(variable.value, "float32")

    def write(self, variable: Any, values: Any) -> None:
        mask = self.mask[:, None] if len(variable.shape) == 2 else self.mask
        variable.assign(ops.where(mask, ops.cast(values, variable.dtype), variable.value))


def touched(gradient: Any, table: Any, ids: Any = None) -> TouchedRows | TouchedMask:
    """The rows that a gradient touches.

    Args:
        gradient: of the whole table; or by rows: `IndexedSlices`, a sparse tensor, or (N, D) with `ids`.
        table: (V, D).
        ids: int32 (N,), the rows of `gradient`; some may be equal.
    """
    by_rows = _backend().split(gradient) if ids is None else (ids, gradient)
    if by_rows is None:
        return TouchedMask(gradient)
    return TouchedRows(*_backend().distinct(by_rows[0], ops.cast(by_rows[1], "float32"), int(table.shape[0])))


def row_gradients(loss: Any, values: Any, tables: Any) -> Any:
    """`jax_tables.row_gradients`, on JAX."""
    return _backend().row_gradients(loss, values, tables)


def compiled(function: Any) -> Any:
    """A function compiled by XLA, on TensorFlow."""
    return _backend().compiled(function)
