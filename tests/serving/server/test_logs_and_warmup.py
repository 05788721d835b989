"""The server: logs, warm-up requests, and the command line."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess

import numpy as np
import pytest

from keras_ranking.serving import Client, ServingError, serve
from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.server.logs import JsonFormatter
from tests.serving.calling import connect, copy_version, frames, requests
from tests.serving.server.listening import TOKEN, write_warmup

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.one_backend


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
