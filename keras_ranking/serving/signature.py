"""What a signature asks for and gives, and whether a request's tensors fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from keras_ranking.serving.errors import invalid
from keras_ranking.serving.layout import AXES, CANDIDATE_COUNT, HISTORY_LENGTH


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Args:
        dtype: numpy dtype.
        shape: None = free; None as a whole = unknown rank.
        axis: what axis 1 counts: 'history', 'candidate' or None.
        rows: valid integers are 0 .. rows-1; None = any.
        missing: whether NaN stands for a missing number, as in the signature `raw`.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] | None
    axis: str | None = None
    rows: int | None = None
    missing: bool = False


@dataclass(frozen=True)
class Signature:
    """Named inputs and outputs of one function of a SavedModel."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def ragged(self) -> bool:
        """Whether the inputs carry explicit lengths, so that requests of different lengths can share a run."""
        used = {tensor.axis for tensor in self.inputs.values() if tensor.axis is not None}
        return bool(used) and all(AXES[axis] in self.inputs for axis in used)

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Raise where the tensors do not fit; return the number of rows (requests).

        Raises:
            ServingError: INVALID_ARGUMENT, naming the input: an unknown or missing name, a wrong dtype, rank or size, a length
                beyond its tensor, no candidate, a NaN or infinity or an id outside its table where it counts.
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
        if self.ragged:
            self._check_lengths(inputs)
        for name, tensor in self.inputs.items():
            _check_values(name, tensor, inputs[name], self.counts(name, inputs))
        return next(iter(rows.values()), 1)

    def counts(self, name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """(B, cells) whether a cell of input `name` counts; None = all do."""
        axis = self.inputs[name].axis
        if axis is None or AXES[axis] not in self.inputs:
            return None
        counted: np.ndarray = np.arange(inputs[name].shape[1]) < inputs[AXES[axis]][:, None]
        return counted

    def _check_lengths(self, inputs: Mapping[str, np.ndarray]) -> None:
        for axis, length_name in AXES.items():
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


def _check_form(name: str, tensor: Tensor, values: np.ndarray) -> None:
    if values.dtype != tensor.dtype:
        raise invalid(f"input '{name}' must be {tensor.dtype}. Received: {values.dtype}")
    if tensor.shape is None:
        return
    fits = values.ndim == len(tensor.shape) and all(want in (None, have) for want, have in zip(tensor.shape, values.shape, strict=True))
    if not fits:
        wanted = tuple("?" if size is None else size for size in tensor.shape)
        raise invalid(f"input '{name}' must have rank {len(wanted)} and shape ({', '.join(map(str, wanted))}). Received: {values.shape}")


def _check_values(name: str, tensor: Tensor, values: np.ndarray, counted: np.ndarray | None) -> None:
    if values.dtype.kind == "f":
        bad, what = ~np.isfinite(values), "finite numbers"
        if tensor.missing:
            bad &= ~np.isnan(values)
    elif values.dtype.kind == "i" and tensor.rows is not None and name not in (HISTORY_LENGTH, CANDIDATE_COUNT):
        bad, what = (values < 0) | (values >= tensor.rows), f"integers in 0 .. {tensor.rows - 1}"
    else:
        return
    if counted is not None:
        bad &= counted.reshape(counted.shape + (1,) * (bad.ndim - 2))
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise invalid(f"input '{name}' must hold {what}. Received: {values[where]} at {list(where)}")
