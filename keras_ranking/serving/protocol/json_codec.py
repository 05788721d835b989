"""REST bodies and tensors: the row form (`instances`) and the column form (`inputs`) of TensorFlow Serving."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from keras_ranking.serving.protocol.errors import ServingError, invalid, too_large
from keras_ranking.serving.protocol.signature import Signature, Tensor

_KINDS = {"b": "true and false", "U": "text", "O": "nulls or mixed values", "f": "numbers with a fraction or of more than 64 bits"}


def decode(body: bytes, signature_of: Callable[[str], Signature], most_rows: int) -> tuple[Signature, dict[str, np.ndarray], bool]:
    """Body of a predict call -> signature, tensors (only their types are checked), whether it is the row form.

    As in TensorFlow Serving, inputs that the signature does not have, other keys, and text after the JSON value are ignored.

    Raises:
        ServingError: INVALID_ARGUMENT; FAILED_PRECONDITION for the signature.
    """
    content = _parse(body)
    if not isinstance(content, dict):
        raise invalid("the body must be a JSON object with 'instances' or 'inputs'")
    if ("instances" in content) == ("inputs" in content):
        raise invalid(
            f"the body must have 'instances' or 'inputs' (one of them), and may have 'signature_name'. Received: {sorted(content)}"
        )
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' must be text. Received: {name!r}")
    signature = signature_of(name)
    rows = "instances" in content
    columns = _columns_of_rows(content["instances"], signature, most_rows) if rows else content["inputs"]
    if not rows and len(signature.inputs) == 1 and not isinstance(columns, dict):
        columns = {next(iter(signature.inputs)): columns}
    if not isinstance(columns, dict):
        raise invalid("'inputs' must be an object of input name -> values")
    known = {key: value for key, value in columns.items() if key in signature.inputs}
    tensors = {key: _array(key, _full_sets(key, value, signature.inputs[key]), signature.inputs[key]) for key, value in known.items()}
    return signature, tensors, rows


def encode(outputs: dict[str, np.ndarray], row_form: bool) -> bytes:
    """Reply body: a single output without its name, several as an object, per row or per column.

    Raises:
        ServingError: INTERNAL for a score that is not finite (JSON has no such number); INVALID_ARGUMENT if the row form is impossible.
    """
    for name, values in outputs.items():
        if values.dtype.kind in "fV" and not np.isfinite(values).all():
            raise ServingError("INTERNAL", f"output '{name}' of the model is not finite")
        if row_form and values.ndim == 0:
            raise invalid(f"output '{name}' has no batch dimension: use the column form ('inputs')")
    arrays = {name: _json_array(name, values) for name, values in outputs.items()}
    single = next(iter(arrays)) if len(arrays) == 1 else None
    reply: Any
    if not row_form:
        reply = {"outputs": arrays if single is None else arrays[single]}
    elif single is not None:
        reply = {"predictions": arrays[single]}
    else:
        count = len(next(iter(arrays.values())))
        reply = {"predictions": [{name: values[row] for name, values in arrays.items()} for row in range(count)]}
    return orjson.dumps(reply, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # TensorFlow Serving reads NaN, which is not JSON but common (the error then names the input), and ignores text after the value.
        with contextlib.suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(body.decode("utf-8").lstrip())[0]
        raise invalid(f"JSON parse error: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _columns_of_rows(rows: Any, signature: Signature, most_rows: int) -> dict[str, list[Any]]:
    if not isinstance(rows, list) or not rows:
        raise invalid("'instances' must be a list of at least one request")
    if len(rows) > most_rows:
        raise too_large(f"a call may hold at most {most_rows} requests. Received: {len(rows)}")
    if len(signature.inputs) == 1 and not isinstance(rows[0], dict):
        return {next(iter(signature.inputs)): rows}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise invalid(f"'instances' must hold objects of input name -> value. Received a {type(row).__name__} at {number}")
        if row.keys() != rows[0].keys():
            names = sorted(row.keys() ^ rows[0].keys())
            raise invalid(f"'instances' must all have the same inputs. Row {number} and row 0 differ in {names}")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _array(name: str, value: Any, tensor: Tensor) -> np.ndarray:
    if tensor.dtype.kind == "O":
        return _text(name, value, tensor)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise invalid(f"input '{name}' must be a full array: its lists have different lengths or hold other things than numbers") from error
    if array.size == 0 and array.dtype.kind == "f":
        array = _empty(array.astype(tensor.dtype), tensor)
    wanted = tensor.dtype.kind
    if array.dtype.kind not in ("iuf" if wanted == "f" else "iu" if wanted in "iu" else wanted):
        raise invalid(f"input '{name}' must be {tensor.dtype}. Received: {_KINDS.get(array.dtype.kind, str(array.dtype))}")
    if wanted in "iu" and array.size:
        bounds = np.iinfo(tensor.dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise invalid(f"input '{name}' must be {tensor.dtype}. Received a number out of its range")
    with np.errstate(over="ignore"):
        return array.astype(tensor.dtype)


def _full_sets(name: str, value: Any, tensor: Tensor) -> Any:
    """Sets of ids with places that hold none, up to the size of the tensor; other values as they are.

    Raises:
        ServingError: INVALID_ARGUMENT for a set that is larger.
    """
    if not tensor.sets or tensor.shape is None or not isinstance(value, list):
        return value
    first = 1 if tensor.axis is None else 2  # of a request, or of each of its events or candidates
    size, fill = tensor.shape[first] or 0, "" if tensor.dtype.kind == "O" else -1
    none: Any = [fill] * 2 if len(tensor.shape) > first + 1 else fill  # both halves of a fingerprint

    def full(cell: Any, *place: int) -> Any:
        if not isinstance(cell, list):
            return cell
        if len(cell) > size:
            raise invalid(f"input '{name}' may hold at most {size} ids. Received: {len(cell)} at {list(place)}")
        return cell + [none] * (size - len(cell))

    if tensor.axis is None:
        return [full(cell, row) for row, cell in enumerate(value)]
    return [[full(cell, row, at) for at, cell in enumerate(cells)] if isinstance(cells, list) else cells for row, cells in enumerate(value)]


def _empty(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Add the missing dimensions of an empty array, such as [[], []] for vectors."""
    if tensor.shape is None or array.ndim >= len(tensor.shape):
        return array
    return array.reshape(array.shape + tuple(size or 0 for size in tensor.shape[array.ndim :]))


def _text(name: str, value: Any, tensor: Tensor) -> np.ndarray:
    """Strings as UTF-8, and {"b64": ...} as decoded bytes."""

    def cell(found: Any) -> bytes:
        if isinstance(found, str):
            return found.encode("utf-8", errors="surrogatepass")
        if isinstance(found, dict) and found.keys() == {"b64"} and isinstance(found["b64"], str):
            with contextlib.suppress(ValueError):
                return base64.b64decode(found["b64"], validate=True)
        raise invalid(f"input '{name}' must be text, or {{\"b64\": ...}}. Received a {type(found).__name__}")

    try:
        array = np.asarray(value, dtype=object)
    except ValueError as error:
        raise invalid(f"input '{name}' must be a full array: its lists have different lengths") from error
    if array.size == 0:
        return _empty(array, tensor)
    filled = np.empty(array.size, dtype=object)
    filled[:] = [cell(found) for found in array.reshape(-1)]
    return filled.reshape(array.shape)


def _json_array(name: str, values: np.ndarray) -> Any:
    """Values that orjson can write: text, in base 64 if the name ends in `_bytes`, as in TensorFlow Serving."""
    if values.dtype.kind == "O":
        binary = name.endswith("_bytes")
        filled = np.empty(values.size, dtype=object)
        filled[:] = [{"b64": base64.b64encode(v).decode()} if binary else v.decode(errors="replace") for v in values.reshape(-1)]
        return filled.reshape(values.shape)
    if values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    return np.ascontiguousarray(values)
