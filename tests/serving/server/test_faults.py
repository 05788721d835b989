"""Faults, against a server in a process of its own: it lives, answers with the right code, and gives its memory back."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies as st

from keras_ranking.serving import Client, Retry, ServingError
from tests.serving import standin
from tests.serving.calling import copy_version, frames, requests, until

grpc = pytest.importorskip("grpc")
from keras_ranking.serving.protocol import codec, protos  # noqa: E402

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
READ_SECONDS = 1.5
BODY = 2 * 2**20
# What the process may hold more after all the faults than before: pools of the allocator and of TensorFlow. A leak of one body (2 MiB)
# in each of the thousand bad requests would be thirty times as much.
MEMORY = 64 * 2**20
CODE = f"""
import sys
from keras_ranking.serving import Limits, serve
limits = Limits(body_bytes={BODY}, batch=16, read_seconds={READ_SECONDS}, queue=64)
server = serve(sys.argv[1], rest_port=int(sys.argv[2]), grpc_port=int(sys.argv[3]), limits=limits, poll_seconds=0.1)
print("ports", server.rest_port, server.grpc_port, flush=True)
server.wait()
"""
FUZZ = settings(max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


class Process:
    """The server as a process."""

    def __init__(self, folder, rest=0, grpc=0):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        command = [sys.executable, "-c", CODE, str(folder), str(rest), str(grpc)]
        self.errors = open(folder.parent / "errors.txt", "ab")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("ports"), (folder.parent / "errors.txt").read_text()
        self.rest, self.grpc = map(int, line.split()[1:])
        self.seen = psutil.Process(self.process.pid)

    @property
    def memory(self):
        return self.seen.memory_info().rss

    @property
    def connections(self):
        """Established ones of the REST port."""
        return [c for c in self.seen.net_connections("tcp") if c.status == "ESTABLISHED" and c.laddr.port == self.rest]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def client(self, protocol="grpc", **more):
        return Client(f"127.0.0.1:{getattr(self, protocol)}", standin.SCHEMA, model="ranker", protocol=protocol, **more)


@pytest.fixture(scope="module")
def folder(first, tmp_path_factory):
    made = tmp_path_factory.mktemp("faults") / "ranker"
    made.mkdir()
    copy_version(first.version, made, 1)
    return made


@pytest.fixture(scope="module")
def server(folder):
    made = Process(folder)
    yield made
    assert made.process.poll() is None, "the server died"
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(60) == 0
    made.errors.close()


@pytest.fixture(scope="module")
def want(server):
    with server.client() as client:
        return client.score(*frames(6, 4))


@pytest.fixture(scope="module")
def memory_before(server, folder, second, want):
    """After it has done a bit of everything: a graph that is loaded and refused leaves TensorFlow's pools some 80 MiB larger, once."""
    with server.client() as by_grpc, server.client("rest") as by_rest:
        for number in range(60):
            for client in (by_grpc, by_rest):
                client.score(*frames(number % 40, 1 + number % 9))
    for _ in range(2):
        crowd(server)
    offer_broken(server, folder, second, "weights", 9)
    shutil.rmtree(folder / "9")
    return server.memory


@pytest.fixture(autouse=True)
def lives(server, want, memory_before):
    """After each fault the next request gets its scores."""
    yield
    for protocol in ("grpc", "rest"):
        with server.client(protocol, retry=Retry(attempts=1)) as client:
            np.testing.assert_allclose(client.score(*frames(6, 4)), want, rtol=0, atol=1e-5)


def post(server, body, headers=None):
    """Status and JSON."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.rest, timeout=30)) as connection:
        connection.request("POST", "/v1/models/ranker:predict", body, headers or {})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def crowd(server):
    """24 bodies just within the limit at once, none of them good: what the process takes for them it keeps for the next ones."""
    bodies = [json.dumps({"inputs": {"history_click": [[0.5] * 200_000]}}).encode(), b"[" * 100_000, b" " * (BODY - 10)]
    threads = [threading.Thread(target=post, args=(server, body)) for body in bodies * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: not server.connections)


def offer_broken(server, folder, second, damage, number):
    """Put a damaged version in the server's folder, and wait until it has been refused; the states of all versions."""
    broken = folder / f".broken-{number}"
    shutil.copytree(second.version, broken)
    if damage == "graph":
        graph = broken / "saved_model.pb"
        graph.write_bytes(graph.read_bytes()[: 2 * len(graph.read_bytes()) // 3])
    elif damage == "weights":
        (broken / "variables/variables.data-00000-of-00001").write_bytes(b"")
    elif damage == "empty":
        shutil.rmtree(broken)
        broken.mkdir()
    else:
        (broken / "assets.extra/keras_ranking.json").write_text('{"format": 99}')
    broken.rename(folder / str(number))
    states = {}

    def ended():
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.rest, timeout=30)) as connection:
            connection.request("GET", "/v1/models/ranker")
            reply = json.loads(connection.getresponse().read())["model_version_status"]
        states.update({entry["version"]: entry for entry in reply})
        return states.get(str(number), {}).get("state") == "END"

    until(ended)
    return states


# -- connections ----------------------------------------------------------------------------------------------------------


def sent(port, data):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def test_connections_that_ask_nothing(server):
    """Silence, half a head, half a request after a whole one: let go within the time to read, on both ports."""
    head = b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Le"
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(sent(server.rest, data)) for data in (b"", head) for _ in range(20)]
        held += [stack.enter_context(sent(server.grpc, data)) for data in (b"", b"PRI * HTTP/2.0\r\n\r\n") for _ in range(10)]
        begin = time.monotonic()
        for connection in held:
            connection.settimeout(20)
            with contextlib.suppress(ConnectionError):
                while connection.recv(65_536):
                    pass
        assert time.monotonic() - begin < 4 * READ_SECONDS + 5


def test_body_that_comes_too_slowly(server):
    """408 when the time to read is over, whatever trickles in."""
    head = b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with sent(server.rest, head) as connection:
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin < READ_SECONDS + 3:
                connection.sendall(b" ")
                time.sleep(0.1)
                connection.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    reply = connection.recv(1000)
                    break
                connection.settimeout(30)
        assert reply.startswith(b"HTTP/1.1 408") and READ_SECONDS * 0.9 < time.monotonic() - begin < READ_SECONDS + 2


def test_body_that_ends_early(server):
    """The promised body is never finished: whoever hangs up in the middle costs nothing."""
    head = b'POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"inputs": '
    for _ in range(50):
        sent(server.rest, head).close()
    until(lambda: not server.connections)


def test_client_that_takes_no_reply(server):
    """Megabytes asked for and never read: the connection is closed, nobody else waits."""
    ask = b"GET /v1/models/ranker/metadata HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.rest), timeout=5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(20_000):
                connection.sendall(ask)
        until(lambda: not server.connections, 20 * READ_SECONDS)


def test_grpc_that_is_none(server):
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        bytes(range(256)) * 40,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
    ):
        for _ in range(5):
            with sent(server.grpc, data) as connection, contextlib.suppress(ConnectionError):
                connection.recv(1000)


# -- bodies ---------------------------------------------------------------------------------------------------------------


def test_oversized_bodies(server):
    """Refused by the length they announce, or when they have become too long; by gRPC before they are read into a message."""
    assert post(server, b" " * (BODY + 1))[0] == 413
    with sent(server.rest, b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.rest, timeout=30)) as connection:
        connection.request("POST", "/v1/models/ranker:predict", (b" " * 65_536 for _ in range(64)), encode_chunked=True)
        assert connection.getresponse().status == 413
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(protos.PREDICT)(b"\0" * (BODY + 1), timeout=30)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_compressed_body_that_grows(server):
    """A small body that unpacks to a huge one."""
    import gzip

    status, reply = post(server, gzip.compress(b" " * 200_000_000), {"Content-Encoding": "gzip"})
    assert (status, reply["error"]) == (413, f"the body is larger than the limit of {BODY} bytes")


def test_truncated_messages(server, first):
    message = codec.predict_request("ranker", "", requests(first.card)).SerializeToString()
    body = json.dumps({"inputs": {k: v.tolist() for k, v in requests(first.card, hostile=False).items()}}).encode()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        predict = channel.unary_unary(protos.PREDICT)
        for share in (0.1, 0.5, 0.9, 0.999):
            assert post(server, body[: int(share * len(body))])[0] == 400
            with pytest.raises(grpc.RpcError) as caught:
                predict(message[: int(share * len(message))], timeout=30)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


KEYS = st.sampled_from(
    ["inputs", "instances", "signature_name", "history_click", "history_length", "candidate_count", "request_time", "b64"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([0, 1, -1, 2**31, 2**63, 1e308, "raw"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def good_body(first):
    return {"inputs": {name: values.tolist() for name, values in requests(first.card, hostile=False).items()}}


def test_500_fuzzed_json_bodies(server, first):
    """Never 500, never a broken reply: 200 where the body happened to be good, else 400, 404, 413."""
    good = good_body(first)
    names = sorted(good["inputs"])
    text = json.dumps(good).encode()
    seen = set()
    connection = http.client.HTTPConnection("127.0.0.1", server.rest, timeout=30)

    def spoiled(change):
        kind, name, value, where, byte = change
        if kind == "any":
            return json.dumps(value).encode()
        if kind == "field":
            return json.dumps({"inputs": good["inputs"] | {name: value}}).encode()
        if kind == "row":
            rows = [{key: values[row] for key, values in good["inputs"].items()} for row in range(3)]
            rows[where % 3][name] = value
            return json.dumps({"instances": rows}).encode()
        at = where * 2_654_435_761 % len(text)  # anywhere: small numbers are drawn more often
        return text[:at] + bytes([byte]) + text[at + (kind == "byte") :]

    changes = st.tuples(
        st.sampled_from(["any", "field", "row", "byte", "insert"]),
        st.sampled_from(names),
        VALUES,
        st.integers(0, 10**6),
        st.integers(0, 255) | st.sampled_from(b"0123456789"),  # a digit in the place of another leaves a good body
    )

    @seed(7)
    @FUZZ
    @given(changes)
    def ask(change):
        connection.request("POST", "/v1/models/ranker:predict", spoiled(change))
        reply = connection.getresponse()
        content = json.loads(reply.read())
        seen.add(reply.status)
        assert reply.status in (200, 400, 413), content
        assert ("error" in content) == (reply.status != 200)

    with contextlib.closing(connection):
        ask()
    assert {200, 400} <= seen


def test_500_fuzzed_protobufs(server, first):
    """Never INTERNAL or UNKNOWN: whatever the bytes are, the caller is told what is wrong with them."""
    good = codec.predict_request("ranker", "", requests(first.card, (3,), (2,))).SerializeToString()
    names = sorted(first.card.inputs)
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
    seen = set()

    def spoiled(change):
        kind, name, number, numbers, where, raw = change
        if kind == "bytes":
            return raw
        if kind == "splice":
            at = where % len(good)
            return good[:at] + raw + good[at + number % 9 :]
        request = protos.PredictRequest.FromString(good)
        tensor = request.inputs[name]
        if kind == "dtype":
            tensor.dtype = number % 200 - 50
        elif kind == "shape":
            del tensor.tensor_shape.dim[:]
            for size in numbers:
                tensor.tensor_shape.dim.add().size = size
        elif kind == "content":
            tensor.tensor_content = raw
        elif kind == "values":
            tensor.ClearField("tensor_content")
            tensor.int_val.extend(max(-(2**31), min(2**31 - 1, size)) for size in numbers)
            tensor.float_val.extend(map(float, numbers))
        elif kind == "spec":
            request.model_spec.version_label = raw.decode("latin-1")
            request.model_spec.signature_name = name
        else:
            tensor.tensor_shape.unknown_rank = True
        return request.SerializeToString()

    kinds = st.sampled_from(["bytes", "splice", "splice", "dtype", "shape", "content", "values", "spec", "rank"])
    sizes = st.integers(-(2**40), 2**62) | st.integers(-2, 9)
    changes = st.tuples(
        kinds, st.sampled_from(names), st.integers(0, 10**6), st.lists(sizes, max_size=5), st.integers(0, 10**6), st.binary(max_size=40)
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        predict = channel.unary_unary(protos.PREDICT)
        others = [channel.unary_unary(path) for path in (protos.METADATA, protos.STATUS)]

        @seed(7)
        @FUZZ
        @given(changes)
        def ask(change):
            message = spoiled(change)
            for call in (predict, *(others if change[0] == "bytes" else ())):
                try:
                    call(message, timeout=30)
                    code = details = "OK"
                except grpc.RpcError as error:
                    code, details = error.code().name, error.details()
                seen.add(code)
                assert code in allowed, (code, details)

        ask()
    assert {"INVALID_ARGUMENT", "OK"} <= seen


# -- versions and processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["graph", "weights", "empty", "card"])
def test_corrupt_version(server, folder, second, damage):
    """The old version serves on; the status says what is wrong, and the log does."""
    number = {"graph": 2, "weights": 3, "empty": 4, "card": 5}[damage]
    states = offer_broken(server, folder, second, damage, number)
    assert states["1"]["state"] == "AVAILABLE"
    assert states[str(number)]["status"]["error_code"] == "UNKNOWN" and states[str(number)]["status"]["error_message"]
    until(lambda: f"version {number} of" in (folder.parent / "errors.txt").read_text())
    with server.client(version=number) as client, pytest.raises(ServingError, match=f"version {number} is not loaded"):
        client.score(*frames(1, 1))
    shutil.rmtree(folder / str(number))


def test_killed_and_started_again(first, want, tmp_path):
    """kill -9 under load: every call ends in scores or in UNAVAILABLE, at once; the same clients go on when it is back."""
    (tmp_path / "ranker").mkdir()
    copy_version(first.version, tmp_path / "ranker", 1)
    running = Process(tmp_path / "ranker")
    outcomes, stop = [], threading.Event()

    def load(protocol):
        with running.client(protocol, timeout=10, retry=Retry(attempts=1)) as client:
            while not stop.is_set():
                begin = time.monotonic()
                try:
                    outcomes.append(("OK", np.abs(client.score(*frames(6, 4)) - want).to_numpy().max() < 1e-5, time.monotonic() - begin))
                except ServingError as error:
                    outcomes.append((error.code, True, time.monotonic() - begin))
                    time.sleep(0.02)

    threads = [threading.Thread(target=load, args=(protocol,)) for protocol in ("grpc", "rest") * 2]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(outcomes) > 30)
        running.kill()
        killed = len(outcomes)
        until(lambda: len(outcomes) > killed + 20)
        running = Process(tmp_path / "ranker", running.rest, running.grpc)
        back = len(outcomes)
        until(lambda: [code for code, _, _ in outcomes[back:]].count("OK") > 40)
        # A client with its usual retries does not notice a restart that is over within its time.
        with running.client("grpc") as client:
            np.testing.assert_allclose(client.score(*frames(6, 4)), want, rtol=0, atol=1e-5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        running.kill()
    assert {code for code, _, _ in outcomes} == {"OK", "UNAVAILABLE"}
    assert all(right for _, right, _ in outcomes) and max(seconds for _, _, seconds in outcomes) < 8


def test_memory_comes_back(server, memory_before):
    """Last: after all of the above and a crowd of bodies just within the limit."""
    for _ in range(4):
        crowd(server)
    until(lambda: not server.connections)
    until(lambda: server.memory - memory_before < MEMORY, 20)
    log = (Path(server.errors.name)).read_text()
    assert "Traceback" not in re.sub(r"version \d+ of .* is not served: .*", "", log), log[-2000:]
