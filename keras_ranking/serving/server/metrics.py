"""Prometheus metrics of the embedded server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from keras_ranking.serving.server.versions import Versions

_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one served model, in a separate registry; names begin with `keras_ranking_`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter("keras_ranking_calls", "Finished calls.", ["protocol", "code", "signature"], registry=self._registry)
        self._seconds = Histogram(
            "keras_ranking_call_seconds", "Duration of a call.", ["protocol", "signature"], buckets=_SECONDS, registry=self._registry
        )
        rows = Histogram("keras_ranking_batch_rows", "Requests in one run of the model.", buckets=_ROWS, registry=self._registry)
        self.ran: Callable[[int], None] = rows.observe
        ProcessCollector(registry=self._registry)

    def watch(self, versions: Versions, running: Callable[[], int]) -> None:
        """Report the state of `versions` and the number of calls in progress at each scrape."""
        gauges: dict[str, tuple[str, Callable[[], int]]] = {
            "waiting_calls": ("Calls in the queue.", lambda: versions.waiting),
            "running_calls": ("Calls in progress.", running),
            "version": ("Version that scores calls without a version.", lambda: versions.latest),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"keras_ranking_{name}", text, registry=self._registry).set_function(value)
        self._registry.register(_VersionStates(versions))

    def count(self, protocol: str, code: str, signature: str, seconds: float) -> None:
        """Count a call. `signature` is one of the model, or '' if the call ended before it was known."""
        self._calls.labels(protocol, code, signature).inc()
        self._seconds.labels(protocol, signature).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _VersionStates:
    """keras_ranking_version_state{version, state} = 1 for each version seen."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def collect(self) -> Iterator[Any]:
        family = GaugeMetricFamily("keras_ranking_version_state", "1 for the state of a version.", labels=["version", "state"])
        for status in self._versions.statuses():
            family.add_metric([str(status.version), status.state], 1)
        yield family
