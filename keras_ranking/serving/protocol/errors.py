"""One error for everything a request can run into, with the code that gRPC and REST both know."""

from __future__ import annotations

HTTP_STATUS = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""gRPC code -> HTTP status, as TensorFlow Serving maps them (it knows no UNAUTHENTICATED)."""


class ServingError(Exception):
    """A request that got no scores.

    Args:
        code: a gRPC status name, one of `HTTP_STATUS` (a client may also carry others a server sent, such as 'UNKNOWN').
        message: what was wrong, naming the input where there is one.
        http_status: status to answer by REST where it is more exact than the code's own (413 for an oversized body).
        retry_after: seconds after which the same request may pass; None: the server said nothing, or it never will.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status if http_status is not None else HTTP_STATUS.get(code, 500)
        self.retry_after = retry_after


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT: the request itself must change."""
    return ServingError("INVALID_ARGUMENT", message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND: no such model or version."""
    return ServingError("NOT_FOUND", message)


def too_large(message: str) -> ServingError:
    """RESOURCE_EXHAUSTED / 413: a stated limit on size; the request must become smaller."""
    return ServingError("RESOURCE_EXHAUSTED", message, 413)


def busy(message: str) -> ServingError:
    """RESOURCE_EXHAUSTED / 429: a stated limit on load; the same request may pass in a while."""
    return ServingError("RESOURCE_EXHAUSTED", message, retry_after=0.1)


def unavailable(message: str) -> ServingError:
    """UNAVAILABLE / 503: the server stops or has no version yet; another one may answer."""
    return ServingError("UNAVAILABLE", message, retry_after=1.0)
