"""The REST and gRPC listeners: token, TLS, health, deadlines, limits, logs."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from keras_ranking.serving import Client, ClientTls, Limits, Retry, ServingError, Tls, serve
from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.server.batching import Batcher
from keras_ranking.serving.server.logs import JsonFormatter
from keras_ranking.serving.server.security import Access
from tests.serving.calling import connect, copy_version, frames, requests, until

grpc = pytest.importorskip("grpc")
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2  # noqa: E402

pytestmark = pytest.mark.one_backend
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


# -- token and TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(first):
    with serving(first, token=TOKEN, name="ranker") as running:
        yield running


@pytest.mark.parametrize("header", [None, "Bearer wrong horse battery", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_without_the_token(guarded, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models/ranker", "/v1/models/ranker:predict", "/monitoring/prometheus/metrics", "/v1/models/ranker/metadata"):
        status, reply, body = call(f"http://127.0.0.1:{guarded.rest_port}{path}", {} if "predict" in path else None, headers)
        assert (status, reply["WWW-Authenticate"]) == (401, "Bearer") and b"needs a token" in body
    if header is None or header.isascii():
        token = (header or " ").partition(" ")[2] or None
        with connect(guarded, "grpc", token=token if header != f"Basic {TOKEN}" else None) as client, pytest.raises(ServingError) as caught:
            client.score(*frames(1, 1))
        assert caught.value.code == "UNAUTHENTICATED"


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_with_the_token(guarded, protocol):
    with connect(guarded, protocol, token=TOKEN) as client:
        assert client.score(*frames(3, 2)).shape == (2, 2)


def test_probes_need_no_token(guarded):
    assert call(f"http://127.0.0.1:{guarded.rest_port}/healthz")[0] == 200
    assert call(f"http://127.0.0.1:{guarded.rest_port}/readyz")[0] == 200
    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        assert {health(channel, name) for name in ("", "ranker", "tensorflow.serving.PredictionService")} == {"SERVING"}
        with pytest.raises(grpc.RpcError) as caught:
            health(channel, "other")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_beyond_this_machine(first):
    """Nothing listens for other machines by mistake."""
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(ValueError, match="can be reached from other machines: give a `token` or a `client_ca`"):
            serve(first.version.parent, host=host)
        Access(token=TOKEN).check_host(host)
        Access(insecure=True).check_host(host)
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        Access().check_host(host)
    with pytest.raises(ValueError, match="`token` must be at least 16 ASCII characters"):
        serve(first.version.parent, token="short")
    with pytest.raises(FileNotFoundError, match="no such file for TLS: 'nothing.pem'"):
        Tls("nothing.pem", "nothing.key")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a server's and a client's certificate that it signed."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    for who in ("server", "client"):
        openssl("req", *new[:-2], "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{who}.csr", *signing, "-out", f"{who}.pem")
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(first, certificates, mutual):
    path = certificates.joinpath
    tls = Tls(path("server.pem"), path("server.key"), path("ca.pem") if mutual else None)
    known = ClientTls(path("ca.pem"), *((path("client.pem"), path("client.key")) if mutual else ()))
    untrusted = [False, True] + ([ClientTls(path("ca.pem"))] if mutual else [])
    with serving(first, tls=tls) as running:
        for protocol in ("grpc", "rest"):
            with connect(running, protocol, tls=known) as client:
                assert client.score(*frames(3, 2)).shape == (2, 2)
            for settings in untrusted:
                with connect(running, protocol, tls=settings, retry=Retry(attempts=1), timeout=5) as client:
                    with pytest.raises(ServingError) as caught:
                        client.score(*frames(1, 1))
                    assert caught.value.code == "UNAVAILABLE"
        context = ssl.create_default_context(cafile=path("ca.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if not mutual:
            assert call(f"https://127.0.0.1:{running.rest_port}/healthz", context=context)[0] == 200


def test_key_of_another_certificate(first, certificates):
    with pytest.raises(ValueError, match="the certificate, key or client authority cannot be used"):
        serve(first.version.parent, rest_port=0, grpc_port=0, tls=Tls(certificates / "server.pem", certificates / "client.key"))


# -- readiness, deadlines, back-pressure ----------------------------------------------------------------------------------


def test_notice_before_the_end(first):
    """A server that stops first reports not ready, and still accepts calls."""
    with serving(first, notice_seconds=2.0) as running:
        url = f"http://127.0.0.1:{running.rest_port}"
        assert call(f"{url}/readyz")[0] == 200
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        deadline = time.monotonic() + 1.5
        while call(f"{url}/readyz")[0] == 200:
            assert time.monotonic() < deadline
        assert call(f"{url}/healthz")[0] == 200
        with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
            assert health(channel) == "NOT_SERVING"
        with connect(running, "grpc") as client:
            assert client.score(*frames(3, 2)).shape == (2, 2)
        stopping.join()
    with pytest.raises(OSError):
        call(f"{url}/healthz")


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_expired_calls_are_dropped_before_they_run(first, monkeypatch, protocol):
    with serving(first) as running:
        barrier = Barrier(monkeypatch)
        deadlines = []
        submit = Batcher.submit

        def noted(batcher, signature, inputs, rows, deadline):
            job = submit(batcher, signature, inputs, rows, deadline)
            deadlines.append(deadline)
            return job

        monkeypatch.setattr(Batcher, "submit", noted)
        batch = requests(first.card, (2,), (2,), hostile=False)
        done = []
        with connect(running, protocol, retry=Retry(attempts=1)) as client:
            client.signatures()
            blocked = [threading.Thread(target=lambda: done.append(client.predict(batch))) for _ in range(2)]  # one for each worker
            for runs, thread in enumerate(blocked, start=1):
                thread.start()
                until(lambda runs=runs: barrier.runs == runs)
            begin = time.monotonic()
            for _ in range(3):
                with pytest.raises(ServingError) as caught:
                    client.predict(batch, timeout=0.2)
                assert caught.value.code == "DEADLINE_EXCEEDED"
            assert time.monotonic() - begin < 3.0
            # The server counts from when a call arrives, so its deadline may be later than the client's.
            until(lambda: len(deadlines) == 5 and time.monotonic() > max(deadlines[2:]))
            barrier.open.set()
            for thread in blocked:
                thread.join()
            assert len(done) == 2 and barrier.runs == 2  # the three were never run
            assert client.predict(batch)["click"].shape == (1, 4)
        if protocol == "rest":
            url = f"http://127.0.0.1:{running.rest_port}/v1/models/{running.name}:predict"
            assert call(url, columns(batch), {"X-Request-Timeout": "1e-9"})[0] == 504
            for bad in ("soon", "-1", "nan", "inf", "0"):
                status, _, body = call(url, columns(batch), {"X-Request-Timeout": bad})
                assert status == 400 and b"X-Request-Timeout must be a positive number of seconds" in body


def test_back_pressure(first, monkeypatch):
    """A full queue: 429 with Retry-After, RESOURCE_EXHAUSTED with a time to wait; the client waits and succeeds."""
    with serving(first, limits=Limits(queue=1, batch=1)) as running:
        batch = requests(first.card, (2,), (2,), hostile=False)
        with connect(running, "grpc") as client:
            client.signatures()
            barrier = Barrier(monkeypatch)
            done = []
            threads = [threading.Thread(target=lambda: done.append(client.predict(batch))) for _ in range(3)]  # two run, one waits
            for calls, thread in enumerate(threads, start=1):
                thread.start()
                until(lambda calls=calls: barrier.runs == min(calls, 2) and waiting(running) == max(0, calls - 2))
            status, headers, body = call(f"http://127.0.0.1:{running.rest_port}/v1/models/{running.name}:predict", columns(batch))
            assert (status, headers["Retry-After"]) == (429, "1") and b"1 calls are waiting already" in body
            with connect(running, "grpc", retry=Retry(attempts=1)) as once, pytest.raises(ServingError) as caught:
                once.predict(batch)
            assert (caught.value.code, caught.value.retry_after) == ("RESOURCE_EXHAUSTED", 0.1)
            late = threading.Thread(target=lambda: done.append(client.predict(batch)))
            late.start()
            time.sleep(0.2)  # long enough for one error; on a slow machine the call may be accepted at once, which must work too
            barrier.open.set()
            for thread in (*threads, late):
                thread.join()
            assert len(done) == 4


def test_lists_that_are_too_long(first):
    """Refused with the name of the input, and not sent again."""
    with serving(first, limits=Limits(history=8, candidates=5)) as running:
        for long, message in (
            ((7, 2), "may hold at most 8 cells a request. Received: 9"),
            ((1, 4), "at most 5 cells a request. Received: 6"),
        ):
            batch = requests(first.card, [long[0]], [long[1]], hostile=False)
            for protocol in ("grpc", "rest"):
                with connect(running, protocol) as client, pytest.raises(ServingError, match=message) as caught:
                    client.predict(batch)
                assert (caught.value.code, caught.value.http_status) == ("RESOURCE_EXHAUSTED", 413)
        with connect(running, "grpc") as client:
            assert client.score(*frames(8, 5)).shape == (5, 2)
        text = call(f"http://127.0.0.1:{running.rest_port}/monitoring/prometheus/metrics")[2].decode()
        for protocol in ("grpc", "rest"):
            name = f'keras_ranking_calls_total{{code="RESOURCE_EXHAUSTED",protocol="{protocol}",signature="serving_default"}}'
            assert f"{name} 2.0" in text


def test_connections_are_bounded(first):
    import socket

    with serving(first, limits=Limits(connections=3)) as running, contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", running.rest_port))) for _ in range(3)]
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", running.rest_port), timeout=10) as extra:
            reply = extra.recv(1000)
        assert reply.startswith(b"HTTP/1.1 503") and b"3 connections are open," in reply
        held[0].close()
        until(lambda: call(f"http://127.0.0.1:{running.rest_port}/healthz")[0] == 200)
        stack.enter_context(contextlib.closing(held[0]))
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", options=own)) for _ in range(4)]
        assert [health(channel) for channel in channels[:3]] == ["SERVING"] * 3
        with pytest.raises(grpc.RpcError) as caught:
            health(channels[3])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


# -- logs, warm-up --------------------------------------------------------------------------------------------------------


def test_log_lines_as_json(first, server, caplog):
    with caplog.at_level(logging.INFO, "keras_ranking.serving.calls"), connect(server, "grpc") as client:
        client.score(*frames(3, 2))
        with pytest.raises(ServingError):
            client.predict(requests(first.card, [1] * 17, [1] * 17, hostile=False))
    entries = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    good, bad = entries
    assert {name: good[name] for name in ("message", "level", "model", "protocol", "code", "signature", "version", "rows")} == {
        "message": "call", "level": "INFO", "model": "ranker", "protocol": "grpc", "code": "OK",
        "signature": "serving_default", "version": 1, "rows": 1,
    }  # fmt: skip
    assert 0 < good["seconds"] < 60 and good["time"].endswith("+00:00")
    assert (bad["code"], bad["rows"]) == ("RESOURCE_EXHAUSTED", 17)
    try:
        raise ValueError("a\nb")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line and json.loads(line)["message"] == "it failed" and "ValueError: a\nb" in json.loads(line)["error"]


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


def test_warmup_requests(first, tmp_path, monkeypatch):
    """Run before the version takes traffic; a failing one fails the version."""
    ran = []
    run = SavedModel.run
    monkeypatch.setattr(SavedModel, "run", lambda model, name, inputs: ran.append(inputs["request_time"].shape) or run(model, name, inputs))
    (tmp_path / "ranker").mkdir()
    copy_version(first.version, tmp_path / "ranker", 1)
    write_warmup(tmp_path / "ranker" / "1", [requests(first.card, [3] * rows, [2] * rows, hostile=False) for rows in (5, 7)])
    with serve(tmp_path / "ranker", rest_port=0, grpc_port=0):
        assert ran[-2:] == [(5,), (7,)]
    bad = requests(first.card, [3], [2], hostile=False)
    bad["candidate_count"] = np.array([9], dtype=np.int32)
    write_warmup(tmp_path / "ranker" / "1", [requests(first.card), bad])
    with pytest.raises(RuntimeError, match="warm-up request 2 fails: .*'candidate_count' is 9 in row 0"):
        serve(tmp_path / "ranker", rest_port=0, grpc_port=0)


@pytest.mark.slow
def test_a_command_line_server(first, tmp_path):
    """`keras-ranking serve` with a token from the environment, TLS off, JSON lines, every call logged."""
    import os
    import re
    import signal
    import sys
    from pathlib import Path

    shutil.copytree(first.version.parent, tmp_path / "ranker")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "KERAS_RANKING_TOKEN": TOKEN}
    command = [sys.executable, "-m", "keras_ranking.cli", "serve", str(tmp_path / "ranker"), "--rest-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        [*command, "--log-format", "json", "--log-calls"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        text = "".join(process.stdout.readline() for _ in range(3))
        port = int(re.search(r"gRPC 127\.0\.0\.1:(\d+)", text)[1])
        with Client(f"127.0.0.1:{port}", first.version / "assets.extra/schema.json", model="ranker", token=TOKEN) as client:
            assert client.score(*frames(3, 2)).shape == (2, 2)
        unknown = Client(f"127.0.0.1:{port}", first.version / "assets.extra/schema.json", model="ranker")
        with unknown, pytest.raises(ServingError, match="needs a token"):
            unknown.score(*frames(3, 2))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    entries = [json.loads(line) for line in errors.splitlines()]
    assert [entry["code"] for entry in entries if entry["logger"] == "keras_ranking.serving.calls"] == ["OK"]
    assert any(entry["message"].startswith("serving ranker") for entry in entries)
