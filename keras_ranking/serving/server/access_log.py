"""The access log of the embedded server: a sample of its requests on disk, for the check of skew on real traffic."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_ranking.serving.protocol.logged_requests import LoggedRequest, cells_of, checked_key, logged_inputs, request_hash, sampled
from keras_ranking.serving.protocol.model_folder import RAW, SIGNATURE
from keras_ranking.serving.protocol.signature import Signature

log = logging.getLogger("keras_ranking.serving")
_WAITING = 256  # requests in memory that are not written yet
_SMALLEST = 4096


@dataclass(frozen=True, kw_only=True)
class AccessLog:
    """A log of requests and scores of the embedded server, for `keras-ranking skew --live`. Off by default.

    A call that is to be logged carries the id of its request, `Client.score(..., request_id=...)`, or the header `X-Request-Id` (gRPC:
    metadata `x-request-id`); for several requests in a call their ids, URL-encoded, with ',' between them. A line has the inputs and
    scores of one request. The id, and each id, category and text among the inputs, are written as HMAC-SHA256 with `key` (64 bits):
    whoever has the key and the log of events can compare them, and nobody can read them. Numbers, vectors and times are written as they
    are, unless their columns are in `hashed`. All defaults are our choice.

    Attributes:
        path: file of JSON lines, readable by its owner only. It is appended to.
        key: at least 16 bytes, or a text; the same for each server and for the check.
        share: of requests that are logged, chosen by the hash of their ids: the same ones on each server.
        max_bytes: of the file and the one before it, PATH.1: the older half is dropped.
        hashed: further columns that are hashed, such as 'age'.

    Raises:
        ValueError: a key that is too short, a share that is not above 0 and at most 1, or too few bytes.

    Example:
        >>> kept = kr.serving.AccessLog(path="requests.jsonl", key="a-long-secret-key", share=0.05)
        >>> kept.max_bytes == 256 * 2**20, "secret" in repr(kept)
        (True, False)
    """

    path: str | Path
    key: bytes | str = field(repr=False)
    share: float = 0.01
    max_bytes: int = 256 * 2**20
    hashed: Sequence[str] = ()

    def __post_init__(self) -> None:
        checked_key(self.key)
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1. Received: share={self.share}")
        if self.max_bytes < _SMALLEST:
            raise ValueError(f"`max_bytes` must be at least {_SMALLEST}. Received: max_bytes={self.max_bytes}")


class RequestWriter:
    """Writes requests in a thread of its own. Requests that it cannot take, and a disk that fails, never fail a call.

    Attributes:
        written, dropped: requests in the file, and those that were sampled but not written.
        without_id: calls without an id for each of their requests.
    """

    def __init__(self, settings: AccessLog) -> None:
        self.written = self.dropped = self.without_id = 0
        self._settings, self._key = settings, checked_key(settings.key)
        self._path = Path(settings.path)
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")
        self._waiting: queue.Queue[tuple[str, int, Signature, Mapping[str, np.ndarray], Mapping[str, np.ndarray], int] | None]
        self._waiting = queue.Queue(_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="keras_ranking-access-log", daemon=True)
        self._thread.start()

    def offer(
        self,
        ids: Sequence[str],
        version: int,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        rows: int,
    ) -> None:
        """Log those requests of a call that are in the sample."""
        if signature.name not in (SIGNATURE, RAW):
            return
        if len(ids) != rows:
            self.without_id += 1
            return
        for row, one in enumerate(ids):
            request = request_hash(self._key, one)
            if not sampled(request, self._settings.share):
                continue
            try:
                self._waiting.put_nowait((request, version, signature, inputs, outputs, row))
            except queue.Full:
                self.dropped += 1

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        self._waiting.put(None)
        self._thread.join()
        self._file.close()
        log.info("access log: %d requests written, %d dropped, %d calls without ids", self.written, self.dropped, self.without_id)

    def _run(self) -> None:
        while (taken := self._waiting.get()) is not None:
            try:
                self._write(*taken)
                self.written += 1
            except Exception:
                self.dropped += 1
                if not self._failed:
                    log.exception("the access log cannot be written")
                self._failed = True

    def _write(
        self,
        request: str,
        version: int,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        row: int,
    ) -> None:
        found = logged_inputs(signature, inputs, row, self._key, self._settings.hashed)
        size = max((cells_of(entry) for entry in found.values() if entry["axis"] == "candidate"), default=0)
        scores = {name: np.asarray(values[row])[:size].tolist() for name, values in outputs.items()}
        line = LoggedRequest(round(time.time(), 3), version, signature.name, request, found, scores).line() + "\n"
        if self._file.tell() + len(line) > self._settings.max_bytes // 2:
            self._file.close()
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")
        if len(line) > self._settings.max_bytes // 2:
            raise ValueError(f"a request has {len(line)} bytes, more than half of max_bytes={self._settings.max_bytes}")
        self._file.write(line)
        self._file.flush()
