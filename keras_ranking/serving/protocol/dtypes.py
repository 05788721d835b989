"""Data types of TensorFlow and numpy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from keras_ranking.serving.protocol.errors import ServingError, invalid
from keras_ranking.serving.protocol.signature import Signature, Tensor

# DataType -> its name, numpy dtype and the field of listed values. Text is an array of `bytes` objects.
TYPES = {
    1: ("DT_FLOAT", "float32", "float_val"),
    2: ("DT_DOUBLE", "float64", "double_val"),
    3: ("DT_INT32", "int32", "int_val"),
    4: ("DT_UINT8", "uint8", "int_val"),
    5: ("DT_INT16", "int16", "int_val"),
    6: ("DT_INT8", "int8", "int_val"),
    7: ("DT_STRING", "object", "string_val"),
    9: ("DT_INT64", "int64", "int64_val"),
    10: ("DT_BOOL", "bool", "bool_val"),
    14: ("DT_BFLOAT16", "bfloat16", "half_val"),
    17: ("DT_UINT16", "uint16", "int_val"),
    19: ("DT_HALF", "float16", "half_val"),
    22: ("DT_UINT32", "uint32", "uint32_val"),
    23: ("DT_UINT64", "uint64", "uint64_val"),
}
NUMBERS = {name: number for number, (_, name, _) in TYPES.items()}
_NAMED = {name: number for number, (name, _, _) in TYPES.items()}


@cache
def numpy_type(number: int | str) -> np.dtype[Any]:
    """numpy dtype of a DataType, given by number or by name such as 'DT_FLOAT'.

    Raises:
        ServingError: INVALID_ARGUMENT for an unsupported type.
    """
    number = _NAMED.get(number, -1) if isinstance(number, str) else number
    if number not in TYPES:
        raise invalid(f"a tensor of DataType {number} cannot be read")
    name = TYPES[number][1]
    if name == "bfloat16":  # numpy has no bfloat16; ml_dtypes is installed with TensorFlow, JAX and Keras
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)


def signatures_of_json(content: Any) -> dict[str, Signature]:
    """The signatures in the reply of REST's `/metadata`, by name; those with tensors of unsupported types are left out.

    Raises:
        ServingError: UNKNOWN for a reply of another form.
    """

    def tensors(infos: Mapping[str, Any]) -> dict[str, Tensor]:
        return {key: Tensor(numpy_type(info["dtype"]), _json_shape(info.get("tensor_shape") or {})) for key, info in infos.items()}

    found = {}
    try:
        for name, proto in content["metadata"]["signature_def"]["signature_def"].items():
            if all(info["dtype"] in _NAMED for info in (*proto["inputs"].values(), *proto["outputs"].values())):
                found[name] = Signature(name, tensors(proto["inputs"]), tensors(proto["outputs"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ServingError("UNKNOWN", f"the metadata of the server cannot be read: {error!r}") from error
    return found


def _json_shape(content: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    if content.get("unknown_rank"):
        return None
    return tuple(None if int(dim["size"]) < 0 else int(dim["size"]) for dim in content.get("dim", ()))
