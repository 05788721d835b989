"""Tensors and the protobufs of TensorFlow Serving; the only module that builds or reads them. No TensorFlow is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ranking.serving.protocol import protos
from keras_ranking.serving.protocol.dtypes import NUMBERS, TYPES, numpy_type
from keras_ranking.serving.protocol.errors import invalid, too_large
from keras_ranking.serving.protocol.signature import Signature, Tensor


def write_tensor(values: np.ndarray, into: Any) -> None:
    """Fill a TensorProto.

    Raises:
        ServingError: INVALID_ARGUMENT for a dtype that is neither a number nor text.
    """
    kind = values.dtype.kind
    name = "object" if kind in "SUO" else values.dtype.name
    if name not in NUMBERS:
        raise invalid(f"a tensor of {values.dtype} cannot be sent")
    into.dtype = NUMBERS[name]
    for size in values.shape:
        into.tensor_shape.dim.add().size = size
    if kind in "SUO":
        into.string_val.extend([cell if isinstance(cell, bytes) else str(cell).encode() for cell in values.reshape(-1).tolist()])
    else:
        into.tensor_content = values.tobytes()


def read_tensor(name: str, proto: Any, most_bytes: int | None = None, used: int = 0) -> np.ndarray:
    """Array of a TensorProto, in any of its forms: raw content, a list of values, or one value for all cells.

    Args:
        name: of the input, for errors.
        most_bytes: bound of all tensors together; a small message can state any shape.
        used: bytes of the tensors before this one.

    Raises:
        ServingError: INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
    """
    if proto.dtype not in TYPES:
        raise invalid(f"input '{name}' must be numbers or text. Received: DataType {proto.dtype}")
    dtype, field = numpy_type(proto.dtype), TYPES[proto.dtype][2]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or len(shape) > 32 or (shape and min(shape) < 0):
        raise invalid(f"input '{name}' must have a known shape. Received: {shape}")
    cells = math.prod(shape)
    if most_bytes is not None and used + cells * dtype.itemsize > most_bytes:
        raise too_large(f"the inputs, with '{name}' of shape {shape}, are larger than the limit of {most_bytes} bytes")
    content = proto.tensor_content
    if content and dtype.kind != "O":
        size = cells * dtype.itemsize
        if len(content) != size:
            raise invalid(f"input '{name}' of shape {shape} must have {size} bytes. Received: {len(content)}")
        return np.frombuffer(content, dtype=dtype).reshape(shape)
    listed = _listed(name, proto, field, dtype)
    if len(listed) > cells or (cells and not len(listed)):
        raise invalid(f"input '{name}' of shape {shape} must have {cells} values. Received: {len(listed)}")
    if len(listed) < cells:  # the last value is repeated
        rest = np.full(cells - len(listed), listed[-1], dtype=dtype)
        listed = np.concatenate([listed, rest])
    return listed.reshape(shape)


def _listed(name: str, proto: Any, field: str, dtype: np.dtype[Any]) -> np.ndarray:
    values = getattr(proto, field)
    if field == "half_val":
        return np.fromiter((value & 0xFFFF for value in values), dtype=np.uint16).view(dtype)
    try:
        return np.fromiter(values, dtype=dtype, count=len(values))
    except OverflowError as error:  # int_val is also the field of narrower integers
        raise invalid(f"input '{name}' must be {dtype}. Received a number out of its range") from error


def read_tensors(protos_by_name: Mapping[str, Any], most_bytes: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a message; `most_bytes` bounds their sum."""
    out: dict[str, np.ndarray] = {}
    used = 0
    for name, proto in protos_by_name.items():
        out[name] = read_tensor(name, proto, most_bytes, used)
        used += out[name].nbytes
    return out


def predict_request(
    model: str, signature: str, inputs: Mapping[str, np.ndarray], version: int | None = None, label: str | None = None
) -> Any:
    """A PredictRequest for a version, a label, or the server's default."""
    request = protos.PredictRequest()
    _fill_spec(request.model_spec, model, signature, version)
    if label is not None:
        request.model_spec.version_label = label
    for name, values in inputs.items():
        write_tensor(values, request.inputs[name])
    return request


def predict_response(model: str, signature: str, version: int, outputs: Mapping[str, np.ndarray]) -> Any:
    """A PredictResponse."""
    response = protos.PredictResponse()
    _fill_spec(response.model_spec, model, signature, version)
    for name, values in outputs.items():
        write_tensor(values, response.outputs[name])
    return response


def metadata_request(model: str, version: int | None = None, label: str | None = None) -> Any:
    """A GetModelMetadataRequest for the signatures."""
    request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
    _fill_spec(request.model_spec, model, "", version)
    if label is not None:
        request.model_spec.version_label = label
    return request


def metadata_response(model: str, version: int, signature_defs: Mapping[str, Any]) -> Any:
    """A GetModelMetadataResponse of TensorFlow's SignatureDefs (or these), by name."""
    response = protos.GetModelMetadataResponse()
    _fill_spec(response.model_spec, model, "", version)
    signatures = protos.SignatureDefMap()
    for name, proto in signature_defs.items():
        signatures.signature_def[name].MergeFromString(proto.SerializeToString())
    response.metadata["signature_def"].type_url = protos.SIGNATURE_MAP_URL
    response.metadata["signature_def"].value = signatures.SerializeToString()
    return response


def signatures(response: Any) -> dict[str, Signature]:
    """The signatures of a GetModelMetadataResponse by name; those with tensors of unsupported types are left out."""
    found = protos.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    return {
        name: Signature(name, _specs(proto.inputs), _specs(proto.outputs))
        for name, proto in found.signature_def.items()
        if all(info.dtype in TYPES for info in (*proto.inputs.values(), *proto.outputs.values()))
    }


def status_response(statuses: list[tuple[int, str, str]]) -> Any:
    """A GetModelStatusResponse of (version, state, message), with an error code where there is a message."""
    response = protos.GetModelStatusResponse()
    for version, state, message in statuses:
        entry = response.model_version_status.add()
        entry.version = version
        entry.state = protos.STATES[state]
        entry.status.error_code = 2 if message else 0  # UNKNOWN, OK
        entry.status.error_message = message
    return response


def _specs(infos: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: Tensor(numpy_type(info.dtype), _shape(info.tensor_shape)) for name, info in infos.items()}


def _shape(proto: Any) -> tuple[int | None, ...] | None:
    return None if proto.unknown_rank else tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)


def _fill_spec(spec: Any, model: str, signature: str, version: int | None) -> None:
    spec.name = model
    spec.signature_name = signature
    if version is not None:
        spec.version.value = version
