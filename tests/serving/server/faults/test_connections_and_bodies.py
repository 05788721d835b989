"""Faulty connections and bodies: the server keeps running, replies with the right code, and releases its memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time

import pytest

from tests.serving.calling import requests, until
from tests.serving.server.faults.faulty_calls import BODY, MEMORY, READ_SECONDS, crowd, post, sent

grpc = pytest.importorskip("grpc")
from keras_ranking.serving.protocol import codec, protos  # noqa: E402

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]


def test_silent_connections(server):
    """No bytes or half a head: closed within the time to read, on both ports."""
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
    """408 after the time to read, also if bytes still arrive."""
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
    """Connections closed in the middle of a body leave nothing behind."""
    head = b'POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"inputs": '
    for _ in range(50):
        sent(server.rest, head).close()
    until(lambda: not server.connections)


def test_client_that_reads_no_reply(server):
    """Replies of several megabytes that are never read: the connection is closed, other clients are not delayed."""
    request = b"GET /v1/models/ranker/metadata HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.rest), timeout=5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(20_000):
                connection.sendall(request)
        until(lambda: not server.connections, 20 * READ_SECONDS)


def test_bytes_that_are_not_grpc(server):
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        bytes(range(256)) * 40,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
    ):
        for _ in range(5):
            with sent(server.grpc, data) as connection, contextlib.suppress(ConnectionError):
                connection.recv(1000)


def test_oversized_bodies(server):
    """An error by the announced length, or as soon as the body is too long; in gRPC before the message is read."""
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


def test_memory_is_released(server, memory_before):
    """The last test of the file: after all faults above and concurrent bodies just below the limit."""
    for _ in range(4):
        crowd(server)
    until(lambda: not server.connections)
    until(lambda: server.memory - memory_before < MEMORY, 20)
    log = server.errors.read_text()
    assert "Traceback" not in re.sub(r"version \d+ of .* is not served: .*", "", log), log[-2000:]
