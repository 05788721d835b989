"""Lines of a server's access log: one request each, cells of personal values as keyed hashes."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from keras_ranking.serving.protocol.model_folder import AXES, MEMBER, column_name
from keras_ranking.serving.protocol.signature import Signature, Tensor

FORMAT = 1
SHORTEST_KEY = 16
ID_HEADER = "X-Request-Id"
_TIMES = ("request_time", "history_time")
_DIGITS = 16  # hexadecimal: 64 bits


def checked_key(key: bytes | str) -> bytes:
    """A key in bytes.

    Raises:
        ValueError: a key that is too short.
    """
    found = key.encode() if isinstance(key, str) else bytes(key)
    if len(found) < SHORTEST_KEY:
        raise ValueError(f"`key` must have at least {SHORTEST_KEY} bytes. Received: {len(found)} bytes")
    return found


def keyed(key: bytes, name: str, value: bytes) -> str:
    """HMAC-SHA256 of a value of a column, its first 64 bits in hexadecimal. Equal values of two columns have different hashes."""
    return hmac.new(key, name.encode() + b"\0" + value, hashlib.sha256).hexdigest()[:_DIGITS]


def request_hash(key: bytes, request: Any) -> str:
    """The hash of a request's id, of its text."""
    return keyed(key, "request", str(request).encode())


def sampled(request: str, share: float) -> bool:
    """Whether the request with this hash is among `share` of all: the same ones on each server."""
    return int(request[:8], 16) < share * 2**32


def joined_ids(ids: Sequence[Any]) -> str:
    """Ids of the requests of a call as the value of the header."""
    return ",".join(quote(str(one), safe="") for one in ids)


def split_ids(value: str | bytes | None) -> tuple[str, ...]:
    """Ids of the header's value, one for each request of a call."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
    return tuple(unquote(part) for part in text.split(",")) if text else ()


def cell_hashes(key: bytes, column: str, values: np.ndarray) -> list[str]:
    """The hash of each cell (first axis) of a column: of its text, or of the bits of its numbers."""
    cells = values.reshape(len(values), -1)
    if values.dtype.kind == "O":
        contents = [b"\0".join(bytes(part) for part in row) for row in cells.tolist()]
    else:
        contents = [row.tobytes() for row in np.ascontiguousarray(cells, dtype=cells.dtype.newbyteorder("<"))]
    known: dict[bytes, str] = {}
    return [known[one] if one in known else known.setdefault(one, keyed(key, column, one)) for one in contents]


def is_hashed(name: str, tensor: Tensor, further: Sequence[str]) -> bool:
    """Whether cells of an input are hashed: ids, categories and text, all columns of the member, and the columns that were named."""
    if column_name(name, tensor.axis) in further or name.startswith(MEMBER):
        return True
    return tensor.axis is not None and tensor.dtype.kind in "OSUiu" and name not in _TIMES


def logged_inputs(
    signature: Signature, inputs: Mapping[str, np.ndarray], row: int, key: bytes, further: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Inputs of one request of a call without padding, for JSON: dtype, and `values` or `hashed`."""
    found = {}
    for name, tensor in signature.inputs.items():
        if name in AXES.values():
            continue
        values = inputs[name][row : row + 1]
        if tensor.axis is not None:
            values = inputs[name][row]
            length = signature.lengths.get(tensor.axis)
            values = values[: int(inputs[length][row])] if length else values
        entry: dict[str, Any] = {"dtype": "text" if values.dtype.kind == "O" else str(values.dtype), "axis": tensor.axis}
        entry["cell"] = [int(size) for size in values.shape[1:]]
        if is_hashed(name, tensor, further):
            entry["hashed"] = cell_hashes(key, column_name(name, tensor.axis), values)
        elif values.dtype.kind == "O":
            entry["values"] = np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[object])(values).tolist()
        else:
            entry["values"] = values.tolist()
        found[name] = entry
    return found


def cells_of(entry: Mapping[str, Any]) -> int:
    """Events or candidates of an input in a line."""
    return len(entry["hashed"] if "hashed" in entry else entry["values"])


@dataclass(frozen=True)
class LoggedRequest:
    """One line of an access log.

    Attributes:
        at: Unix time of the reply.
        version, signature: what scored it.
        request: hash of its id.
        inputs: name -> {"dtype", "axis", "cell", and "values" or "hashed"}.
        outputs: name -> values of its candidates.
    """

    at: float
    version: int
    signature: str
    request: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, list[Any]]

    def line(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **self.__dict__}, separators=(",", ":"))


def read_requests(path: str | Path) -> Iterator[LoggedRequest | None]:
    """Requests of an access log, older file first; None for a line that is not whole.

    Raises:
        FileNotFoundError: no such log.
        ValueError: a log of another format.
    """
    path = Path(path)
    files = [file for file in (path.with_name(path.name + ".1"), path) if file.is_file()]
    if not files:
        raise FileNotFoundError(f"no access log at '{path}'")
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    content = json.loads(line)
                except json.JSONDecodeError:
                    yield None
                    continue
                if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                    raise ValueError(f"'{file}' must be an access log of `keras-ranking serve` of format {FORMAT}. Received: {line[:80]!r}")
                yield LoggedRequest(**content)
