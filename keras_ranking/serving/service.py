"""What both doors, REST and gRPC, lead to: find the version, check, queue, wait, count."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from keras_ranking.serving.errors import ServingError, exhausted, not_found
from keras_ranking.serving.limits import Limits
from keras_ranking.serving.signature import Signature
from keras_ranking.serving.versions import Servable, Versions

Tensors = dict[str, np.ndarray]


class Service:
    """One served model.

    Args:
        name: of the model.
        limits: what is refused.
        open_versions: makes the versions; is handed the function to call with the rows of every run.
    """

    def __init__(self, name: str, limits: Limits, open_versions: Callable[[Callable[[int], None]], Versions]) -> None:
        self.name = name
        self.limits = limits
        self._running = 0
        self.registry = CollectorRegistry()
        labels = ["protocol", "code"]
        self._calls = Counter("keras_ranking_calls", "Calls answered.", labels, registry=self.registry)
        self._seconds = Histogram("keras_ranking_call_seconds", "Time to answer a call.", ["protocol"], registry=self.registry)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        rows = Histogram("keras_ranking_batch_rows", "Requests in one run of the model.", buckets=sizes, registry=self.registry)
        self.versions = open_versions(rows.observe)
        waiting = Gauge("keras_ranking_waiting_calls", "Calls in the queue.", registry=self.registry)
        waiting.set_function(lambda: self.versions.waiting)
        serving = Gauge("keras_ranking_version", "Version that answers calls which name none.", registry=self.registry)
        serving.set_function(lambda: self.versions.latest)

    def metrics(self) -> bytes:
        """All metrics in the text form of Prometheus."""
        return generate_latest(self.registry)

    def must_be(self, name: str) -> None:
        """Raise NOT_FOUND unless `name` is the served model."""
        if name != self.name:
            raise not_found(f'model "{name}" not found. This server has: "{self.name}"')

    @contextlib.contextmanager
    def counted(self, protocol: str) -> Iterator[None]:
        """Count a call and bound how many run at once.

        Raises:
            ServingError: RESOURCE_EXHAUSTED.
        """
        start, code = time.monotonic(), "OK"
        self._running += 1
        try:
            if self._running > self.limits.concurrent:
                raise exhausted(f"{self.limits.concurrent} calls are under way already, which is the limit; try again later")
            yield
        except ServingError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            self._running -= 1
            self._calls.labels(protocol, code).inc()
            self._seconds.labels(protocol).observe(time.monotonic() - start)

    async def predict(self, servable: Servable, signature: Signature, inputs: Tensors, seconds: float | None = None) -> Tensors:
        """Scores of a call; the caller holds the lease of `servable`.

        Args:
            seconds: time the caller still waits; None: `limits.deadline_seconds`.

        Raises:
            ServingError: what is wrong with the inputs, a full queue, a deadline, a failing model.
        """
        rows = signature.check(inputs)
        left = self.limits.deadline_seconds if seconds is None else min(seconds, self.limits.deadline_seconds)
        waiting = servable.batcher.submit(signature, inputs, rows, time.monotonic() + left)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(waiting), left)
        except TimeoutError:
            raise ServingError("DEADLINE_EXCEEDED", f"no scores within {left:.3g} s") from None
