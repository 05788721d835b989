"""Sums over the processes of torch's default group."""

from __future__ import annotations

from typing import Any

import torch
from keras import ops
from torch import distributed

_AT_ONCE = 2**23  # numbers that are sent together: few messages, and little memory for copies


class _Total(torch.autograd.Function):
    """The sum over processes. Each of them reads all parts, so that the gradient of a part is a sum over processes too."""

    @staticmethod
    def forward(ctx: Any, values: Any) -> Any:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _summed(gradients[0])


def _summed(values: Any) -> Any:
    out = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(out)
    return out


def total(values: Any) -> Any:
    """See `keras_ranking.ops.replicas.total`."""
    return _Total.apply(values)  # type: ignore[no-untyped-call]


def sum_gradients(gradients: list[Any]) -> list[Any]:
    """See `keras_ranking.ops.replicas.sum_gradients`."""
    out = list(gradients)
    dense: dict[Any, list[int]] = {}
    for number, gradient in enumerate(gradients):
        if gradient is not None and gradient.is_sparse:
            out[number] = _gathered(gradient)
        elif gradient is not None:
            dense.setdefault(gradient.dtype, []).append(number)
    for numbers in dense.values():
        while numbers:
            taken: list[int] = []
            size = 0
            while numbers and (not taken or size + gradients[numbers[0]].numel() <= _AT_ONCE):
                size += gradients[numbers[0]].numel()
                taken.append(numbers.pop(0))
            flat = torch.cat([gradients[number].reshape(-1) for number in taken])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradients[number].numel() for number in taken])
            for number, part in zip(taken, parts, strict=True):
                out[number] = part.view_as(gradients[number])
    return out


def _gathered(gradient: Any) -> Any:
    """A sparse gradient with the rows of all processes, of which each may have another number."""
    ids, values = gradient._indices(), gradient._values()
    count = torch.tensor([ids.shape[1]], device=ids.device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    sizes = [int(one) for one in counts]
    spare = max(sizes) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (0, spare)).contiguous()
    values = torch.nn.functional.pad(values, (0, 0, 0, spare)).contiguous()
    all_ids, all_values = ([torch.empty_like(part) for _ in sizes] for part in (ids, values))
    distributed.all_gather(all_ids, ids)
    distributed.all_gather(all_values, values)
    joined = torch.cat([part[:, :size] for part, size in zip(all_ids, sizes, strict=True)], dim=1)
    rows = torch.cat([part[:size] for part, size in zip(all_values, sizes, strict=True)])
    return torch.sparse_coo_tensor(joined, rows, gradient.shape, check_invariants=False)


def whole_array(value: Any) -> Any:
    """See `keras_ranking.ops.replicas.whole_array`."""
    return ops.convert_to_numpy(value)
