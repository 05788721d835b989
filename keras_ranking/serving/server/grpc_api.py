"""The gRPC API: `PredictionService` and `ModelService` of TensorFlow Serving, and the standard health service."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from keras_ranking.serving.protocol import codec, protos
from keras_ranking.serving.protocol.errors import ServingError, invalid
from keras_ranking.serving.protocol.logged_requests import ID_HEADER, split_ids
from keras_ranking.serving.server.service import Service

log = logging.getLogger("keras_ranking.serving")


class GrpcListener:
    """The `grpc.aio` server of a service. Make it in the event loop that runs it; the caller adds ports.

    Attributes:
        server: the server.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        limits = service.limits
        options = [
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            # Otherwise a second server could bind the same port without an error and get half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", limits.connections),
            ("grpc.server_handshake_timeout_ms", int(limits.read_seconds * 1000)),
            ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1000)),
            # Pings detect clients that disappeared without closing.
            ("grpc.keepalive_time_ms", int(limits.read_seconds * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_timeout_ms", int(limits.read_seconds * 1000)),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
        self.server = grpc.aio.server(options=options)
        methods = {protos.PREDICT: self._predict, protos.METADATA: self._metadata, protos.STATUS: self._status}
        for path, method in methods.items():
            # The methods parse the messages, so that invalid bytes are an error of the caller, with its code.
            handler = grpc.unary_unary_rpc_method_handler(self._with_errors(method))
            _, name, call = path.split("/")
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {call: handler}),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    async def start(self) -> None:
        """Accept calls, and report healthy."""
        await self.server.start()
        for name in ("", "tensorflow.serving.PredictionService", self._service.name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def notice(self) -> None:
        """Report not healthy."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Accept no new calls, finish those in progress."""
        await self.notice()
        await self.server.stop(grace)

    async def _predict(self, message: bytes, context: Any) -> bytes:
        service = self._service
        with service.counted("grpc") as call:
            call.requests = split_ids(dict(context.invocation_metadata() or ()).get(ID_HEADER.lower()))
            request = _parsed(protos.PredictRequest, message)
            version, label = self._which(request.model_spec)
            with service.versions.lease(version, label) as servable:
                signature = servable.model.signature(request.model_spec.signature_name)
                unknown = sorted(set(request.output_filter) - set(signature.outputs))
                if unknown:
                    raise invalid(f"unknown output '{unknown[0]}': signature '{signature.name}' gives {sorted(signature.outputs)}")
                inputs = codec.read_tensors(request.inputs, service.limits.body_bytes)
                outputs = await service.predict(call, servable, signature, inputs, context.time_remaining())
                wanted = {name: values for name, values in outputs.items() if not request.output_filter or name in request.output_filter}
                reply: bytes = codec.predict_response(service.name, signature.name, servable.version, wanted).SerializeToString()
        return reply

    async def _metadata(self, message: bytes, context: Any) -> bytes:
        request = _parsed(protos.GetModelMetadataRequest, message)
        if list(request.metadata_field) != ["signature_def"]:
            raise invalid(f"`metadata_field` must be ['signature_def']. Received: {list(request.metadata_field)}")
        version, label = self._which(request.model_spec)
        with self._service.versions.lease(version, label) as servable:
            response = codec.metadata_response(self._service.name, servable.version, servable.model.signature_defs)
        reply: bytes = response.SerializeToString()
        return reply

    async def _status(self, message: bytes, context: Any) -> bytes:
        version, _ = self._which(_parsed(protos.GetModelStatusRequest, message).model_spec)  # by a label: all, as in REST
        statuses = self._service.versions.statuses(version)
        reply: bytes = codec.status_response([(status.version, status.state, status.message) for status in statuses]).SerializeToString()
        return reply

    def _which(self, spec: Any) -> tuple[int | None, str | None]:
        """Version or label of a ModelSpec, after a check of the model's name."""
        self._service.must_be(spec.name)
        choice = spec.WhichOneof("choice")
        return (spec.version.value if choice == "version" else None), (spec.version_label if choice == "version_label" else None)

    def _with_errors(self, method: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """The method with a check of the token, and its errors as gRPC status."""

        async def call(message: bytes, context: Any) -> bytes:
            try:
                if self._service.access.token is not None:
                    self._service.access.check(dict(context.invocation_metadata()).get("authorization"))
                return await method(message, context)
            except ServingError as error:
                # gRPC's standard field for the time of the next attempt; below 0: no further attempt.
                pushback = -1 if error.retry_after is None else round(error.retry_after * 1000)
                trailer = (("grpc-retry-pushback-ms", str(pushback)),) if error.code == "RESOURCE_EXHAUSTED" else ()
                await context.abort(getattr(grpc.StatusCode, error.code), error.message, trailer)
            except Exception:
                log.exception("a gRPC call failed")
                await context.abort(grpc.StatusCode.INTERNAL, "internal error")
            raise RuntimeError("unreachable: abort raises")

        return call


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise invalid(f"the message cannot be read: {error}") from error
