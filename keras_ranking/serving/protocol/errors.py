"""The error of a request, with a code that gRPC and REST share."""

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
"""gRPC code -> HTTP status, as TensorFlow Serving maps them (which has no UNAUTHENTICATED)."""


class ServingError(Exception):
    """The error of a request without scores.

    Args:
        code: a gRPC status name, one of `HTTP_STATUS` (an error of a client may have another one from the server, such as 'UNKNOWN').
        message: the reason, with the name of the input if there is one.
        http_status: status in REST, if it is more exact than that of the code (413 for a body that is too large).
        retry_after: seconds after which the same request may succeed; None: unknown, or never.

    Example:
        >>> error = kr.serving.ServingError("NOT_FOUND", "version 7 is not loaded")
        >>> error.code, error.http_status, str(error)
        ('NOT_FOUND', 404, 'NOT_FOUND: version 7 is not loaded')
    """

    def __init__(self, code: str, message: str, http_status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status if http_status is not None else HTTP_STATUS.get(code, 500)
        self.retry_after = retry_after


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT: the request is wrong."""
    return ServingError("INVALID_ARGUMENT", message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND: no such model or version."""
    return ServingError("NOT_FOUND", message)


def too_large(message: str) -> ServingError:
    """RESOURCE_EXHAUSTED / 413: above a limit on size; the request must become smaller."""
    return ServingError("RESOURCE_EXHAUSTED", message, 413)


def busy(message: str) -> ServingError:
    """RESOURCE_EXHAUSTED / 429: above a limit on load; the same request may succeed later."""
    return ServingError("RESOURCE_EXHAUSTED", message, retry_after=0.1)


def unavailable(message: str) -> ServingError:
    """UNAVAILABLE / 503: the server is stopping or has no version; another server may reply."""
    return ServingError("UNAVAILABLE", message, retry_after=1.0)
