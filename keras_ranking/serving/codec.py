"""Tensors and the protobufs of TensorFlow Serving; the only module that builds or reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2, prediction_service_pb2_grpc

from keras_ranking.serving.errors import ServingError, exhausted, invalid

_DTYPES: dict[int, tuple[np.dtype[Any], str]] = {
    types_pb2.DT_FLOAT: (np.dtype(np.float32), "float_val"),
    types_pb2.DT_DOUBLE: (np.dtype(np.float64), "double_val"),
    types_pb2.DT_INT32: (np.dtype(np.int32), "int_val"),
    types_pb2.DT_INT64: (np.dtype(np.int64), "int64_val"),
    types_pb2.DT_BOOL: (np.dtype(np.bool_), "bool_val"),
}
_ENUMS = {dtype: enum for enum, (dtype, _) in _DTYPES.items()}


def write_tensor(values: np.ndarray, into: Any) -> None:
    """Fill a TensorProto.

    Raises:
        ServingError: INVALID_ARGUMENT for a dtype that is no number.
    """
    if values.dtype not in _ENUMS:
        raise invalid(f"a tensor of {values.dtype} cannot be sent")
    into.dtype = _ENUMS[values.dtype]
    for size in values.shape:
        into.tensor_shape.dim.add().size = size
    into.tensor_content = np.ascontiguousarray(values).tobytes()


def read_tensor(name: str, proto: Any, most_bytes: int | None = None, used: int = 0) -> np.ndarray:
    """Numbers of a TensorProto, in any of its forms: raw content, a list of values, or one value for all cells.

    Args:
        name: of the input, for errors.
        most_bytes: largest sum of tensors to make; a few bytes of message can ask for any size.
        used: bytes made before this one.

    Raises:
        ServingError: INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
    """
    if proto.dtype not in _DTYPES:
        kinds = types_pb2.DataType
        known = proto.dtype in kinds.values()
        raise invalid(f"input '{name}' must be numbers. Received: {kinds.Name(proto.dtype) if known else proto.dtype}")
    dtype, field = _DTYPES[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape) or len(shape) > 32:
        raise invalid(f"input '{name}' must have a known shape. Received: {shape}")
    cells = math.prod(shape)
    if most_bytes is not None and used + cells * dtype.itemsize > most_bytes:
        raise exhausted(f"the inputs, with '{name}' of shape {shape}, are larger than the limit of {most_bytes} bytes", http_status=413)
    if proto.tensor_content:
        size = cells * dtype.itemsize
        if len(proto.tensor_content) != size:
            raise invalid(f"input '{name}' of shape {shape} must have {size} bytes. Received: {len(proto.tensor_content)}")
        content: np.ndarray = np.frombuffer(proto.tensor_content, dtype=dtype).reshape(shape)
        return content
    listed: np.ndarray = np.fromiter(getattr(proto, field), dtype=dtype)
    if len(listed) > cells or (cells and not len(listed)):
        raise invalid(f"input '{name}' of shape {shape} must have {cells} values. Received: {len(listed)}")
    if len(listed) < cells:  # the last value stands for all that follow
        listed = np.concatenate([listed, np.full(cells - len(listed), listed[-1])])
    return listed.reshape(shape)


def read_tensors(protos: Mapping[str, Any], most_bytes: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a message; `most_bytes` bounds their sum."""
    out: dict[str, np.ndarray] = {}
    used = 0
    for name, proto in protos.items():
        out[name] = read_tensor(name, proto, most_bytes, used)
        used += out[name].nbytes
    return out


def predict_request(model: str, signature: str, inputs: Mapping[str, np.ndarray], version: int | None = None) -> Any:
    """A PredictRequest."""
    request = predict_pb2.PredictRequest()
    _fill_spec(request.model_spec, model, signature, version)
    for name, values in inputs.items():
        write_tensor(values, request.inputs[name])
    return request


def predict_response(model: str, signature: str, version: int, outputs: Mapping[str, np.ndarray]) -> Any:
    """A PredictResponse."""
    response = predict_pb2.PredictResponse()
    _fill_spec(response.model_spec, model, signature, version)
    for name, values in outputs.items():
        write_tensor(values, response.outputs[name])
    return response


def stub_calls(channel: Any) -> tuple[Any, Any]:
    """Predict and GetModelMetadata of a gRPC channel."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict, stub.GetModelMetadata


def metadata_request(model: str) -> Any:
    """A GetModelMetadataRequest for the signatures."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = model
    return request


def metadata_response(model: str, version: int, signature_defs: Mapping[str, Any]) -> Any:
    """A GetModelMetadataResponse with the signatures."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _fill_spec(response.model_spec, model, "", version)
    response.metadata["signature_def"].Pack(signature_map(signature_defs))
    return response


def signature_map(signature_defs: Mapping[str, Any]) -> Any:
    """A SignatureDefMap."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, proto in signature_defs.items():
        signatures.signature_def[name].CopyFrom(proto)
    return signatures


def input_names(response: Any, signature: str) -> list[str]:
    """Input names of a signature in a GetModelMetadataResponse.

    Raises:
        ServingError: NOT_FOUND.
    """
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    if signature not in signatures.signature_def:
        raise ServingError("NOT_FOUND", f'signature "{signature}" not found. The model has: {sorted(signatures.signature_def)}')
    return sorted(signatures.signature_def[signature].inputs)


def status_response(statuses: list[tuple[int, str, str]]) -> Any:
    """A GetModelStatusResponse of (version, state, message), with an error code where there is a message."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state, message in statuses:
        entry = response.model_version_status.add()
        entry.version = version
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state)
        entry.status.error_code = 2 if message else 0  # UNKNOWN, OK
        entry.status.error_message = message
    return response


def _fill_spec(spec: Any, model: str, signature: str, version: int | None) -> None:
    spec.name = model
    spec.signature_name = signature
    if version is not None:
        spec.version.value = version
