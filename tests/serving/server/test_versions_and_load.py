"""The embedded server: start, new versions, stop and load."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_ranking.serving import Limits, Retry, ServingError, serve
from tests.serving.calling import connect, copy_version, frames, until
from tests.serving.server.calls import CLOSE, open_server, rest

grpc = pytest.importorskip("grpc")


pytestmark = pytest.mark.one_backend


def test_folder_without_a_served_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        serve(tmp_path / "nothing")
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker" / "latest").mkdir()
    with pytest.raises(FileNotFoundError, match="no versions in .*ranker"):
        serve(tmp_path / "ranker")
    (tmp_path / "ranker" / "1").mkdir()
    with pytest.raises(RuntimeError, match="no version in .* can be served. Version 1: .*saved_model.pb"):
        serve(tmp_path / "ranker")


@pytest.mark.parametrize("settings", [{"labels": {"canary": 4}}, {"poll_seconds": 0}, {"threads": -1}, {"name": "a/b"}])
def test_settings_out_of_range(first, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        serve(first.version.parent, **settings)
    with pytest.raises(ValueError, match="`queue` must be a positive number. Received: queue=0"):
        Limits(queue=0)


def test_port_that_is_taken(first, server):
    with pytest.raises(OSError, match=rf"REST server cannot listen on 127.0.0.1:{server.rest_port}"):
        serve(first.version.parent, rest_port=server.rest_port, grpc_port=0)
    with pytest.raises(OSError, match=rf"gRPC server cannot listen on 127.0.0.1:{server.grpc_port}"):
        serve(first.version.parent, rest_port=0, grpc_port=server.grpc_port)


def test_new_version_under_load(first, second, tmp_path):
    """No call fails, each gets the scores of the old or the new version; the new one takes over, the old one is unloaded."""
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    request = frames(6, 4)
    failures, replies, stop = [], [], threading.Event()

    def load(protocol):
        with connect(running, protocol) as client:
            while not stop.is_set():
                try:
                    replies.append((time.monotonic(), client.score(*request)["click"].to_numpy()))
                except Exception as error:
                    failures.append(error)

    with open_server(folder) as running:
        with connect(running, "grpc") as client:
            old = client.score(*request)["click"].to_numpy()
        threads = [threading.Thread(target=load, args=(protocol,)) for protocol in ("grpc", "rest")]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(replies) > 5)
            copy_version(second.version, folder, 2)
            until(lambda: running.version == 2)
            swapped = time.monotonic()
            count = len(replies)
            until(lambda: len(replies) > count + 5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        with connect(running, "rest") as client:
            new = client.score(*request)["click"].to_numpy()
        until(lambda: [s["state"] for s in rest(running, "/v1/models/ranker")[1]["model_version_status"]] == ["AVAILABLE", "END"])
        assert rest(running, "/v1/models/ranker/versions/1:predict", {"inputs": {}})[0] == 404
        shutil.rmtree(folder / "2")  # roll back
        until(lambda: running.version == 1)
    assert not failures
    assert np.abs(old - new).max() > 1e-2
    assert all(np.allclose(scores, old, **CLOSE) or np.allclose(scores, new, **CLOSE) for _, scores in replies)
    assert all(np.allclose(scores, new, **CLOSE) for when, scores in replies if when > swapped + 5.0)


def test_broken_new_version(first, second, tmp_path, caplog):
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    request = frames(3, 5)
    with open_server(folder) as running, connect(running, "grpc") as client, caplog.at_level(logging.ERROR, "keras_ranking.serving"):
        old = client.score(*request)
        shutil.copytree(second.version, folder / ".2")
        weights = folder / ".2/variables/variables.data-00000-of-00001"
        weights.write_bytes(weights.read_bytes()[:100])
        (folder / ".2").rename(folder / "2")
        (folder / "3").mkdir()
        until(lambda: {"version 2", "version 3"} <= {" ".join(record.getMessage().split()[:2]) for record in caplog.records})
        np.testing.assert_array_equal(client.score(*request), old)
        assert running.version == 1
        states = rest(running, "/v1/models/ranker")[1]["model_version_status"]
        assert [(s["version"], s["state"], s["status"]["error_code"]) for s in states] == [
            ("3", "END", "UNKNOWN"),
            ("2", "END", "UNKNOWN"),
            ("1", "AVAILABLE", "OK"),
        ]
        errors = len(caplog.records)
        time.sleep(0.5)
        assert len(caplog.records) == errors  # logged once, not at every poll
        shutil.rmtree(folder / "2")
        copy_version(second.version, folder, 2)  # repaired
        until(lambda: running.version == 2)
        assert np.abs(client.score(*request) - old).to_numpy().max() > 1e-2


def test_start_with_a_broken_highest_version(first, tmp_path):
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    (folder / "2").mkdir()
    with open_server(folder) as running:
        assert running.version == 1


def test_stop_finishes_calls_in_progress(first, tmp_path):
    """Calls in progress when the server stops get their scores; later ones get UNAVAILABLE, and no other error."""
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    outcomes = []

    def load(protocol):
        with connect(running, protocol) as client:
            while True:
                try:
                    outcomes.append(client.score(*request))
                except ServingError as error:
                    outcomes.append(error)
                    return

    request = frames(5, 3)
    running = open_server(folder)
    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, protocol) for protocol in ("grpc", "rest", "grpc", "rest")]
        until(lambda: len(outcomes) > 20)
        running.stop()
        running.stop()
        for future in loads:
            future.result(timeout=60)
    errors = [outcome for outcome in outcomes if isinstance(outcome, ServingError)]
    assert {error.code for error in errors} == {"UNAVAILABLE"} and len(errors) == 4, errors
    with pytest.raises(OSError):
        rest(running, "/healthz")


def test_full_queue(first, tmp_path):
    """A full queue is an error in REST and gRPC, and calls succeed after the load."""
    limits = Limits(queue=1, batch=1)
    with serve(first.version.parent, rest_port=0, grpc_port=0, limits=limits) as running:
        outcomes = []

        def load(protocol):
            with connect(running, protocol, retry=Retry(attempts=1)) as client:
                for _ in range(15):
                    try:
                        outcomes.append((protocol, client.score(*frames(300, 200)).shape))
                    except ServingError as error:
                        outcomes.append((protocol, error.code, error.message))

        threads = [threading.Thread(target=load, args=(protocol,)) for protocol in ("grpc", "rest") * 6]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [outcome for outcome in outcomes if len(outcome) == 3]
        assert all(code == "RESOURCE_EXHAUSTED" and "1 calls are waiting already" in message for _, code, message in refused)
        assert {outcome[1] for outcome in outcomes if len(outcome) == 2} == {(200, 2)}
        assert {"grpc", "rest"} == {outcome[0] for outcome in refused}
        with connect(running, "grpc") as client:
            assert client.score(*frames(3, 2)).shape == (2, 2)


def test_many_threads(server, first):
    """8 threads x 25 requests of mixed lengths, in REST and gRPC: each reply belongs to its request."""
    rng = np.random.default_rng(0)
    wanted = [frames(int(rng.integers(0, 40)), int(rng.integers(1, 20)), seed=seed) for seed in range(25)]
    with connect(server, "grpc") as client:
        alone = [client.score(*request) for request in wanted]
    assert np.abs(alone[0].to_numpy()[0] - alone[1].to_numpy()[0]).max() > 1e-4  # control: a wrong reply is found

    def load(number):
        with connect(server, "grpc" if number % 2 else "rest") as client:
            order = np.random.default_rng(number).permutation(len(wanted))
            return [(index, client.score(*wanted[index])) for index in order]

    with ThreadPoolExecutor(8) as pool:
        results = [pair for replies in pool.map(load, range(8)) for pair in replies]
    assert len(results) == 200
    for index, got in results:
        assert got.index.equals(wanted[index][1].index)
        np.testing.assert_allclose(got, alone[index], **CLOSE)
