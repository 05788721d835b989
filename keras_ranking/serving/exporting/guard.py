"""Requests that a graph cannot score are marked instead of failing: a server that batches calls fails all calls of a batch together.

A request is marked if a counted cell holds an id outside its table, a number that is not finite or larger than `LARGEST`, or a time
before the schema's epoch, if a count is negative or larger than its tensors, or if a score is not finite. All its scores are
`INVALID_SCORE`, which no probability is. `encode_history` marks a history by `INVALID_CACHE` in all float cells of its cache, and
`score_candidates` marks the request with such a cache, or with one that has a number in a counted cell that is not finite or larger
than `LARGEST_CACHED`. The other requests of a call are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tensorflow as tf

from keras_ranking.serving.exporting.signatures import Endpoint, Specs, Tensors
from keras_ranking.serving.protocol.model_folder import AXES, CACHE, CACHE_LENGTH, CACHE_TIME, INVALID_CACHE, INVALID_SCORE

LARGEST = 1e15
"""Largest encoded number. Larger ones overflow in products, and attention over packed requests spreads NaN to the next request. Our
choice.
"""
LARGEST_CACHED = 1e17
"""Largest number in a cache, which is computed from encoded numbers and their weights. Our choice."""
_TIMES = ("request_time", "history_time")


def guarded(made: Mapping[str, Endpoint]) -> dict[str, Endpoint]:
    """The endpoints with scores (or a cache) for every request of a call, the invalid ones marked."""
    return {name: replace(endpoint, body=_Guard(endpoint)) for name, endpoint in made.items()}


class _Guard:
    """The body of an endpoint, on inputs that it can compute with."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._body, self._inputs = endpoint.body, endpoint.inputs

    def __call__(self, tensors: Tensors) -> Tensors:
        inputs, bad = valid_inputs(tensors, self._inputs)
        outputs = self._body(inputs)
        floats = {name: x for name, x in outputs.items() if x.dtype.is_floating}
        for x in floats.values():
            bad |= _any(~tf.math.is_finite(x))
        marked = {name: _marked(x, bad, INVALID_CACHE if name.startswith(CACHE) else INVALID_SCORE) for name, x in floats.items()}
        return {**outputs, **marked}


def valid_inputs(tensors: Tensors, specs: Specs) -> tuple[Tensors, Any]:
    """Inputs without invalid values, and (B,) bool: requests that had one in a counted cell.

    Args:
        tensors: inputs by name.
        specs: name -> {"dtype", "shape", "axis", "rows"}, as in `Card`.
    """
    out = dict(tensors)
    bad = tf.zeros(tf.shape(next(iter(tensors.values())))[:1], tf.bool)
    counted = {}
    for axis, count_name in AXES.items():
        names = [name for name in tensors if specs[name]["axis"] == axis]
        if not names:
            continue
        width = _width(tensors, names)
        out.update({name: tensors[name][:, :width] for name in names})
        if count_name in tensors:
            out[count_name], bad = _clipped(tensors[count_name], width, bad)
            counted[axis] = tf.range(width)[None, :] < out[count_name][:, None]
    if CACHE_LENGTH in tensors and CACHE_TIME in tensors:
        out[CACHE_LENGTH], bad = _clipped(tensors[CACHE_LENGTH], tf.shape(tensors[CACHE_TIME])[1], bad)
    for name, x in tensors.items():
        if name.startswith(CACHE) and x.dtype.is_floating:  # cells beyond the length may hold anything
            wrong = ~tf.math.is_finite(x) | (tf.abs(x) > LARGEST_CACHED)
            out[name] = tf.where(wrong, tf.zeros([], x.dtype), x)
            bad |= (_first_cell(x) <= INVALID_CACHE) | _any(wrong & _cached(x, specs[name]["shape"], tensors, out))
    for names in _alike(tensors, specs):
        # Inputs of one shape and kind are checked as one tensor: many small operations would cost more than the arithmetic.
        x = tf.stack([out[name] for name in names], axis=-1)
        wrong = _wrong(x, [specs[name] for name in names])
        out.update(zip(names, tf.unstack(tf.where(wrong, tf.zeros([], x.dtype), x), len(names), axis=-1), strict=True))
        cells: Any = counted.get(specs[names[0]]["axis"])
        for _ in range(len(x.shape) - 2 if cells is not None else 0):
            cells = cells[..., None]
        bad |= _any(wrong if cells is None else wrong & cells)
    return out, bad


def _alike(tensors: Tensors, specs: Specs) -> list[list[str]]:
    """Names of inputs with values that a model cannot read, by axis, shape and kind."""
    found: dict[Any, list[str]] = {}
    for name, x in tensors.items():
        has_range = x.dtype.is_floating or specs[name]["rows"] is not None or name in _TIMES
        if has_range and not name.startswith(CACHE) and name not in AXES.values():
            axis = specs[name]["axis"]
            found.setdefault((axis, tuple(x.shape[2 if axis else 1 :]), len(x.shape), x.dtype), []).append(name)
    return list(found.values())


def _width(tensors: Tensors, names: list[str]) -> Any:
    """Cells of an axis that all its inputs have."""
    return tf.reduce_min(tf.stack([tf.shape(tensors[name])[1] for name in names]))


def _clipped(count: Any, width: Any, bad: Any) -> tuple[Any, Any]:
    return tf.clip_by_value(count, 0, width), bad | (count < 0) | (count > width)


def _wrong(x: Any, specs: list[Mapping[str, Any]]) -> Any:
    """Cells that the model cannot read; the last axis has the inputs, with their number of rows (of a time: None)."""
    if x.dtype.is_floating:
        return ~tf.math.is_finite(x) | (tf.abs(x) > LARGEST)  # Grappler makes `a > b` of `not a <= b`, which differs for NaN
    most = [x.dtype.max if spec["rows"] is None else spec["rows"] - 1 for spec in specs]
    return (x < tf.constant([-1 if spec.get("sets") else 0 for spec in specs], x.dtype)) | (x > tf.constant(most, x.dtype))


def _cached(x: Any, shape: list[int | None], tensors: Tensors, out: Tensors) -> Any:
    """Cells of a cache that count: of each event of the history there is the same number of slots, along the first free axis."""
    if CACHE_LENGTH not in out or CACHE_TIME not in tensors or None not in shape[1:]:
        return tf.constant(True)
    axis = shape.index(None, 1)
    slots, events = tf.shape(x)[axis], tf.maximum(tf.shape(tensors[CACHE_TIME])[1], 1)
    counted = tf.range(slots)[None, :] < out[CACHE_LENGTH][:, None] * ((slots + events - 1) // events)
    return tf.reshape(counted, [-1, *[1] * (axis - 1), slots, *[1] * (len(shape) - axis - 1)])


def _first_cell(x: Any) -> Any:
    """(B,) the first cell of each request; infinity where there is none."""
    rest = len(x.shape) - 1
    return tf.reduce_min(x[(slice(None), *[slice(0, 1)] * rest)], axis=list(range(1, rest + 1)))


def _any(cells: Any) -> Any:
    return tf.reduce_any(cells, axis=list(range(1, len(cells.shape))))


def _marked(x: Any, bad: Any, value: float) -> Any:
    return tf.where(tf.reshape(bad, [-1] + [1] * (len(x.shape) - 1)), tf.constant(value, x.dtype), x)
