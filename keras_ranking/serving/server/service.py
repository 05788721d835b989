"""The common part of REST and gRPC: find the version, check, queue, wait, count."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from keras_ranking.serving.protocol import marks
from keras_ranking.serving.protocol.errors import ServingError, busy, not_found, too_large
from keras_ranking.serving.protocol.model_folder import FEATURES, RAW_VALUES
from keras_ranking.serving.protocol.signature import Signature
from keras_ranking.serving.server.access_log import RequestWriter
from keras_ranking.serving.server.limits import Limits
from keras_ranking.serving.server.logs import CALL
from keras_ranking.serving.server.metrics import Metrics
from keras_ranking.serving.server.security import Access
from keras_ranking.serving.server.versions import Servable, Versions

call_log = logging.getLogger(CALL)
Tensors = dict[str, np.ndarray]


@dataclass
class Call:
    """State of a call, for metrics and the log."""

    protocol: str
    begin: float = field(default_factory=time.monotonic)
    code: str = "OK"
    signature: str = ""
    version: int = 0
    rows: int = 0
    requests: tuple[str, ...] = ()


class Service:
    """One served model.

    Args:
        name: of the model.
        limits: limits of requests and load.
        access: access rules.
        open_versions: makes the versions; its argument is a function that counts the rows of each run.
    """

    def __init__(self, name: str, limits: Limits, access: Access, open_versions: Callable[[Callable[[int], None]], Versions]) -> None:
        self.name, self.limits, self.access = name, limits, access
        self.draining = self.closing = False
        self._running = 0
        self.metrics = Metrics()
        self.versions = open_versions(self.metrics.ran)
        self.requests = RequestWriter(access.access_log) if access.access_log is not None else None
        self.metrics.watch(self.versions, lambda: self._running)

    def close(self) -> None:
        """Unload the model, and write what the access log holds."""
        self.versions.close()
        if self.requests is not None:
            self.requests.close()

    @property
    def ready(self) -> bool:
        """Whether the server accepts new calls."""
        return not self.draining and self.versions.latest in self.versions.loaded

    def must_be(self, name: str) -> None:
        """Raise NOT_FOUND unless `name` is the served model."""
        if name != self.name:
            raise not_found(f'model "{name}" not found. This server has: "{self.name}"')

    @contextlib.contextmanager
    def counted(self, protocol: str) -> Iterator[Call]:
        """Count a call and bound how many run at once.

        Raises:
            ServingError: RESOURCE_EXHAUSTED.
        """
        call = Call(protocol)
        self._running += 1
        try:
            if self._running > self.limits.concurrent:
                raise busy(f"{self.limits.concurrent} calls are in progress, which is the limit; try again later")
            yield call
        except ServingError as error:
            call.code = error.code
            raise
        except asyncio.CancelledError:
            call.code = "CANCELLED"
            raise
        except Exception:
            call.code = "INTERNAL"
            raise
        finally:
            self._running -= 1
            seconds = time.monotonic() - call.begin
            self.metrics.count(call.protocol, call.code, call.signature, seconds)
            if call_log.isEnabledFor(logging.INFO):
                known = {name: getattr(call, name) for name in ("protocol", "code", "signature", "version", "rows")}
                call_log.info("call", extra={**known, "seconds": round(seconds, 6), "model": self.name})

    async def predict(self, call: Call, servable: Servable, signature: Signature, inputs: Tensors, seconds: float | None = None) -> Tensors:
        """Scores of a call; the caller holds the lease of `servable`.

        Args:
            call: its fields are set.
            seconds: deadline of the caller, from the beginning of the call; None: `limits.deadline_seconds`.

        Raises:
            ServingError: invalid inputs, a request that the graph has marked, a full queue, a deadline, a failing model.
        """
        call.signature, call.version = signature.name, servable.version
        call.rows = signature.check(inputs)
        for axis, (name, size) in signature.widest(inputs).items():
            most = self.limits.history if axis == "history" else self.limits.candidates
            if size > most:
                raise too_large(f"input '{name}' may hold at most {most} cells a request. Received: {size}")
        allowed = self.limits.deadline_seconds if seconds is None else min(seconds, self.limits.deadline_seconds)
        deadline = call.begin + allowed
        left = deadline - time.monotonic()
        if left <= 0:
            raise ServingError("DEADLINE_EXCEEDED", "the deadline passed before the call was read")
        waiting = servable.batcher.submit(signature, inputs, call.rows, deadline)
        try:
            outputs = await asyncio.wait_for(asyncio.wrap_future(waiting), left)
        except TimeoutError:
            raise ServingError("DEADLINE_EXCEEDED", f"no scores within {allowed:.3g} s") from None
        if servable.model.card is not None:
            await _check_marks(servable, signature.name, inputs, outputs)
        if self.requests is not None:
            self.requests.offer(call.requests, servable.version, signature, inputs, outputs, call.rows)
        return outputs


async def _check_marks(servable: Servable, signature: str, inputs: Tensors, outputs: Tensors) -> None:
    """Raise INVALID_ARGUMENT for requests that the graph has marked, with the name of the input where `raw_features` tells it."""
    if signature == FEATURES:
        refused = marks.refused_values(outputs)
        if refused:
            raise marks.error_of(np.zeros(0, dtype=bool), refused)
        return
    rows = marks.marked(outputs)
    if not rows.any():
        return
    values = None
    if signature in RAW_VALUES and FEATURES in servable.model.signatures:
        encoded = {name: inputs[name] for name in servable.model.signature(FEATURES).inputs}
        values = marks.refused_values(await asyncio.to_thread(servable.model.run, FEATURES, encoded))
    raise marks.error_of(rows, values)
