"""Training-serving skew of the model on a running server."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from keras_ranking import cli, models
from keras_ranking.serving import Client, check_skew, serve
from keras_ranking.serving.protocol.signature import Signature

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.one_backend, pytest.mark.slow]  # the fixture is an export with all its checks


@pytest.fixture(scope="module")
def running(small):
    with serve(small.version.parent, rest_port=0, grpc_port=0, labels={"canary": 1}) as server:
        yield server


@pytest.mark.parametrize("protocol", ["grpc", pytest.param("rest", marks=pytest.mark.release)])
def test_of_a_server(running, small, logged, protocol):
    address = f"127.0.0.1:{getattr(running, f'{protocol}_port')}"
    with Client(address, small.model.schema, "ranker", protocol, label="canary") as client:
        report = check_skew(client, small.model, logged.events, sample=6, seed=5)
        assert not report.found and report.requests == 6 and report.same_schema and report.bound == 1e-5
        assert {name.split()[0] for name in report.scores} == {"serving_default", "raw", "training"}
        local = check_skew(small.version, small.model, logged.events, sample=6, seed=5)
        assert {name: entry.compared for name, entry in report.features.items()} == {n: e.compared for n, e in local.features.items()}
        other = models.CADET(small.model.schema, **small.model.arguments)  # other weights
        found = check_skew(client, other, logged.events, sample=3)
        assert found.found and not any(entry.differ for entry in found.features.values())
        client.versions()  # the client stays open


def test_command(running, small, logged, tmp_path, capsys):
    events = tmp_path / "log.parquet"
    logged.events.to_parquet(events)
    ask = ["skew", "--server", f"127.0.0.1:{running.grpc_port}", "--name", "ranker", "--keras", str(small.run), "--events", str(events)]
    assert cli.main([*ask, "--sample", "3", "--label", "canary", "--json", str(tmp_path / "report.json")]) == 0
    assert "no skew: 3 requests: no difference" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["requests"] == 3
    assert cli.main([*ask, "--version", "9"]) == 2
    assert "version 9 is not loaded" in capsys.readouterr().err


def test_a_model_without_raw(small, logged):
    signature = Signature("serving_default", {}, {})
    client = SimpleNamespace(schema=small.model.schema, signatures=lambda: {"serving_default": signature})
    with pytest.raises(ValueError, match="the model on the server has no signature 'raw'"):
        check_skew(client, small.model, logged.events)
