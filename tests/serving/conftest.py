"""One exported model of each of two seeds, and a running server, shared by the tests of serving."""

from __future__ import annotations

import fcntl
import json
import os
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
def once(tmp_path_factory):
    """`once(name, make)`: `make(folder)`, called by the first process of a test run that asks for it; the folder for all of them."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "shared"
    shared.mkdir(exist_ok=True)

    def get(name, make):
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / f"{name}.made").exists():
                make(shared / name)
                (shared / f"{name}.made").touch()
        return shared / name

    return get


def exported(once, name, model, make):
    """Model, version folder and card of an export, `make(folder)`, that the processes of a test run share."""
    version = once(name, make) / "ranker" / "1"
    return SimpleNamespace(model=model, version=version, card=read_card(version))


@pytest.fixture(scope="session")
def first(once):
    """Model, version folder and card of a verified export."""
    model = standin.make(seed=1)
    return exported(once, "first", model, lambda folder: export(model, folder / "ranker"))


@pytest.fixture(scope="session")
def second(once):
    """The same with other weights."""
    model = standin.make(seed=2)
    return exported(once, "second", model, lambda folder: export(model, folder / "ranker", verify=False))


@pytest.fixture(scope="session")
def logged():
    """A small log, with the schema fitted on it."""
    log = data.simulate(members=20, days=2, seed=0)
    return SimpleNamespace(events=log.events, schema=log.schema.fit(log.events))


@pytest.fixture(scope="session")
def small(once, logged):
    """A small untrained CADET, its run folder, and an export that passed verification and the skew check."""
    keras.utils.set_random_seed(3)
    model = models.CADET(logged.schema, dim=8, num_layers=1, num_heads=2, tower_hidden=(8,), id_dim=4, action_hidden=8)

    def make(folder):
        run = standin.save(model, folder / "run")
        span = {"learned": ["2026-05-01T00:00:00+00:00", "2026-05-03T12:00:00+00:00"], "read": ["2026-04-01T00:00:00+00:00"] * 2}
        history = {"backend": "jax", "log": "simulated", "train_events": 99, "seed": 4, "data_span": span}
        (run / "history.json").write_text(json.dumps(history))
        (run / "validation.json").write_text(json.dumps({"click": {"auc": 0.625, "log_loss": None}}))
        export(model, folder / "ranker", events=logged.events, run=run)

    found = exported(once, "small", model, make)
    found.run = found.version.parents[1] / "run"
    return found


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
