"""The messages of TensorFlow Serving's protocol, declared here by their public field numbers.

`tensorflow_serving.apis` would import all of TensorFlow; these need `protobuf` alone. Only fields that this package reads or writes
are declared; protobuf ignores the others. The messages have their own pool, separate from TensorFlow's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "keras_ranking.serving"
_KINDS = {"int32": 5, "int64": 3, "uint32": 13, "uint64": 4, "bool": 8, "string": 9, "bytes": 12, "float": 2, "double": 1}
# message -> fields "name = number: kind"; [] repeated, {} map from string, | member of the only oneof of the message.
# Enums are declared int32, which is the same on the wire.
_MESSAGES = {
    "Dim": "size=1:int64 name=2:string",
    "TensorShape": "dim=2:[]Dim unknown_rank=3:bool",
    "Tensor": (
        "dtype=1:int32 tensor_shape=2:TensorShape tensor_content=4:bytes half_val=13:[]int32 float_val=5:[]float double_val=6:[]double "
        "int_val=7:[]int32 string_val=8:[]bytes int64_val=10:[]int64 bool_val=11:[]bool uint32_val=16:[]uint32 uint64_val=17:[]uint64"
    ),
    "TensorInfo": "name=1:string dtype=2:int32 tensor_shape=3:TensorShape",
    "SignatureDef": "inputs=1:{}TensorInfo outputs=2:{}TensorInfo method_name=3:string",
    "SignatureDefMap": "signature_def=1:{}SignatureDef",
    "Int64Value": "value=1:int64",
    "Any": "type_url=1:string value=2:bytes",
    "ModelSpec": "name=1:string version=2:|Int64Value version_label=4:|string signature_name=3:string",
    "PredictRequest": "model_spec=1:ModelSpec inputs=2:{}Tensor output_filter=3:[]string",
    "PredictResponse": "outputs=1:{}Tensor model_spec=2:ModelSpec",
    "PredictLog": "request=1:PredictRequest response=2:PredictResponse",
    "PredictionLog": "predict_log=6:PredictLog",
    "GetModelMetadataRequest": "model_spec=1:ModelSpec metadata_field=2:[]string",
    "GetModelMetadataResponse": "model_spec=1:ModelSpec metadata=2:{}Any",
    "GetModelStatusRequest": "model_spec=1:ModelSpec",
    "Status": "error_code=1:int32 error_message=2:string",
    "ModelVersionStatus": "version=1:int64 state=2:int32 status=3:Status",
    "GetModelStatusResponse": "model_version_status=1:[]ModelVersionStatus",
}

SIGNATURE_MAP_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
STATES = {"UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}
PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


def _declare() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="keras_ranking/serving.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            head, kind = text.split(":")
            field_name, number = head.split("=")
            field = message.field.add(name=field_name, number=int(number), label=1)
            if kind.startswith("{}"):
                kind = _map_entry(message, field_name, kind[2:])
                field.label = 3
            elif kind.startswith("[]"):
                kind, field.label = kind[2:], 3
            elif kind.startswith("|"):
                if not message.oneof_decl:
                    message.oneof_decl.add(name="choice")
                kind, field.oneof_index = kind[1:], 0
            if kind in _KINDS:
                field.type = _KINDS[kind]
            else:
                field.type, field.type_name = 11, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


def _map_entry(message: Any, field: str, kind: str) -> str:
    """Declare the entry type of a map<string, kind>; its name in full."""
    name = "".join(part.capitalize() for part in field.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=_KINDS["string"])
    entry.field.add(name="value", number=2, label=1, type=11, type_name=f".{_PACKAGE}.{kind}")
    return f"{message.name}.{name}"


_made = _declare()
SignatureDefMap: Any = _made["SignatureDefMap"]
PredictRequest: Any = _made["PredictRequest"]
PredictResponse: Any = _made["PredictResponse"]
PredictionLog: Any = _made["PredictionLog"]
GetModelMetadataRequest: Any = _made["GetModelMetadataRequest"]
GetModelMetadataResponse: Any = _made["GetModelMetadataResponse"]
GetModelStatusRequest: Any = _made["GetModelStatusRequest"]
GetModelStatusResponse: Any = _made["GetModelStatusResponse"]
