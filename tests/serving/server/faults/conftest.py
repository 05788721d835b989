"""One server for the tests of faults, whose memory is measured first; after each fault it must score."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

from keras_ranking.serving import Retry
from tests.serving.calling import copy_version, frames
from tests.serving.server.faults.faulty_calls import Process, crowd, offer_broken


@pytest.fixture(scope="session")
def folder(first, tmp_path_factory):
    made = tmp_path_factory.mktemp("faults") / "ranker"
    made.mkdir()
    copy_version(first.version, made, 1)
    return made


@pytest.fixture(scope="session")
def server(folder):
    made = Process(folder)
    yield made
    assert made.process.poll() is None, "the server died"
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(60) == 0


@pytest.fixture(scope="session")
def want(server):
    with server.client() as client:
        return client.score(*frames(6, 4))


@pytest.fixture(scope="session")
def memory_before(server, folder, second, want):
    """Memory after some calls of all kinds: loading a broken graph enlarges TensorFlow's pools by some 80 MiB, once."""
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
def still_scores(server, want, memory_before):
    """After each fault the next request is scored."""
    yield
    for protocol in ("grpc", "rest"):
        with server.client(protocol, retry=Retry(attempts=1)) as client:
            np.testing.assert_allclose(client.score(*frames(6, 4)), want, rtol=0, atol=1e-5)
