"""The REST API: paths, forms and codes of TensorFlow Serving's HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import hdrs, web
from google.protobuf import json_format

from keras_ranking.serving.protocol import json_codec
from keras_ranking.serving.protocol.errors import ServingError, invalid, too_large, unavailable
from keras_ranking.serving.protocol.logged_requests import ID_HEADER, split_ids
from keras_ranking.serving.server.service import Service

log = logging.getLogger("keras_ranking.serving")

TIMEOUT_HEADER = "X-Request-Timeout"
"""Deadline of the caller in seconds; the call is dropped if the model has not started it by then."""
_MODEL = "/v1/models/{model:[^/:]+}"
_WHICH = ("", "/versions/{version:[0-9]+}", "/labels/{label:[^/:]+}")
_LAST_SECONDS = 0.5  # for a body that begins while the listener closes, whose rest may never arrive
_PREFIX = "/v1/"
_PROBES = ("/healthz", "/readyz")


def application(service: Service) -> web.Application:
    """The aiohttp application of a service."""
    app = web.Application(middlewares=[_middleware(service)], client_max_size=service.limits.body_bytes)
    handlers = _Handlers(service)
    for which in _WHICH:
        app.router.add_post(f"{_MODEL}{which}:predict", handlers.predict)
        app.router.add_get(f"{_MODEL}{which}", handlers.status)
        app.router.add_get(f"{_MODEL}{which}/metadata", handlers.metadata)
    app.router.add_get("/healthz", handlers.healthy)
    app.router.add_get("/readyz", handlers.ready)
    app.router.add_get("/monitoring/prometheus/metrics", handlers.metrics)
    return app


class _Handlers:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def predict(self, request: web.Request) -> web.Response:
        service = self._service
        with service.counted("rest") as call:
            call.requests = split_ids(request.headers.get(ID_HEADER))
            seconds = _timeout(request)
            version, label = self._which(request)
            body = await self._body(request)
            with service.versions.lease(version, label) as servable:
                signature, inputs, rows = json_codec.decode(body, servable.model.signature, service.limits.batch)
                outputs = await service.predict(call, servable, signature, inputs, seconds)
                reply = json_codec.encode(outputs, rows)
        return web.Response(body=reply, content_type="application/json")

    async def status(self, request: web.Request) -> web.Response:
        version, _ = self._which(request)  # by a label: all versions, also if it is unknown, as TensorFlow Serving replies
        statuses = [
            {
                "version": str(status.version),
                "state": status.state,
                "status": {"error_code": "UNKNOWN" if status.message else "OK", "error_message": status.message},
            }
            for status in self._service.versions.statuses(version)
        ]
        return _json({"model_version_status": statuses})

    async def metadata(self, request: web.Request) -> web.Response:
        version, label = self._which(request)
        with self._service.versions.lease(version, label) as servable:
            signatures = {name: _json_form(proto) for name, proto in servable.model.signature_defs.items()}
            spec = {"name": self._service.name, "signature_name": "", "version": str(servable.version)}
        return _json({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    async def healthy(self, request: web.Request) -> web.Response:
        return _json({"model": self._service.name, "version": self._service.versions.latest})

    async def ready(self, request: web.Request) -> web.Response:
        ready = self._service.ready
        return _json({"ready": ready, "version": self._service.versions.latest}, 200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._service.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _which(self, request: web.Request) -> tuple[int | None, str | None]:
        """Version or label of the path, after a check of the model's name."""
        self._service.must_be(request.match_info["model"])
        version = request.match_info.get("version")
        return (int(version) if version is not None else None), request.match_info.get("label")

    async def _body(self, request: web.Request) -> bytes:
        limits = self._service.limits
        error_413 = too_large(f"the body is larger than the limit of {limits.body_bytes} bytes")
        if (request.content_length or 0) > limits.body_bytes:
            raise error_413
        closing = self._service.closing
        seconds = min(limits.read_seconds, _LAST_SECONDS) if closing else limits.read_seconds
        try:
            return await asyncio.wait_for(request.read(), seconds)
        except web.HTTPRequestEntityTooLarge as error:
            raise error_413 from error
        except ConnectionError as error:  # nobody reads the reply, but the call is counted
            raise ServingError("CANCELLED", "the caller closed the connection") from error
        except TimeoutError as error:
            if closing:
                raise unavailable("the server is shutting down") from error
            raise ServingError("DEADLINE_EXCEEDED", f"the body did not arrive within {limits.read_seconds:g} s", 408) from error


def _timeout(request: web.Request) -> float | None:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < math.inf:
            return seconds
    raise invalid(f"the header {TIMEOUT_HEADER} must be a positive number of seconds. Received: {text!r}")


def _middleware(service: Service) -> Any:
    """Middleware with the check of the token and the form of errors."""

    @web.middleware
    async def call(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        try:
            if request.path not in _PROBES:
                service.access.check(request.headers.get(hdrs.AUTHORIZATION))
            if request.query_string and request.path.startswith(_PREFIX):
                raise web.HTTPNotFound()  # a path with a query is none of TensorFlow Serving's
            return await handler(request)
        except ServingError as error:
            return _error_reply(error)
        except web.HTTPException as error:
            malformed = f"Malformed request: {request.method} {request.path_qs}"
            # TensorFlow Serving replies 400 to any invalid path, method or query under its prefix.
            status = 400 if error.status in (404, 405) and request.path.startswith(_PREFIX) else error.status
            return _json({"error": malformed if error.status in (404, 405) else error.text or error.reason}, status)
        except ConnectionError:
            raise
        except Exception:
            log.exception("a REST call failed")
            return _json({"error": "internal error"}, 500)

    return call


def _error_reply(error: ServingError) -> web.Response:
    response = _json({"error": error.message}, error.http_status)
    if error.retry_after is not None:  # the header has whole seconds
        response.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after)))
    if error.code == "UNAUTHENTICATED":
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if error.http_status in (401, 408, 413):
        response.force_close()  # the rest of the body is not read
    return response


def _json_form(signature: Any) -> Any:
    return json_format.MessageToDict(signature, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")
