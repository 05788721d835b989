"""A server in a separate process, and faulty calls to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import threading
from pathlib import Path

import psutil

from keras_ranking.serving import Client
from tests import preloaded
from tests.serving import standin
from tests.serving.calling import until

ROOT = Path(__file__).parents[4]
READ_SECONDS = 1.5
BODY = 2 * 2**20
# Largest growth of the process by all the faults: pools of the allocator and of TensorFlow. A leak of one body (2 MiB) in each of the
# thousand bad requests would be thirty times as much.
MEMORY = 64 * 2**20
CODE = f"""
import sys
from keras_ranking.serving import Limits, serve
limits = Limits(body_bytes={BODY}, batch=16, read_seconds={READ_SECONDS}, queue=64)
server = serve(sys.argv[1], rest_port=int(sys.argv[2]), grpc_port=int(sys.argv[3]), limits=limits, poll_seconds=0.1)
print("ports", server.rest_port, server.grpc_port, flush=True)
server.wait()
"""


class Process:
    """A server in a separate process."""

    def __init__(self, folder, rest=0, grpc=0):
        ports, self.errors = (folder.parent / f"{name}.txt" for name in ("ports", "errors"))
        ports.unlink(missing_ok=True)
        settings = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = preloaded.Process(["-c", CODE, str(folder), str(rest), str(grpc)], "tensorflow", settings, ROOT, ports, self.errors)
        until(lambda: (ports.exists() and ports.read_text().endswith("\n")) or self.process.poll() is not None)
        line = ports.read_text()
        assert line.startswith("ports"), self.errors.read_text()
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


def post(server, body, headers=None):
    """Status and JSON."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.rest, timeout=30)) as connection:
        connection.request("POST", "/v1/models/ranker:predict", body, headers or {})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def crowd(server):
    """24 concurrent bodies just below the limit, all invalid. The process keeps the memory for later ones."""
    bodies = [json.dumps({"inputs": {"history_click": [[0.5] * 200_000]}}).encode(), b"[" * 100_000, b" " * (BODY - 10)]
    threads = [threading.Thread(target=post, args=(server, body)) for body in bodies * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: not server.connections)


def offer_broken(server, folder, second, damage, number):
    """Put a damaged version in the server's folder, and wait until it has failed; returns the states of all versions."""
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


def sent(port, data):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection
