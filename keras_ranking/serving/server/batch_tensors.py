"""Batch concatenation: the tensors of several calls as one batch, and its outputs split by call."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from keras_ranking.serving.protocol.signature import Signature

Tensors = dict[str, np.ndarray]


@dataclass
class Job:
    """A checked call in the queue."""

    signature: Signature
    inputs: Tensors
    rows: int
    deadline: float
    longest: dict[str, int]
    result: Future[Tensors] = field(default_factory=Future)

    @property
    def cells(self) -> int:
        """Cells of the call alone: rows x (history + candidates)."""
        return self.rows * max(1, sum(self.longest.values()))


def concatenate(jobs: list[Job], signature: Signature) -> Tensors:
    """One batch with the rows of all calls: counted cells are copied, the others are zero (or the empty text)."""
    longest = {axis: max(job.longest[axis] for job in jobs) for axis in jobs[0].longest}
    counts = [signature.counts(job.inputs) for job in jobs]
    masks = {axis: ~np.concatenate([_resized(count[axis], 1, longest[axis]) for count in counts]) for axis in counts[0] if axis is not None}
    beyond = {axis: mask if mask.any() else None for axis, mask in masks.items()}
    batch: Tensors = {}
    for name, tensor in signature.inputs.items():
        parts = [job.inputs[name] for job in jobs]
        if tensor.dimension is None:
            batch[name] = np.concatenate(parts)
        elif tensor.axis is None:
            batch[name] = _stack(parts, tensor.dimension, max(part.shape[tensor.dimension] for part in parts))
        else:
            width = longest[tensor.axis]
            out = _stack([part[:, :width] for part in parts], 1, width)
            if beyond[tensor.axis] is not None:
                out[beyond[tensor.axis]] = b"" if out.dtype.kind == "O" else 0
            batch[name] = out
    return batch


def split(jobs: list[Job], signature: Signature, outputs: Tensors) -> list[Tensors]:
    """The rows of each call at the width of its own tensors, 0 in cells that are not counted, as in a run of the call alone."""
    longest = {axis: max(job.longest[axis] for job in jobs) for axis in jobs[0].longest}
    widest = [signature.widest(job.inputs) for job in jobs]
    results: list[Tensors] = []
    row = 0
    for job, own in zip(jobs, widest, strict=True):
        result = {}
        for name, values in outputs.items():
            part = values[row : row + job.rows]
            tensor = signature.outputs[name]
            if tensor.axis is not None and tensor.grows is not None:
                # A cache may be a multiple of the history: two tokens per event.
                times = max(1, part.shape[tensor.grows] // longest[tensor.axis])
                part = _resized(part, tensor.grows, times * own[tensor.axis][1])
            result[name] = part
        results.append(result)
        row += job.rows
    return results


def _stack(parts: list[np.ndarray], dimension: int, size: int) -> np.ndarray:
    """All rows in one array; each part is at the beginning of `dimension` and padded with zeros."""
    if all(part.shape[dimension] == size for part in parts):
        return np.concatenate(parts)
    shape = list(parts[0].shape)
    shape[0], shape[dimension] = sum(len(part) for part in parts), size
    out: np.ndarray = np.full(shape, b"", dtype=object) if parts[0].dtype.kind == "O" else np.zeros(shape, dtype=parts[0].dtype)
    row = 0
    for part in parts:
        place = [slice(None)] * part.ndim
        place[0], place[dimension] = slice(row, row + len(part)), slice(0, part.shape[dimension])
        out[tuple(place)] = part
        row += len(part)
    return out


def _resized(values: np.ndarray, dimension: int, size: int) -> np.ndarray:
    """Cut or pad with zeros to `size` along `dimension`."""
    have = values.shape[dimension]
    if have > size:
        return values.take(range(size), axis=dimension) if dimension != 1 else values[:, :size]
    if have == size:
        return values
    return np.pad(values, [(0, size - have if axis == dimension else 0) for axis in range(values.ndim)])
