"""One exported model of each of two seeds, and a running server, shared by the tests of serving."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import keras
import pytest

from keras_ranking import data, models
from keras_ranking.serving import Limits, export, serve
from keras_ranking.serving.protocol.model_folder import read_card
from tests.serving import standin
from tests.serving.calling import connect


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """Model, version folder and card of a verified export."""
    model = standin.make(seed=1)
    version = export(model, tmp_path_factory.mktemp("first") / "ranker")
    return SimpleNamespace(model=model, version=version, card=read_card(version))


@pytest.fixture(scope="session")
def second(tmp_path_factory):
    """The same with other weights."""
    model = standin.make(seed=2)
    version = export(model, tmp_path_factory.mktemp("second") / "ranker", verify=False)
    return SimpleNamespace(model=model, version=version, card=read_card(version))


@pytest.fixture(scope="session")
def logged():
    """A small log, with the schema fitted on it."""
    log = data.simulate(members=20, days=2, seed=0)
    return SimpleNamespace(events=log.events, schema=log.schema.fit(log.events))


@pytest.fixture(scope="session")
def small(logged, tmp_path_factory):
    """A small untrained CADET, its run folder, and an export that passed verification and the skew check."""
    keras.utils.set_random_seed(3)
    model = models.CADET(logged.schema, dim=8, num_layers=1, num_heads=2, tower_hidden=(8,), id_dim=4, action_hidden=8)
    run = standin.save(model, tmp_path_factory.mktemp("run"))
    span = {"learned": ["2026-05-01T00:00:00+00:00", "2026-05-03T12:00:00+00:00"], "read": ["2026-04-01T00:00:00+00:00"] * 2}
    history = {"backend": "jax", "log": "simulated", "train_events": 99, "seed": 4, "data_span": span}
    (run / "history.json").write_text(json.dumps(history))
    (run / "validation.json").write_text(json.dumps({"click": {"auc": 0.625, "log_loss": None}}))
    version = export(model, tmp_path_factory.mktemp("small") / "ranker", events=logged.events, run=run)
    return SimpleNamespace(model=model, run=run, version=version, card=read_card(version))


@pytest.fixture(scope="session")
def server(first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "ranker"
    shutil.copytree(first.version, folder / "1")
    limits = Limits(body_bytes=4 * 2**20, batch=16)
    with serve(folder, rest_port=0, grpc_port=0, limits=limits, labels={"stable": 1}) as running:
        yield running


@pytest.fixture(scope="session")
def channel(server):
    """A gRPC channel without limits."""
    grpc = pytest.importorskip("grpc")
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as made:
        yield made


@pytest.fixture(params=["grpc", "rest"])
def client(server, request):
    with connect(server, request.param) as made:
        yield made
