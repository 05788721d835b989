"""Calls to both ports of a server, as clients in other languages make them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest

from keras_ranking.serving import serve

grpc = pytest.importorskip("grpc")
from tensorflow_serving.apis import (  # noqa: E402
    prediction_service_pb2_grpc,
)

from keras_ranking.serving.protocol import codec  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-5}


def rest(server, path, content=None, raw=None):
    """Status and JSON of a REST call."""
    data = raw if raw is not None else None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_port}{path}", data=data)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def columns(batch):
    return {"inputs": {name: values.tolist() for name, values in batch.items()}}


def rows(batch):
    count = len(batch["request_time"])
    return {"instances": [{name: values[row].tolist() for name, values in batch.items()} for row in range(count)]}


def predict(channel, batch, model="ranker", signature="", **spec):
    request = codec.predict_request(model, signature, batch)
    for key, value in spec.items():
        if key == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, key, value)
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


def still_good(server, channel, inputs, want):
    np.testing.assert_allclose(codec.read_tensors(predict(channel, inputs).outputs)["click"], want["click"], **CLOSE)
    status, reply = rest(server, "/v1/models/ranker:predict", columns(inputs))
    assert status == 200
    np.testing.assert_allclose(reply["outputs"]["click"], want["click"], **CLOSE)


def open_server(folder, **settings):
    return serve(folder, rest_port=0, grpc_port=0, poll_seconds=0.1, **settings)
