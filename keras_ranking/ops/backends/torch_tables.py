"""Rows of tables in torch: sparse gradients, updated in place."""

from __future__ import annotations

from typing import Any

import torch
from keras import ops


def look_up(table: Any, ids: Any, half: bool) -> Any:
    """See `keras_ranking.ops.tables.look_up`."""
    if half or torch.compiler.is_compiling():  # torch.compile traces no sparse gradient: there it is of the whole table
        return ops.take(table, ids, axis=0)
    ids = ops.convert_to_tensor(ids).long()
    ids = torch.where(ids < 0, ids + table.shape[0], ids)
    return torch.nn.functional.embedding(ids, table.value, sparse=True)


def split(gradient: Any) -> tuple[Any, Any] | None:
    """(ids, gradients of these rows) of a sparse gradient; None for one of the whole table."""
    if not gradient.is_sparse:
        return None
    gradient = gradient.coalesce()  # sorted, with the sums of equal rows
    return gradient.indices()[0], gradient.values()


def distinct(ids: Any, gradients: Any, rows: int) -> tuple[Any, Any]:
    """Each row once, with the sum of its gradients; `split` has done it."""
    return ids, gradients


@torch.no_grad()
def read(variable: Any, ids: Any) -> Any:
    """Rows of a variable."""
    return variable.value.index_select(0, ids)


@torch.no_grad()
def write(variable: Any, ids: Any, values: Any) -> None:
    """Set rows of a variable, in place."""
    variable.value.index_copy_(0, ids, values.to(variable.value.dtype))


@torch.no_grad()
def fill(variable: Any, start: int, rows: Any) -> None:
    """Set the rows from `start` on."""
    variable.value[start : start + rows.shape[0]].copy_(rows)
