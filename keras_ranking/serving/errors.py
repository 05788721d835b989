"""One error for everything a request can run into, with the code that gRPC and REST both know."""

from __future__ import annotations

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 412,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""gRPC code -> HTTP status, as TensorFlow Serving maps them."""


class ServingError(Exception):
    """A request that got no scores.

    Args:
        code: a gRPC status name, one of `HTTP_STATUS` (a client may also carry others a server sent, such as 'UNKNOWN').
        message: what was wrong, naming the input where there is one.
        http_status: status to answer by REST where it is more exact than the code's own (413 for an oversized body).
    """

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status if http_status is not None else HTTP_STATUS.get(code, 500)


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT: the request itself must change."""
    return ServingError("INVALID_ARGUMENT", message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND: no such model, version, label or signature."""
    return ServingError("NOT_FOUND", message)


def exhausted(message: str, http_status: int | None = None) -> ServingError:
    """RESOURCE_EXHAUSTED: a stated limit; the same request may pass later (429) or must become smaller (413)."""
    return ServingError("RESOURCE_EXHAUSTED", message, http_status)
