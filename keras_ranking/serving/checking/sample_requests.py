"""Random requests for the verification of exports: valid values in the counted cells, invalid ones beyond the lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ranking.columns import Number, SemanticId
from keras_ranking.schema import Schema
from keras_ranking.serving.protocol.model_folder import AXES, CANDIDATE_COUNT, HISTORY_LENGTH, MEMBER, SESSIONS
from keras_ranking.serving.protocol.raw_values import column_of, columns_of

Specs = Mapping[str, Mapping[str, Any]]
"""Input name -> {"dtype", "shape", "axis", "rows"}, as in `model_folder.Card.inputs`."""

_HOSTILE_INT = np.array([-(2**31), -1, 2**31 - 1], dtype=np.int32)
_HOSTILE_FLOAT = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38], dtype=np.float32)
_SOME_TIME = 500_000_000  # seconds after the epoch
_ROWS_UNKNOWN = 2
_INTEGER = re.compile(r"-?\d{1,18}")


def random_requests(
    inputs: Specs, history: Sequence[int], candidates: Sequence[int], seed: int = 0, hostile: bool = True
) -> dict[str, np.ndarray]:
    """A batch of B requests, padded, with invalid values beyond the lengths.

    Args:
        inputs: the model's inputs.
        history, candidates: (B,) number of events and candidates of each request.
        seed: of the random numbers.
        hostile: values beyond the lengths. True: NaN, infinities, huge and negative numbers; False: zeros.

    Returns:
        Serving tensors; L and N are two longer than the longest request, so that every row has padding.
    """
    rng = np.random.default_rng(seed)
    lengths = {"history": np.asarray(history, dtype=np.int32), "candidate": np.asarray(candidates, dtype=np.int32)}
    batch = len(lengths["history"])
    request_time = (_SOME_TIME + rng.integers(0, 10**6, batch)).astype(np.int32)
    out: dict[str, np.ndarray] = {}
    for name, spec in inputs.items():
        axis = spec["axis"]
        if name in (HISTORY_LENGTH, CANDIDATE_COUNT):
            out[name] = lengths["history" if name == HISTORY_LENGTH else "candidate"]
            continue
        if name == "request_time":
            out[name] = request_time
            continue
        cells: tuple[int, ...] = (batch,) if axis is None else (batch, int(lengths[axis].max()) + 2)
        shape = cells + tuple(int(size) for size in spec["shape"][len(cells) :])
        if name == "history_time":
            ago = np.sort(rng.integers(1, 10**7, shape), axis=1)[:, ::-1]
            values = (request_time[:, None] - ago).astype(np.int32)
            values = _left_aligned(values, lengths["history"])
        elif name in SESSIONS:  # a later one after an earlier one; the request's may have events
            first, last = (4, 8) if axis is None else (0, 6)
            values = np.sort(rng.integers(first, last, shape), axis=-1).astype(np.int32)
        elif spec["dtype"] == "int32":
            values = rng.integers(0, spec.get("rows") or _ROWS_UNKNOWN, shape).astype(np.int32)
            if spec.get("sets"):  # sets of several sizes, empty ones among them
                values[rng.random(shape[: len(cells) + 1]) < rng.random(cells)[..., None]] = -1
        else:
            values = rng.standard_normal(shape).astype(np.float32)
        if axis is not None:
            beyond = np.arange(cells[1]) >= lengths[axis][:, None]
            invalid = _HOSTILE_INT if spec["dtype"] == "int32" else _HOSTILE_FLOAT
            values[beyond] = rng.choice(invalid, values[beyond].shape) if hostile else 0
        out[name] = values
    return out


_TEXTS = ("7", "-1", "007", "a b", "ж\u00e9\U0001f600", "x" * 70, " ", "nan", "missing", "0")
_INTS = (0, -1, 7, 2**63 - 1, -(2**63), 10**12)


def random_raw(
    schema: Schema, raw: Specs, history: Sequence[int], candidates: Sequence[int], seed: int = 0, wild: bool = True
) -> dict[str, np.ndarray]:
    """A batch for the signature `raw`: values of a log, also missing and unknown ones, and invalid values beyond the lengths.

    Args:
        schema: of the model.
        raw: inputs of `raw`.
        history, candidates, seed: as `random_requests`.
        wild: whether numbers have extreme magnitudes: for tests of the encoding, not of scores.
    """
    rng = np.random.default_rng(seed)
    plain = {"string": "int32", "int64": "int32", "float64": "float32"}
    out = random_requests({k: {**x, "dtype": plain.get(x["dtype"], x["dtype"])} for k, x in raw.items()}, history, candidates, seed)
    columns = columns_of(schema)
    lengths = {"history": np.asarray(history), "candidate": np.asarray(candidates)}
    for name, spec in raw.items():
        column, shape = column_of(columns, name), out[name].shape
        if column is None:
            if spec["dtype"] == "int64":
                out[name] = out[name].astype(np.int64) + schema.epoch
            continue
        beyond = np.zeros(shape, bool) if spec["axis"] is None else np.arange(shape[1]) >= lengths[spec["axis"]][:, None]
        if spec["dtype"] == "string":
            known = getattr(column, "vocabulary", None) or ()
            others = () if _refuses_unknown(column) else (*(text.encode() for text in _TEXTS), b"")
            words = np.array([*(text.encode() for text in known), *others], dtype=object)
            out[name] = rng.choice(words, shape)
            if spec.get("sets"):
                out[name][rng.random(shape) < rng.random(shape[:-1])[..., None]] = b""
            out[name][beyond] = b"\xff garbage"
        elif spec["dtype"] == "int64":
            numbers_known = [int(text) for text in getattr(column, "vocabulary", None) or () if _INTEGER.fullmatch(text)]
            numbers_known += [] if _refuses_unknown(column) else [*_INTS, *range(20)]
            out[name] = rng.choice(np.array(numbers_known, dtype=np.int64), shape)
        elif isinstance(column, Number):
            numbers = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 9 if wild else 1, shape)
            numbers = np.where(rng.random(shape) < 0.2, rng.choice([0.0, 1.0, 1e-40, 1e-300, 2.0**-149 * 1.5, 7.0], shape), numbers)
            numbers = np.abs(numbers) if column.transform.startswith("log1p") else numbers
            numbers = np.where(rng.random(shape) < 0.1, np.nan, numbers) if column.missing is not None else numbers
            out[name] = np.where(beyond, rng.choice([np.nan, np.inf, -1e300], shape), numbers)
    return out


def _refuses_unknown(column: Any) -> bool:
    """Whether a column takes known values alone."""
    return isinstance(column, SemanticId) and column.unknown == "error"


def spoilt(batch: Mapping[str, np.ndarray], inputs: Specs) -> list[dict[str, np.ndarray]]:
    """Copies of a batch whose last request has one invalid value each: an id outside its table, a number that is not finite, a time
    before the epoch, a count that is negative or larger than its tensors.

    Args:
        batch: at least one request, each with an event and a candidate where the model reads them.
        inputs: of its signature.
    """
    faults: list[tuple[str, Any]] = []
    for axis, count in AXES.items():
        cells = [name for name, spec in inputs.items() if spec["axis"] == axis]
        if not cells:
            continue
        faults += [(count, value) for value in (-1, batch[cells[0]].shape[1] + 1) if count in inputs]
        ids = next((name for name in cells if inputs[name]["rows"] is not None), None)
        faults += [] if ids is None else [(ids, inputs[ids]["rows"]), (ids, -2 if inputs[ids].get("sets") else -1)]
        numbers = next((name for name in cells if "float" in inputs[name]["dtype"]), None)
        faults += [] if numbers is None else [(numbers, np.inf)]
        faults += [(numbers, np.nan)] if numbers is not None and inputs[numbers]["dtype"] == "float32" else []
    for name, spec in inputs.items():
        if name.startswith(MEMBER) and "float" in spec["dtype"] and not spec.get("missing"):
            faults.append((name, np.inf))
        elif name.startswith(MEMBER) and spec["rows"] is not None:
            faults.append((name, spec["rows"]))
    faults += [("request_time", -1)] if "request_time" in inputs else []
    made = []
    for name, value in faults:
        values = batch[name].copy()
        values[(-1, *[0] * (values.ndim - 1))] = value
        made.append({**batch, name: values})
    return made


def alone(batch: Mapping[str, np.ndarray], inputs: Specs, row: int) -> dict[str, np.ndarray]:
    """Request `row` alone, cut to its own lengths (at least 1, with zeros if the length is 0)."""
    out = {}
    for name, spec in inputs.items():
        values = batch[name][row : row + 1]
        if spec["axis"] is not None:
            length = int(batch[AXES[spec["axis"]]][row])
            values = values[:, :length] if length else np.zeros_like(values[:, :1])
        out[name] = values
    return out


def _left_aligned(times: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each row's newest `length` times first, so that a history ends just before its request."""
    columns = np.arange(times.shape[1])[None, :] + times.shape[1] - lengths[:, None]
    return np.take_along_axis(times, np.clip(columns, 0, times.shape[1] - 1), axis=1)
