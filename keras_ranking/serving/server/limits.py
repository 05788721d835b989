"""Limits of the embedded server. Each error states the limit."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of the embedded server. All defaults are our choice.

    Args:
        body_bytes: largest request body or gRPC message in bytes; above it the error is 413 / RESOURCE_EXHAUSTED.
        batch: largest number of requests (rows) of one call, and of one run of the model; 413 / RESOURCE_EXHAUSTED.
        history, candidates: largest width of tensors of events and of candidates; 413 / RESOURCE_EXHAUSTED.
        batch_cells: largest number of tensor cells, rows x (history + candidates) after padding, of a run with several calls;
            a single call may exceed it and then runs alone.
        queue: largest number of calls that wait for the model; 429 / RESOURCE_EXHAUSTED.
        concurrent: largest number of calls in progress; 429 / RESOURCE_EXHAUSTED.
        connections: largest number of open connections of each port; a further one gets 503 (REST) or is closed (gRPC).
        read_seconds: time for a head or body to arrive, and for a reply to be read; then 408, or the connection is closed.
        idle_seconds: time that a connection may stay open between calls.
        deadline_seconds: deadline of a call without its own deadline, and the largest one; then DEADLINE_EXCEEDED / 504.

    Raises:
        ValueError: a value that is not a positive number.

    Example:
        >>> limits = kr.serving.Limits(queue=32, deadline_seconds=2.0)
        >>> limits.queue, limits.batch
        (32, 64)
    """

    body_bytes: int = 16 * 2**20
    batch: int = 64
    history: int = 8192
    candidates: int = 8192
    batch_cells: int = 65_536
    queue: int = 256
    concurrent: int = 512
    connections: int = 1024
    read_seconds: float = 30.0
    idle_seconds: float = 300.0
    deadline_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ValueError(f"`{field.name}` must be a positive number. Received: {field.name}={value!r}")


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """How the embedded server stops.

    Attributes:
        drain_seconds: longest time that `stop` waits for calls in progress.
        notice_seconds: time before that in which `/readyz` and gRPC health report not ready, while calls are still accepted.

    Raises:
        ValueError: a time out of range.

    Example:
        >>> kr.serving.Stopping(notice_seconds=5.0).drain_seconds
        10.0
    """

    drain_seconds: float = 10.0
    notice_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.drain_seconds > 0:
            raise ValueError(f"`drain_seconds` must be positive. Received: drain_seconds={self.drain_seconds}")
        if self.notice_seconds < 0:
            raise ValueError(f"`notice_seconds` must not be negative. Received: notice_seconds={self.notice_seconds}")
