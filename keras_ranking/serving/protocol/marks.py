"""Marks of requests that a graph could not score: `INVALID_SCORE` and `INVALID_CACHE`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_ranking.serving.protocol.errors import ServingError, invalid
from keras_ranking.serving.protocol.model_folder import CACHE, INVALID_CACHE, INVALID_SCORE

_TIMES = ("request_time", "history_time")


def marked(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """(B,) bool: requests whose scores or cache carry the mark."""
    found: list[np.ndarray] = []
    for name, values in outputs.items():
        if values.dtype.kind != "f" or not values.ndim or not values.size:
            continue
        # Cells beyond the candidates may have been cut or padded since: the first one is always the request's own.
        first = values.reshape(len(values), -1)[:, 0]
        found.append(first <= np.float32(INVALID_CACHE) if name.startswith(CACHE) else first == np.float32(INVALID_SCORE))
    return np.logical_and.reduce(found) if found else np.zeros(0, dtype=bool)


def refused_values(features: Mapping[str, np.ndarray]) -> list[tuple[int, str]]:
    """(request, input) of the values that `raw_features` could not encode."""
    found = []
    for name, values in features.items():
        if values.dtype.kind == "f" or name in _TIMES:
            bad = ~np.isfinite(values) if values.dtype.kind == "f" else values < 0
            found += [(int(row), name) for row in np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))]
    return sorted(found)


def error_of(rows: np.ndarray, values: list[tuple[int, str]] | None = None, first: int = 0) -> ServingError:
    """INVALID_ARGUMENT for marked requests.

    Args:
        rows: (B,) bool, the marked ones.
        values: of `refused_values`.
        first: number of the request in row 0.
    """
    if values:
        row, name = values[0]
        return invalid(f"input '{name}' of request {row} has a value that the schema refuses")
    text = "an id is outside its table, a number is not finite or too large, a time is before the schema's epoch, or a count is wrong"
    return invalid(f"the model cannot score request {first + int(np.argmax(rows))}: {text}")
