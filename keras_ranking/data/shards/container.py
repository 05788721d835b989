"""One file of named arrays that is read by mapping it into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"KR shard"
VERSION = 1
_ALIGN = 64


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """Write arrays and a JSON value to a file, which appears under its name when it is whole.

    The same arrays and value give the same bytes.

    Args:
        path: to write.
        arrays: by name, of types without Python objects.
        about: for JSON.

    Returns:
        BLAKE2b of the file, 32 hexadecimal digits.
    """
    places, at = {}, 0
    whole = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    for name, array in whole.items():
        at += -at % _ALIGN
        places[name] = [array.dtype.newbyteorder("<").str, list(array.shape), at]
        at += array.nbytes
    head = json.dumps({"about": dict(about), "arrays": places}, sort_keys=True).encode()
    head += b" " * (-(len(MAGIC) + 16 + len(head)) % _ALIGN)
    digest = hashlib.blake2b(digest_size=16)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open(temporary, "wb") as file:

            def put(data: Any) -> None:
                file.write(data)
                digest.update(data)

            put(MAGIC + VERSION.to_bytes(8, "little") + len(head).to_bytes(8, "little") + head)
            at = 0
            for array in whole.values():
                put(b"\0" * (-at % _ALIGN))
                at += -at % _ALIGN + array.nbytes
                if array.nbytes:
                    put(array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON value and the arrays of a file; these are read-only, and their bytes are read when they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, of a later version, or not whole.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(MAGIC) + 16)
        if len(start) < len(MAGIC) + 16 or not start.startswith(MAGIC):
            raise ValueError(f"'{path}' is not a shard of this package.")
        version = int.from_bytes(start[-16:-8], "little")
        if version != VERSION:
            raise ValueError(f"'{path}' is a shard of version {version}, and this version of the package reads version {VERSION}.")
        head = json.loads(file.read(int.from_bytes(start[-8:], "little")))
        begin = file.tell()
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    arrays = {}
    for name, (kind, shape, at) in head["arrays"].items():
        dtype = np.dtype(kind)
        if begin + at + int(np.prod(shape)) * dtype.itemsize > size:
            raise ValueError(f"'{path}' is not whole: it has {size:,} bytes, and array '{name}' ends after them.")
        arrays[name] = np.ndarray(tuple(shape), dtype, buffer=mapped, offset=begin + at)
    return head["about"], arrays


def file_digest(path: Path) -> str:
    """The digest that `write_arrays` returned for a file that is unchanged."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
