"""The REST door: paths, forms and codes of TensorFlow Serving's HTTP API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web
from google.protobuf import json_format

from keras_ranking.serving import json_codec
from keras_ranking.serving.codec import signature_map
from keras_ranking.serving.errors import ServingError, exhausted
from keras_ranking.serving.service import Service

log = logging.getLogger("keras_ranking.serving")

_MODEL = "/v1/models/{model:[^/:]+}"
_WHICH = ("", "/versions/{version:[0-9]+}", "/labels/{label:[^/:]+}")


def application(service: Service) -> web.Application:
    """The aiohttp application of a service."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=service.limits.body_bytes)
    door = _Door(service)
    for which in _WHICH:
        app.router.add_post(f"{_MODEL}{which}:predict", door.predict)
        app.router.add_get(f"{_MODEL}{which}", door.status)
        app.router.add_get(f"{_MODEL}{which}/metadata", door.metadata)
    app.router.add_get("/healthz", door.healthy)
    app.router.add_get("/monitoring/prometheus/metrics", door.metrics)
    return app


class _Door:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def predict(self, request: web.Request) -> web.Response:
        service = self._service
        with service.counted("rest"):
            version, label = self._which(request)
            body = await self._body(request)
            with service.versions.lease(version, label) as servable:
                signature, inputs, rows = json_codec.decode(body, servable.model.signature, service.limits.batch)
                outputs = await service.predict(servable, signature, inputs)
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
            signatures = json_format.MessageToDict(
                signature_map(servable.model.signature_defs), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            spec = {"name": self._service.name, "signature_name": "", "version": str(servable.version)}
        return _json({"model_spec": spec, "metadata": {"signature_def": signatures}})

    async def healthy(self, request: web.Request) -> web.Response:
        return _json({"model": self._service.name, "version": self._service.versions.latest})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._service.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _which(self, request: web.Request) -> tuple[int | None, str | None]:
        """Version or label of the path, after a look at the model's name."""
        self._service.must_be(request.match_info["model"])
        version = request.match_info.get("version")
        return (int(version) if version is not None else None), request.match_info.get("label")

    async def _body(self, request: web.Request) -> bytes:
        limits = self._service.limits
        too_large = exhausted(f"the body is larger than the limit of {limits.body_bytes} bytes", http_status=413)
        if (request.content_length or 0) > limits.body_bytes:
            raise too_large
        try:
            return await asyncio.wait_for(request.read(), limits.read_seconds)
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error
        except TimeoutError as error:
            raise ServingError("DEADLINE_EXCEEDED", f"the body did not arrive within {limits.read_seconds:g} s", 408) from error


@web.middleware
async def _answer_errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await handler(request)
    except ServingError as error:
        return _json({"error": error.message}, error.http_status)
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


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")
