"""The embedded server: the same scores by REST and gRPC, status, metadata, health and metrics."""

from __future__ import annotations

import urllib.error
import urllib.request

import numpy as np
import pytest

from tests.serving.calling import expected, requests
from tests.serving.server.calls import CLOSE, columns, predict, rest, rows

grpc = pytest.importorskip("grpc")
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_ranking.serving.protocol import codec  # noqa: E402

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("which", ["", "/versions/1", "/labels/stable"])
def test_rest_columns(server, inputs, want, which):
    status, reply = rest(server, f"/v1/models/ranker{which}:predict", columns(inputs) | {"signature_name": "serving_default"})
    assert status == 200 and sorted(reply) == ["outputs"] and sorted(reply["outputs"]) == sorted(want)
    for name, values in want.items():
        np.testing.assert_allclose(reply["outputs"][name], values, **CLOSE)


def test_rest_rows(server, inputs, want):
    status, reply = rest(server, "/v1/models/ranker:predict", rows(inputs))
    assert status == 200 and sorted(reply) == ["predictions"] and len(reply["predictions"]) == 3
    for name, values in want.items():
        np.testing.assert_allclose([row[name] for row in reply["predictions"]], values, **CLOSE)


@pytest.mark.parametrize("spec", [{}, {"signature": "serving_default"}, {"version": 1}, {"version_label": "stable"}])
def test_grpc(channel, inputs, want, spec):
    response = predict(channel, inputs, **spec)
    assert (response.model_spec.name, response.model_spec.version.value) == ("ranker", 1)
    assert response.model_spec.signature_name == "serving_default"
    got = codec.read_tensors(response.outputs)
    assert sorted(got) == sorted(want)
    for name, values in want.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], values, **CLOSE)


def test_hostile_padding_over_grpc(channel, first):
    """NaN, infinities and ids outside every table, beyond the lengths."""
    batch = requests(first.card, (9, 0), (2, 7), seed=3, hostile=True)
    assert np.isnan(batch["candidate_text"]).any() and (batch["history_item_id"] < 0).any()
    got = codec.read_tensors(predict(channel, batch).outputs)
    for name, values in expected(first.model, first.card, batch).items():
        np.testing.assert_allclose(got[name], values, **CLOSE)


def test_values_listed_instead_of_packed(channel, inputs, want):
    """Clients in other languages fill `float_val`, `int_val`; one value may represent all."""
    request = codec.predict_request("ranker", "", inputs)
    for name, values in inputs.items():
        proto = request.inputs[name]
        proto.ClearField("tensor_content")
        (proto.float_val if values.dtype == np.float32 else proto.int_val).extend(values.reshape(-1).tolist())
    del request.inputs["request_time"].int_val[:]
    request.inputs["request_time"].int_val.append(int(inputs["request_time"][0]))
    request.output_filter.append("click")
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert list(response.outputs) == ["click"]
    np.testing.assert_allclose(codec.read_tensors(response.outputs)["click"][0], want["click"][0], **CLOSE)


def test_status_and_metadata(server, channel, first):
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/1", "/labels/stable"):
        assert rest(server, f"/v1/models/ranker{path}") == (200, {"model_version_status": [available]})
    status, reply = rest(server, "/v1/models/ranker/metadata")
    assert status == 200 and reply["model_spec"] == {"name": "ranker", "signature_name": "", "version": "1"}
    signature = reply["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert sorted(signature["inputs"]) == sorted(first.card.inputs) and sorted(signature["outputs"]) == sorted(first.card.outputs)
    text = signature["inputs"]["history_text"]
    assert text["dtype"] == "DT_FLOAT" and [dim["size"] for dim in text["tensor_shape"]["dim"]] == ["-1", "-1", "3"]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.GetModelMetadata(codec.metadata_request("ranker"), timeout=60)
    found = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert sorted(found.signature_def["serving_default"].inputs) == sorted(first.card.inputs)
    question = get_model_status_pb2.GetModelStatusRequest()
    question.model_spec.name = "ranker"
    state = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(question, timeout=60).model_version_status[0]
    assert (state.version, state.state, state.status.error_code) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE, 0)


def test_health_and_metrics(server, inputs):
    assert rest(server, "/healthz") == (200, {"model": "ranker", "version": 1})
    rest(server, "/v1/models/ranker:predict", columns(inputs))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics") as reply:
        text = reply.read().decode()
    for line in (
        'keras_ranking_calls_total{code="OK",protocol="rest",signature="serving_default"}',
        'keras_ranking_call_seconds_bucket{le="0.004",protocol="rest",signature="serving_default"}',
        "keras_ranking_batch_rows_bucket",
        "keras_ranking_waiting_calls 0.0",
        "keras_ranking_running_calls 0.0",
        'keras_ranking_version_state{state="AVAILABLE",version="1"} 1.0',
        "process_resident_memory_bytes",
    ):
        assert line in text, line


def test_requests_are_those_of_the_api(inputs):
    """The request of these tests is equal to one of the official API."""
    request = predict_pb2.PredictRequest.FromString(codec.predict_request("ranker", "", inputs).SerializeToString())
    tf = pytest.importorskip("tensorflow")
    for name, values in inputs.items():
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs[name]), values)
