"""Layers whose inputs hold times, ids or lengths."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ranking.ops.integers import as_tensor
from keras_ranking.ops.whole import whole_numbers


class WholeInputs:
    """A layer whose call arguments in `whole` must be integers of int32; in a dict, the entries with these names.

    They are checked before Keras converts the arguments: JAX cuts int64 to 32 bits there, and every backend casts floats.
    """

    whole: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kind: Any = type(self)
        names = _arguments(kind)
        args = tuple(self._checked(name, value) for name, value in zip(names, args, strict=False)) + args[len(names) :]
        kwargs = {name: self._checked(name, value) for name, value in kwargs.items()}
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _whole(self) -> tuple[str, ...]:
        """Names of the arguments and entries; a layer whose inputs depend on its arguments overrides it."""
        return self.whole

    def _checked(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            changed = {key: self._checked(key, entry) for key, entry in value.items() if key in self._whole()}
            return {**value, **changed} if changed else value
        if name == "cache" and isinstance(value, (tuple, list)) and isinstance(value[-1], (np.ndarray, list)):  # key, value, lengths
            return (*value[:-1], as_tensor(whole_numbers(value[-1], "lengths")))
        return as_tensor(whole_numbers(value, name)) if name in self._whole() else value


@functools.cache
def _arguments(layer: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(layer.call).parameters)[1:]
