"""What the embedded server takes before it says no. Every bound is stated in the error it raises."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of the embedded server. All defaults are our choice.

    Args:
        body_bytes: largest request body or gRPC message, in bytes; more is 413 / RESOURCE_EXHAUSTED.
        batch: most requests (rows) in one call, and in one run of the model; more is 413 / RESOURCE_EXHAUSTED.
        history, candidates: widest tensors of events and of candidates; more is 413 / RESOURCE_EXHAUSTED.
        batch_cells: most tensor cells, rows x (history + candidates) after padding, that are put in one run together;
            a single call may exceed it and then runs alone.
        queue: most calls waiting for the model; more is 429 / RESOURCE_EXHAUSTED.
        concurrent: most calls being read or answered at once; more is 429 / RESOURCE_EXHAUSTED.
        connections: most open connections of each door; a further one is answered 503 (REST) or closed (gRPC).
        read_seconds: how long a head or a body may take to arrive, and a reply to be taken; then 408, or the connection is closed.
        idle_seconds: how long a connection may stay open between calls.
        deadline_seconds: how long a call without a deadline of its own may wait, and the most that one may ask for; then
            DEADLINE_EXCEEDED / 504.
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
