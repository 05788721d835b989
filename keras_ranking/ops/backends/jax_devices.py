"""A batch on several devices: each runs a function on its own rows.

Without this, XLA would partition the loops of the kernels, which read places of the whole batch that only the loop knows: it would send
all rows to all devices. `jax.shard_map` says that no row needs another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import keras
from jax.sharding import PartitionSpec


class Place(NamedTuple):
    """Where the rows of a batch are: a mesh of devices, and the name of its axis over which they are shared out."""

    mesh: Any
    axis: str


def place_of(*operands: Any, rows: int | None = None) -> Place | None:
    """The place of operands that have a row for each row of a batch, or with `rows` as many parts for each of so many rows.

    It is that of the active `keras.distribution`, if its axis for batches has several devices and divides the rows. None otherwise, and for
    arrays that are on one device outside a compiled program, and inside a `jax.shard_map` of the caller, where rows are shared out already.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None:
        return None
    mesh, axis = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
    devices, several = mesh.shape.get(axis, 1), rows is not None
    rows = operands[0].shape[0] if rows is None else rows
    if devices == 1 or not rows or rows % devices:
        return None
    if any(part.ndim == 0 or (part.shape[0] % rows if several else part.shape[0] != rows) for part in operands):
        return None
    here = any(isinstance(part, jax.Array) and not isinstance(part, jax.core.Tracer) and len(part.devices()) == 1 for part in operands)
    return None if here or axis in jax.sharding.get_abstract_mesh().manual_axes else Place(mesh, axis)


def by_rows(place: Place | None, function: Callable[..., Any], *operands: Any) -> Any:
    """`function(*operands)`, where a place is given on each device for its own rows of all operands and results."""
    if place is None:
        return function(*operands)
    rows = PartitionSpec(place.axis)  # type: ignore[no-untyped-call]
    # The check would need every constant that a loop starts from to be marked as different from device to device.
    return jax.shard_map(function, mesh=place.mesh, in_specs=rows, out_specs=rows, check_vma=False)(*operands)


def take_in_rows(values: Any, index: Any, rows: int) -> Any:
    """See `keras_ranking.ops.rows`."""
    place = place_of(values, index, rows=rows)
    if place is None:
        return keras.ops.take(values, index, axis=0)

    def take(mine: Any, index: Any) -> Any:
        return keras.ops.take(mine, index - jax.lax.axis_index(place.axis) * mine.shape[0], axis=0)

    return by_rows(place, take, values, index)
