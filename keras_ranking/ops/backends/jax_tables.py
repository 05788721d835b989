"""Rows of tables in JAX: the gradient of zeros that are added to looked-up rows, and scattered writes to donated arrays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from keras import ops

_ACTIVE: list[_LookUps] = []


class _LookUps:
    """The look-ups of a traced loss in the tables of a step, in the order of the calls.

    Args:
        tables: by `id` of their variable: (number among the trainable variables, the array).
        zeros: what is added to the rows of each look-up; None: nothing.
    """

    def __init__(self, tables: dict[int, tuple[int, Any]], zeros: Sequence[Any] | None) -> None:
        self.tables, self.zeros = tables, zeros
        self.calls: list[tuple[int, Any]] = []

    def rows(self, table: Any, ids: Any) -> Any:
        number, array = self.tables[id(table)]
        self.calls.append((number, ids))
        rows = ops.take(array, ids, axis=0)
        return rows if self.zeros is None else rows + self.zeros[len(self.calls) - 1]

    @contextlib.contextmanager
    def active(self) -> Iterator[_LookUps]:
        _ACTIVE.append(self)
        try:
            yield self
        finally:
            _ACTIVE.pop()


def look_up(table: Any, ids: Any, half: bool) -> Any:
    """See `keras_ranking.ops.tables.look_up`."""
    if _ACTIVE and id(table) in _ACTIVE[-1].tables:
        return _ACTIVE[-1].rows(table, ids)
    return ops.take(table, ids, axis=0)


def row_gradients(
    loss: Callable[[list[Any]], tuple[Any, Any]], values: Sequence[Any], tables: dict[int, Any]
) -> tuple[tuple[Any, Any], list[Any], dict[int, Any]]:
    """`jax.value_and_grad(loss, has_aux=True)(values)` with gradients of tables by rows.

    A table that the loss also reads in another way than by `look_up`, such as a penalty on all of it, has a gradient of the whole.

    Args:
        loss: of the values of the trainable variables, and further results.
        values: of the trainable variables.
        tables: the tables' variables by their number among the trainable variables.

    Returns:
        (loss, further results); the gradients, (N, D) for a table by rows; ids (N,) of the latter by number.
    """
    # The loss is traced once to find the look-ups, with the arrays that they read apart from those that anything else reads.
    found: list[tuple[int, tuple[int, ...]]] = []

    def first(values: list[Any], arrays: list[Any]) -> Any:
        apart = {id(table): (number, array) for (number, table), array in zip(tables.items(), arrays, strict=True)}
        with _LookUps(apart, None).active() as look_ups:
            out = loss(values)
        found.extend((number, tuple(ids.shape)) for number, ids in look_ups.calls)
        return out[0]

    program = jax.make_jaxpr(first)(list(values), [values[number] for number in tables]).jaxpr
    used = {id(variable) for equation in program.eqns for variable in equation.invars} | {id(variable) for variable in program.outvars}
    by_rows = {number: table for number, table in tables.items() if id(program.invars[number]) not in used}
    found = [(number, shape) for number, shape in found if number in by_rows]
    rest = [None if number in by_rows else value for number, value in enumerate(values)]
    zeros = [jnp.zeros((*shape, values[number].shape[1]), values[number].dtype) for number, shape in found]

    def second(rest: list[Any], zeros: list[Any]) -> Any:
        given = [values[number] if value is None else value for number, value in enumerate(rest)]
        with _LookUps({id(table): (number, values[number]) for number, table in by_rows.items()}, zeros).active() as look_ups:
            value, further = loss(given)
        return value, (further, [ids for _, ids in look_ups.calls])

    (value, (further, ids)), (gradients, of_zeros) = jax.value_and_grad(second, argnums=(0, 1), has_aux=True)(rest, zeros)
    row_ids: dict[int, Any] = {}
    for number in by_rows:
        calls = [place for place, (table, _) in enumerate(found) if table == number]
        width = values[number].shape[1]
        flat = [jnp.reshape(ids[place], (-1,)) for place in calls]
        row_ids[number] = jnp.concatenate(flat) if flat else jnp.zeros((0,), "int32")
        parts = [jnp.reshape(of_zeros[place], (-1, width)) for place in calls]
        gradients[number] = jnp.concatenate(parts) if parts else jnp.zeros((0, width), values[number].dtype)
        row_ids[number] = jnp.where(row_ids[number] < 0, row_ids[number] + values[number].shape[0], row_ids[number])
    return (value, further), gradients, row_ids


def split(gradient: Any) -> tuple[Any, Any] | None:
    """None: the gradient is of the whole table."""
    return None


def distinct(ids: Any, gradients: Any, rows: int) -> tuple[Any, Any]:
    """Each row once, sorted, with the sum of its gradients. Shapes are fixed: ids from `rows` on fill up, and are ignored."""
    size = ids.shape[0]
    if not size:
        return ids, gradients
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    place = jnp.cumsum(jnp.concatenate([jnp.zeros(1, "int32"), (ordered[1:] != ordered[:-1]).astype("int32")]))
    sums = jnp.zeros_like(gradients).at[place].add(gradients[order], indices_are_sorted=True)
    unique = (rows + jnp.arange(size, dtype=ids.dtype)).at[place].set(ordered, indices_are_sorted=True)
    return unique, sums


def read(variable: Any, ids: Any) -> Any:
    """Rows of a variable."""
    return jnp.take(variable.value, ids, axis=0, mode="clip")


def write(variable: Any, ids: Any, values: Any) -> None:
    """Set rows of a variable: in place where the array is donated to the compiled step."""
    array = variable.value
    variable.assign(array.at[ids].set(values.astype(array.dtype), mode="drop", indices_are_sorted=True, unique_indices=True))


@functools.partial(jax.jit, donate_argnums=0)
def _filled(array: Any, rows: Any, start: Any) -> Any:
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, axis=0)


def fill(variable: Any, start: int, rows: Any) -> None:
    """Set the rows from `start` on."""
    # Waits: each part has numbers in memory until it is written.
    variable.assign(_filled(variable.value, rows, start).block_until_ready())
