"""The listeners: readiness, deadlines and limits."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from keras_ranking.serving import Limits, Retry, ServingError
from keras_ranking.serving.server.batching import Batcher
from tests.serving.calling import connect, frames, requests, until
from tests.serving.server.listening import Barrier, call, columns, health, serving, waiting

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.one_backend


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
