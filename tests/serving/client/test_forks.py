"""A client in a forked process: connections and locks of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from keras_ranking.serving import AsyncClient, Client
from keras_ranking.serving.client.retry import Budget, Retry
from keras_ranking.serving.protocol.errors import ServingError
from tests.serving import standin

pytestmark = [pytest.mark.one_backend, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")]

TENSOR = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}], "unknown_rank": False}}
SIGNATURE = {"inputs": {"x": TENSOR}, "outputs": {"x": TENSOR, "port": TENSOR}, "method_name": "tensorflow/serving/predict"}


class Echo(BaseHTTPRequestHandler):
    """Replies with the values of the request, and with the port of the connection that it came by."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply({"metadata": {"signature_def": {"signature_def": {"serving_default": SIGNATURE}}}})

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        x = content["inputs"]["x"]
        self.reply({"outputs": {"x": x, "port": [self.client_address[1]] * len(x)}})

    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def forked(work):
    """The result of `work` in a forked process, as JSON; it fails after ten seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "the child died or hung"


def call(client, first):
    """The port of the connection, after a check that the reply is that of the request."""
    x = np.arange(first, first + 3, dtype=np.float32)
    got = client.predict({"x": x})
    np.testing.assert_array_equal(got["x"], x)
    return int(got["port"][0])


def test_processes_do_not_share_connections(port):
    with Client(f"127.0.0.1:{port}", standin.SCHEMA, "m", "rest") as client:
        mine = call(client, 0)
        assert call(client, 1) == mine  # control: kept open
        with ThreadPoolExecutor(1) as pool:  # the parent calls at the same time
            calls = pool.submit(lambda: [call(client, 1000 + n) for n in range(30)])
            theirs = forked(lambda: [call(client, n) for n in range(30)])
            assert len(set(theirs)) == 1 and theirs[0] not in {mine, *calls.result()}
        assert call(client, 2) == mine  # the child has closed nothing of the parent's
        assert forked(lambda: forked(lambda: call(client, 5))) not in (mine, theirs[0])


def test_locks_that_another_thread_holds(port):
    """Without new locks the child would wait for a thread that it does not have."""
    with Client(f"127.0.0.1:{port}", standin.SCHEMA, "m", "rest") as client:
        call(client, 0)
        transport = client._transport
        with transport._lock, transport._budget._lock:
            assert isinstance(forked(lambda: call(client, 1)), int)
    budget = Budget(Retry())
    held = SimpleNamespace(lock=threading.Lock())
    with held.lock:  # control: such a lock stays held
        assert forked(lambda: held.lock.acquire(blocking=False)) is False
    with budget._lock:
        assert forked(lambda: budget.wait(ServingError("UNAVAILABLE", ""), 1, 1e12) is not None) is True


def test_an_async_client_says_where_it_belongs(port):
    pytest.importorskip("grpc")

    async def use():
        async with AsyncClient("127.0.0.1:1", standin.SCHEMA, "m") as client:

            def child():
                try:
                    client._predict = None
                    client.signatures().send(None)
                except RuntimeError as error:
                    return str(error)

            return forked(child)

    assert asyncio.run(use()) == "an AsyncClient cannot be used in a forked process: make one in the process that uses it"


def test_a_forked_server_is_not_that_of_its_parent():
    """The child neither stops the server nor holds its port."""
    pytest.importorskip("aiohttp")
    from keras_ranking.serving.server.rest_listener import RestListener

    listening = socket.create_server(("127.0.0.1", 0))
    listener = RestListener.__new__(RestListener)
    listener._runner = SimpleNamespace(server=None)
    listener._socket = SimpleNamespace(sockets=[listening])
    address = listening.getsockname()

    def child():
        listener.after_fork()
        with pytest.raises(OSError):
            listening.accept()
        return os.fstat(listening.fileno()).st_rdev == os.stat(os.devnull).st_rdev

    assert forked(child) is True
    with socket.create_connection(address, timeout=5) as made:  # the parent's is as before
        listening.accept()[0].close()
        assert made.recv(1) == b""
    listening.close()
