"""Broken versions and killed processes: the old version continues, clients recover, and the memory is released."""

from __future__ import annotations

import re
import shutil
import threading
import time

import numpy as np
import pytest

from keras_ranking.serving import Retry, ServingError
from tests.serving.calling import copy_version, frames, until
from tests.serving.server.faults.faulty_calls import MEMORY, Process, crowd, offer_broken

grpc = pytest.importorskip("grpc")

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]


@pytest.mark.parametrize("damage", ["graph", "weights", "empty", "card"])
def test_corrupt_version(server, folder, second, damage):
    """The old version continues; status and log have the error."""
    number = {"graph": 2, "weights": 3, "empty": 4, "card": 5}[damage]
    states = offer_broken(server, folder, second, damage, number)
    assert states["1"]["state"] == "AVAILABLE"
    assert states[str(number)]["status"]["error_code"] == "UNKNOWN" and states[str(number)]["status"]["error_message"]
    until(lambda: f"version {number} of" in (folder.parent / "errors.txt").read_text())
    with server.client(version=number) as client, pytest.raises(ServingError, match=f"version {number} is not loaded"):
        client.score(*frames(1, 1))
    shutil.rmtree(folder / str(number))


def test_killed_and_started_again(first, want, tmp_path):
    """kill -9 under load: every call ends in scores or in UNAVAILABLE without delay; the same clients continue after the restart."""
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
        # With the default retries a client survives a restart within its timeout.
        with running.client("grpc") as client:
            np.testing.assert_allclose(client.score(*frames(6, 4)), want, rtol=0, atol=1e-5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        running.kill()
    assert {code for code, _, _ in outcomes} == {"OK", "UNAVAILABLE"}
    assert all(right for _, right, _ in outcomes) and max(seconds for _, _, seconds in outcomes) < 8


def test_memory_is_released(server, memory_before):
    """The last test of the file: after all faults above and concurrent bodies just below the limit."""
    for _ in range(4):
        crowd(server)
    until(lambda: not server.connections)
    until(lambda: server.memory - memory_before < MEMORY, 20)
    log = server.errors.read_text()
    assert "Traceback" not in re.sub(r"version \d+ of .* is not served: .*", "", log), log[-2000:]
