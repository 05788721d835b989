"""Event files of TensorBoard, written without TensorFlow: scalars, texts of a version, and pictures."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_NUMBER = itertools.count()  # files that one process opens in a second have different names


class EventFile:
    """A file `events.out.tfevents...` in a folder that TensorBoard reads.

    Each record is one message `Event` of TensorFlow's `event.proto`, framed as a TFRecord:

        length (uint64), crc(length), message, crc(message)          crc(x) = rotate(CRC-32C(x), 15) + 0xa282ead8

    The fields that are written, and their numbers, are those of TensorFlow's published formats: `wall_time` 1, `step` 2, `file_version` 3,
    `summary` 5; a summary's `value` 1 with `tag` 1, `simple_value` 2, `image` 4.

    Args:
        folder: made where it is missing; TensorBoard shows its name as the run.
    """

    def __init__(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBER)}"
        self.path = Path(folder) / name
        self._write(_text(3, b"brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by tag."""
        summary = b"".join(_text(1, _text(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items())
        self._write(b"\x10" + _varint(step) + _text(5, summary))

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Add a picture in PNG."""
        width, height = struct.unpack(">II", png[16:24])
        picture = b"\x08" + _varint(height) + b"\x10" + _varint(width) + b"\x18" + _varint(4) + _text(4, png)
        self._write(b"\x10" + _varint(step) + _text(5, _text(1, _text(1, tag.encode()) + _text(4, picture))))

    def _write(self, fields: bytes) -> None:
        message = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(message))
        with self.path.open("ab") as file:
            file.write(length + struct.pack("<I", masked(length)) + message + struct.pack("<I", masked(message)))


def _varint(value: int) -> bytes:
    """A whole number >= 0 in groups of 7 bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(number: int, content: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def masked(data: bytes) -> int:
    """The checksum of a TFRecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_entry(value) for value in range(256)]  # of CRC-32C
