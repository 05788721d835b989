"""Inputs and outputs of a signature, and the check of a request's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from keras_ranking.serving.protocol.errors import invalid
from keras_ranking.serving.protocol.model_folder import AXES, CANDIDATE_COUNT, EXTEND, HISTORY_LENGTH


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Args:
        dtype: numpy dtype; text is `object`, an array of `bytes`.
        shape: None = free; None as a whole = unknown rank.
        axis: meaning of axis 1 of an input: 'history', 'candidate' or None. For an output: what its dimension `grows` depends on.
        rows: valid integers are 0 .. rows-1; None = any.
        missing: whether NaN means a missing number, as in the signature `raw`.
        grows: dimension after the batch whose size is that of the history or a multiple of it, as in a cache; None: none.
        sets: whether axis 2 (of a column of the member axis 1) has the ids of a set (`kr.Ids`): places without an id hold -1, or in `raw`
            an empty text.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] | None
    axis: str | None = None
    rows: int | None = None
    missing: bool = False
    grows: int | None = None
    sets: bool = False

    @property
    def dimension(self) -> int | None:
        """The dimension whose size depends on the history or candidates; None: none."""
        return self.grows if self.grows is not None else 1 if self.axis is not None else None

    @property
    def free(self) -> list[int]:
        """Dimensions after the batch whose size is free."""
        return [dim for dim, size in enumerate(self.shape or ()) if dim and size is None]


@dataclass(frozen=True)
class Signature:
    """Named inputs and outputs of one function of a SavedModel."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @cached_property
    def ragged(self) -> bool:
        """Whether requests of different lengths can share a run: every free size is that of a length or a cache."""
        used = {tensor.axis for tensor in self.inputs.values() if tensor.axis is not None}
        both = (*self.inputs.values(), *self.outputs.values())
        batched = all(tensor.shape and tensor.shape[0] is None for tensor in both)
        explained = all(tensor.free == ([] if tensor.dimension is None else [tensor.dimension]) for tensor in both)
        # A longer cache has the slots of two inputs.
        return self.name != EXTEND and bool(used) and used <= self.lengths.keys() and batched and explained

    @cached_property
    def lengths(self) -> dict[str, str]:
        """Axis -> the input with its counted length, if the signature has one."""
        found = {axis: (name, self.inputs[name]) for axis, name in AXES.items() if name in self.inputs}
        return {axis: name for axis, (name, tensor) in found.items() if len(tensor.shape or ()) == 1 and tensor.dtype.kind == "i"}

    def longest(self, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Largest number of counted events and candidates of a row, and the size of a cache; at least 1 each."""
        caches = [inputs[name].shape[tensor.grows] for name, tensor in self.inputs.items() if tensor.grows is not None]
        found = {axis: max(1, int(inputs[name].max(initial=0))) for axis, name in self.lengths.items()}
        return found | ({"cache": max(1, *caches)} if caches else {})

    def widest(self, inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int]]:
        """Axis -> name and size of the widest input, including cells that are not counted."""
        found: dict[str, tuple[str, int]] = {}
        for name, tensor in self.inputs.items():
            if tensor.axis is not None and inputs[name].shape[1] > found.get(tensor.axis, ("", -1))[1]:
                found[tensor.axis] = (name, inputs[name].shape[1])
        return found

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Check the tensors and return the number of rows (requests).

        Raises:
            ServingError: INVALID_ARGUMENT, naming the input: an unknown or missing name, a wrong dtype, rank or size, a length
                beyond its tensor, no candidate, or, in a counted cell, a NaN, an infinity or an id outside its table.
        """
        unknown = sorted(set(inputs) - set(self.inputs))
        missing = sorted(set(self.inputs) - set(inputs))
        if unknown or missing:
            parts = [f"{what} input '{names[0]}'" for what, names in (("unknown", unknown), ("missing", missing)) if names]
            raise invalid(f"{' and '.join(parts)}: signature '{self.name}' takes {sorted(self.inputs)}")
        rows: dict[str, int] = {}
        for name, tensor in self.inputs.items():
            _check_form(name, tensor, inputs[name])
            if inputs[name].ndim:
                rows[name] = len(inputs[name])
        if len(set(rows.values())) > 1:
            raise invalid(f"inputs have different numbers of rows: {rows}")
        self._check_lengths(inputs)
        counts = self.counts(inputs)
        for name, tensor in self.inputs.items():
            _check_values(name, tensor, inputs[name], counts.get(tensor.axis))
        return next(iter(rows.values()), 1)

    def counts(self, inputs: Mapping[str, np.ndarray]) -> dict[str | None, np.ndarray]:
        """Axis -> (B, cells) bool: counted cells. An axis without a length is left out: all its cells are counted."""
        found: dict[str | None, np.ndarray] = {}
        for axis, (_, size) in self.widest(inputs).items():
            if axis in self.lengths:
                found[axis] = np.arange(size) < inputs[self.lengths[axis]][:, None]
        return found

    def _check_lengths(self, inputs: Mapping[str, np.ndarray]) -> None:
        for axis, length_name in self.lengths.items():
            sizes = {name: inputs[name].shape[1] for name, tensor in self.inputs.items() if tensor.axis == axis}
            if not sizes:
                continue
            if len(set(sizes.values())) > 1:
                raise invalid(f"{axis} inputs must be equally long. Received: {sizes}")
            size = next(iter(sizes.values()))
            lengths = inputs[length_name]
            least = 1 if length_name == CANDIDATE_COUNT else 0
            bad = (lengths < least) | (lengths > size)
            if not bad.any():
                continue
            row = int(bad.argmax())
            if lengths[row] > size:
                raise invalid(f"input '{length_name}' is {lengths[row]} in row {row}, but the {axis} inputs hold {size}")
            what = "at least 1: a request needs a candidate" if length_name == CANDIDATE_COUNT else "0 or more"
            raise invalid(f"input '{length_name}' must be {what}. Received: {lengths[row]} in row {row}")


def kind_name(dtype: np.dtype) -> str:
    """Name of a dtype in messages."""
    return "text" if dtype.kind in "SUO" else str(dtype)


def _check_form(name: str, tensor: Tensor, values: np.ndarray) -> None:
    if values.dtype != tensor.dtype:
        raise invalid(f"input '{name}' must be {kind_name(tensor.dtype)}. Received: {kind_name(values.dtype)}")
    if tensor.shape is None:
        return
    fits = values.ndim == len(tensor.shape) and all(want in (None, have) for want, have in zip(tensor.shape, values.shape, strict=True))
    if not fits:
        wanted = tuple("?" if size is None else size for size in tensor.shape)
        raise invalid(f"input '{name}' must have rank {len(wanted)} and shape ({', '.join(map(str, wanted))}). Received: {values.shape}")


def _check_values(name: str, tensor: Tensor, values: np.ndarray, counted: np.ndarray | None) -> None:
    if values.dtype.kind == "f" and tensor.grows is None:  # a cache comes from the model; checking its values would be expensive
        bad, what = ~np.isfinite(values), "finite numbers"
        if tensor.missing:
            bad &= ~np.isnan(values)
    elif values.dtype.kind == "i" and tensor.rows is not None and name not in (HISTORY_LENGTH, CANDIDATE_COUNT):
        least = -1 if tensor.sets else 0
        bad, what = (values < least) | (values >= tensor.rows), f"integers in {least} .. {tensor.rows - 1}"
    else:
        return
    if counted is not None:
        bad &= counted.reshape(counted.shape + (1,) * (bad.ndim - 2))
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise invalid(f"input '{name}' must hold {what}. Received: {values[where]} at {list(where)}")
