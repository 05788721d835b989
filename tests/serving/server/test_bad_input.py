"""The embedded server: bad input gives a clear error, and the next call is scored."""

from __future__ import annotations

import http.client
import re

import numpy as np
import pytest

from tests.serving.calling import requests
from tests.serving.server.calls import columns, predict, rest, rows, still_good

grpc = pytest.importorskip("grpc")
from tensorflow_serving.apis import (  # noqa: E402
    prediction_service_pb2_grpc,
)

from keras_ranking.serving.protocol import codec  # noqa: E402

pytestmark = pytest.mark.one_backend


def changed(name, values):
    return lambda batch: batch | {name: values(batch[name].copy())}


def put(value, *where):
    def write(array):
        array[where] = value
        return array

    return write


BAD = {
    "wrong dtype": (changed("history_item_id", lambda a: a + 0.5), "'history_item_id' must be int32"),
    "wrong rank": (changed("candidate_topic", lambda a: a[..., None]), r"'candidate_topic' must have rank 2 and shape \(\?, \?\)"),
    "wrong size": (changed("history_text", lambda a: a[..., :2]), r"'history_text' must have rank 3 and shape \(\?, \?, 3\)"),
    "scalar": (changed("request_time", lambda a: a[0]), "'request_time' must have rank 1"),
    "missing": (lambda batch: {k: v for k, v in batch.items() if k != "history_click"}, "missing input 'history_click'"),
    "rows differ": (changed("request_time", lambda a: a[:2]), "different numbers of rows"),
    "lists differ": (changed("history_click", lambda a: a[:, :-1]), "history inputs must be equally long"),
    "nan": (changed("candidate_affinity", put(np.nan, 1, 0)), r"'candidate_affinity' must hold finite numbers. Received: nan at \[1, 0\]"),
    "infinity": (changed("history_text", put(-np.inf, 2, 1, 0)), "'history_text' must hold finite numbers. Received: -inf"),
    "id outside its table": (changed("candidate_item_id", put(500, 0, 0)), r"'candidate_item_id' must hold integers in 0 .. 499"),
    "no candidate": (changed("candidate_count", put(0, 1)), "'candidate_count' must be at least 1.*Received: 0 in row 1"),
    "too many candidates": (changed("candidate_count", put(99, 2)), "'candidate_count' is 99 in row 2, but the candidate inputs hold 7"),
    "length too long": (changed("history_length", put(11, 0)), "'history_length' is 11 in row 0, but the history inputs hold 10"),
    "length below 0": (changed("history_length", put(-1, 0)), "'history_length' must be 0 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(server, channel, inputs, want, case):
    spoil, message = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, spoil(inputs))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, caught.value.details())
    bodies = [columns(spoil(inputs))]
    if case not in ("rows differ", "scalar"):  # not possible in the row form
        bodies.append(rows(spoil(inputs)))
    for body in bodies:
        status, reply = rest(server, "/v1/models/ranker:predict", body)
        assert status == 400 and sorted(reply) == ["error"]
        assert re.search(message, reply["error"])
    still_good(server, channel, inputs, want)


BAD_BODIES = {
    "no json": (b"{", "JSON parse error"),
    "truncated": (b'{"inputs": {"request_time": [1,', "JSON parse error"),
    "empty": (b"", "JSON parse error"),
    "deep": (b"[" * 100_000 + b"NaN", "JSON parse error"),
    "a list": (b"[]", "must be a JSON object"),
    "neither form": (b"{}", "must have 'instances' or 'inputs'"),
    "both forms": (b'{"instances": [], "inputs": {}}', "must have 'instances' or 'inputs'"),
    "no rows": (b'{"instances": []}', "at least one request"),
    "rows that are none": (b'{"instances": [1]}', "must hold objects"),
    "columns that are none": (b'{"inputs": 3}', "must be an object"),
    "ragged": (b'{"inputs": {"history_click": [[1.0], [1.0, 2.0]]}}', "'history_click' must be a full array"),
    "nulls": (b'{"inputs": {"history_click": [[null]]}}', "'history_click' must be float32. Received: nulls"),
    "text": (b'{"inputs": {"history_time": [["1"]]}}', "'history_time' must be int32. Received: text"),
    "true": (b'{"inputs": {"history_time": [[true]]}}', "'history_time' must be int32. Received: true and false"),
    "64 bits": (b'{"inputs": {"history_time": [[3000000000]]}}', "'history_time' must be int32. Received a number out of its range"),
    "signature": (b'{"signature_name": 3, "inputs": {}}', "'signature_name' must be text"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_body(server, case):
    body, message = BAD_BODIES[case]
    status, reply = rest(server, "/v1/models/ranker:predict", raw=body)
    assert status == 400 and message in reply["error"]


def test_bad_tensors(server, channel, inputs, want):
    """Protobufs with a wrong size or type."""

    def refused(fill):
        request = codec.predict_request("ranker", "", inputs)
        fill(request.inputs["history_click"])
        with pytest.raises(grpc.RpcError) as caught:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        return caught.value.code().name, caught.value.details()

    def huge(proto):
        proto.Clear()
        proto.dtype = 1
        for _ in range(2):
            proto.tensor_shape.dim.add().size = 2**40
        proto.float_val.append(1.0)

    def negative(proto):
        proto.tensor_shape.dim[0].size = -1

    def short(proto):
        proto.tensor_content = proto.tensor_content[:-1]

    def text(proto):
        proto.Clear()
        proto.dtype = 7
        proto.string_val.append(b"x")

    assert refused(huge)[0] == "RESOURCE_EXHAUSTED" and "limit of 4194304 bytes" in refused(huge)[1]
    assert refused(negative) == ("INVALID_ARGUMENT", "input 'history_click' must have a known shape. Received: [-1, 10]")
    assert refused(short)[0] == "INVALID_ARGUMENT" and "must have 120 bytes. Received: 119" in refused(short)[1]
    assert refused(text) == ("INVALID_ARGUMENT", "input 'history_click' must be float32. Received: text")
    still_good(server, channel, inputs, want)


@pytest.mark.parametrize(
    ("path", "spec", "http", "code", "message"),
    [
        ("/v1/models/other:predict", {"model": "other"}, 404, "NOT_FOUND", 'model "other" not found'),
        ("/v1/models/ranker/versions/9:predict", {"version": 9}, 404, "NOT_FOUND", "version 9 is not loaded"),
        ("/v1/models/ranker/labels/canary:predict", {"version_label": "canary"}, 400, "INVALID_ARGUMENT", 'label "canary" not found'),
    ],
)
def test_unknown_model_version_label(server, channel, inputs, path, spec, http, code, message):
    """With the codes of TensorFlow Serving."""
    status, reply = rest(server, path, columns(inputs))
    assert status == http and message in reply["error"]
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, inputs, **spec)
    assert caught.value.code().name == code and message in caught.value.details()


def test_unknown_signature_and_output(server, channel, inputs):
    status, reply = rest(server, "/v1/models/ranker:predict", columns(inputs) | {"signature_name": "guess"})
    assert status == 400 and 'signature "guess" not found' in reply["error"]
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, inputs, signature="guess")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    request = codec.predict_request("ranker", "", inputs)
    request.output_filter.append("follow")
    with pytest.raises(grpc.RpcError, match="unknown output 'follow'"):
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


def test_unknown_paths(server):
    assert rest(server, "/v1/models/ranker:guess", {}) == (400, {"error": "Malformed request: POST /v1/models/ranker:guess"})
    assert rest(server, "/elsewhere")[0] == 404
    status, reply = rest(server, "/v1/models/ranker:predict")
    assert status == 400 and "Malformed request" in reply["error"]


def test_body_of_100_mb(server, channel, inputs, want):
    status, reply = rest(server, "/v1/models/ranker:predict", raw=b" " * 100_000_000)
    assert (status, reply) == (413, {"error": "the body is larger than the limit of 4194304 bytes"})
    huge = inputs | {"history_text": np.zeros((3, 2_800_000, 3), np.float32)}
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, huge)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "4194304" in caught.value.details()
    still_good(server, channel, inputs, want)


def test_body_of_unknown_length(server):
    """Sent in chunks, without Content-Length."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    connection.request("POST", "/v1/models/ranker:predict", (b" " * 65_536 for _ in range(100)), encode_chunked=True)
    reply = connection.getresponse()
    assert reply.status == 413 and b"limit of 4194304" in reply.read()


def test_too_many_rows(server, channel, first):
    many = requests(first.card, [1] * 17, [1] * 17, hostile=False)
    for form in (columns, rows):
        status, reply = rest(server, "/v1/models/ranker:predict", form(many))
        assert status == 413 and "at most 16 requests" in reply["error"]
    with pytest.raises(grpc.RpcError, match="at most 16 requests"):
        predict(channel, many)


def test_deadline(server, channel, inputs):
    with pytest.raises(grpc.RpcError) as caught:
        request = codec.predict_request("ranker", "", inputs)
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=1e-6)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
