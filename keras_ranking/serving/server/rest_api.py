"""The REST door: paths, forms and codes of TensorFlow Serving's HTTP API."""

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
from keras_ranking.serving.server.service import Service

log = logging.getLogger("keras_ranking.serving")

TIMEOUT_HEADER = "X-Request-Timeout"
"""Seconds the caller will wait; the call is dropped where they pass before the model runs it."""
_MODEL = "/v1/models/{model:[^/:]+}"
_WHICH = ("", "/versions/{version:[0-9]+}", "/labels/{label:[^/:]+}")
_LAST_SECONDS = 0.5  # for a body that begins as the door closes, of which the rest may never be seen
_PROBES = ("/healthz", "/readyz")


def application(service: Service) -> web.Application:
    """The aiohttp application of a service."""
    app = web.Application(middlewares=[_middleware(service)], client_max_size=service.limits.body_bytes)
    door = _Door(service)
    for which in _WHICH:
        app.router.add_post(f"{_MODEL}{which}:predict", door.predict)
        app.router.add_get(f"{_MODEL}{which}", door.status)
        app.router.add_get(f"{_MODEL}{which}/metadata", door.metadata)
    app.router.add_get("/healthz", door.healthy)
    app.router.add_get("/readyz", door.ready)
    app.router.add_get("/monitoring/prometheus/metrics", door.metrics)
    return app


class _Door:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def predict(self, request: web.Request) -> web.Response:
        service = self._service
        with service.counted("rest") as call:
            seconds = _timeout(request)
            version, label = self._which(request)
            body = await self._body(request)
            with service.versions.lease(version, label) as servable:
                signature, inputs, rows = json_codec.decode(body, servable.model.signature, service.limits.batch)
                outputs = await service.predict(call, servable, signature, inputs, seconds)
                reply = json_codec.encode(outputs, rows)
        return web.Response(body=reply, content_type="application/json")

    async def status(self, request: web.Request) -> web.Response:
        version, label = self._which(request)
        if label is not None:
            with self._service.versions.lease(label=label) as servable:
                version = servable.version
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
        """Version or label of the path, after a look at the model's name."""
        self._service.must_be(request.match_info["model"])
        version = request.match_info.get("version")
        return (int(version) if version is not None else None), request.match_info.get("label")

    async def _body(self, request: web.Request) -> bytes:
        limits = self._service.limits
        refusal = too_large(f"the body is larger than the limit of {limits.body_bytes} bytes")
        if (request.content_length or 0) > limits.body_bytes:
            raise refusal
        closing = self._service.closing
        seconds = min(limits.read_seconds, _LAST_SECONDS) if closing else limits.read_seconds
        try:
            return await asyncio.wait_for(request.read(), seconds)
        except web.HTTPRequestEntityTooLarge as error:
            raise refusal from error
        except ConnectionError as error:  # the answer goes nowhere, but is counted
            raise ServingError("CANCELLED", "the caller went away") from error
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
    """Who may call, and what an error looks like."""

    @web.middleware
    async def answer(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        try:
            if request.path not in _PROBES:
                service.access.check(request.headers.get(hdrs.AUTHORIZATION))
            return await handler(request)
        except ServingError as error:
            return _refusal(error)
        except web.HTTPException as error:
            malformed = f"Malformed request: {request.method} {request.path}"
            # TensorFlow Serving answers 400 to whatever it cannot read under its own prefix.
            status = 400 if error.status == 404 and request.path.startswith("/v1/") else error.status
            return _json({"error": malformed if error.status in (404, 405) else error.text or error.reason}, status)
        except ConnectionError:
            raise
        except Exception:
            log.exception("a REST call failed")
            return _json({"error": "internal error"}, 500)

    return answer


def _refusal(error: ServingError) -> web.Response:
    response = _json({"error": error.message}, error.http_status)
    if error.retry_after is not None:  # whole seconds are all that the header can say
        response.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after)))
    if error.code == "UNAUTHENTICATED":
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if error.http_status in (401, 408, 413):
        response.force_close()  # the rest of the body is not worth reading
    return response


def _json_form(signature: Any) -> Any:
    return json_format.MessageToDict(signature, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")
