"""Servers with settings, and calls to them, for the tests of listeners."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request

import pytest

from keras_ranking.serving import serve
from keras_ranking.serving.checking.saved_model import SavedModel

grpc = pytest.importorskip("grpc")
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2  # noqa: E402

TOKEN = "correct horse battery"


def call(url, content=None, headers=(), context=None):
    """Status, headers and JSON or text."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data=data, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def columns(batch):
    return {"inputs": {name: values.tolist() for name, values in batch.items()}}


def health(channel, service=""):
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


@contextlib.contextmanager
def serving(first, **settings):
    """A separate server of the exported model."""
    with serve(first.version.parent, rest_port=0, grpc_port=0, **settings) as running:
        yield running


def waiting(running):
    """Number of calls in the queue, from the server's metrics."""
    text = call(f"http://127.0.0.1:{running.rest_port}/monitoring/prometheus/metrics")[2].decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("keras_ranking_waiting_calls "))


class Barrier:
    """Holds every run of the model until it is opened, and counts them."""

    def __init__(self, monkeypatch):
        self.entered, self.open, self.runs = threading.Event(), threading.Event(), 0
        run = SavedModel.run

        def held(model, signature, inputs):
            self.runs += 1
            self.entered.set()
            assert self.open.wait(60)
            return run(model, signature, inputs)

        monkeypatch.setattr(SavedModel, "run", held)


def write_warmup(version, batches):
    """The warm-up file of a version, by TensorFlow's own writer and messages."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(version / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for batch in batches:
            request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name="ranker", signature_name="serving_default"))
            for name, values in batch.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            entry = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(entry.SerializeToString())
