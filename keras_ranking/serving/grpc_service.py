"""The gRPC door: `PredictionService` and `ModelService` of TensorFlow Serving."""

from __future__ import annotations

import logging
from typing import Any

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from keras_ranking.serving import codec
from keras_ranking.serving.errors import ServingError, invalid
from keras_ranking.serving.service import Service

log = logging.getLogger("keras_ranking.serving")


def server(service: Service) -> Any:
    """A `grpc.aio` server of a service, to be made in the event loop that runs it; ports are added by the caller."""
    options = [
        ("grpc.max_receive_message_length", service.limits.body_bytes),
        ("grpc.max_send_message_length", -1),
        # Without this a second server binds the same port in silence and takes half the calls.
        ("grpc.so_reuseport", 0),
    ]
    made = grpc.aio.server(options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), made)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(service), made)
    return made


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def Predict(self, request: Any, context: Any) -> Any:
        return await _answered(self._predict(request, context), context)

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return await _answered(self._metadata(request), context)

    async def _predict(self, request: Any, context: Any) -> Any:
        service = self._service
        with service.counted("grpc"):
            version, label = _which(service, request.model_spec)
            with service.versions.lease(version, label) as servable:
                signature = servable.model.signature(request.model_spec.signature_name)
                unknown = sorted(set(request.output_filter) - set(signature.outputs))
                if unknown:
                    raise invalid(f"unknown output '{unknown[0]}': signature '{signature.name}' gives {sorted(signature.outputs)}")
                inputs = codec.read_tensors(request.inputs, service.limits.body_bytes)
                outputs = await service.predict(servable, signature, inputs, context.time_remaining())
                wanted = {name: values for name, values in outputs.items() if not request.output_filter or name in request.output_filter}
                return codec.predict_response(service.name, signature.name, servable.version, wanted)

    async def _metadata(self, request: Any) -> Any:
        if list(request.metadata_field) != ["signature_def"]:
            raise invalid(f"`metadata_field` must be ['signature_def']. Received: {list(request.metadata_field)}")
        version, label = _which(self._service, request.model_spec)
        with self._service.versions.lease(version, label) as servable:
            return codec.metadata_response(self._service.name, servable.version, servable.model.signature_defs)


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        return await _answered(self._status(request), context)

    async def _status(self, request: Any) -> Any:
        version, label = _which(self._service, request.model_spec)
        if label is not None:
            with self._service.versions.lease(label=label) as servable:
                version = servable.version
        statuses = self._service.versions.statuses(version)
        return codec.status_response([(status.version, status.state, status.message) for status in statuses])


def _which(service: Service, spec: Any) -> tuple[int | None, str | None]:
    """Version or label that a ModelSpec asks for, after a look at the model's name."""
    service.must_be(spec.name)
    choice = spec.WhichOneof("version_choice")
    return (spec.version.value if choice == "version" else None), (spec.version_label if choice == "version_label" else None)


async def _answered(answer: Any, context: Any) -> Any:
    try:
        return await answer
    except ServingError as error:
        await context.abort(getattr(grpc.StatusCode, error.code), error.message)
    except Exception:
        log.exception("a gRPC call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
