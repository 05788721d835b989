"""One exported model of each of two seeds, and a running server, shared by the tests of serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import standin

from keras_ranking import data, models
from keras_ranking.serving import Client, Limits, export, serve
from keras_ranking.serving.examples import alone, random_requests
from keras_ranking.serving.layout import read_card


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """Model, version folder and card of an export that passed its gate."""
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
    """A small CADET trained on nothing, its run folder, and an export that passed its gate and the skew check."""
    keras.utils.set_random_seed(3)
    model = models.CADET(logged.schema, dim=8, num_layers=1, num_heads=2, tower_hidden=(8,), id_dim=4, action_hidden=8)
    run = standin.save(model, tmp_path_factory.mktemp("run"))
    (run / "history.json").write_text(json.dumps({"backend": "jax", "log": "simulated", "train_events": 99, "seed": 4}))
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
    """A gRPC channel without limits of its own."""
    grpc = pytest.importorskip("grpc")
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as made:
        yield made


@pytest.fixture(params=["grpc", "rest"])
def client(server, request):
    with connect(server, request.param) as made:
        yield made


def connect(server, protocol, **settings):
    port = server.grpc_port if protocol == "grpc" else server.rest_port
    return Client(f"127.0.0.1:{port}", standin.SCHEMA, model=server.name, protocol=protocol, **settings)


def expected(model, card, batch):
    """Keras scores of every request alone, cut to its lengths, at the width of the batch."""
    width = batch["candidate_time"].shape[1] if "candidate_time" in batch else batch["candidate_item_id"].shape[1]
    rows = []
    for row in range(len(batch["request_time"])):
        scores = standin.scores(model, alone(batch, card.inputs, row))
        rows.append({k: np.pad(v, [(0, 0), (0, width - v.shape[1])] + [(0, 0)] * (v.ndim - 2)) for k, v in scores.items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def requests(card, history=(3, 0, 8), candidates=(2, 5, 1), seed=7, hostile=True):
    return random_requests(card.inputs, history, candidates, seed=seed, hostile=hostile)


def frames(length, count, seed=0, now=1_790_000_000):
    """A history, candidates and the time of the request, as rows of a log."""
    rng = np.random.default_rng(seed)

    def items(rows):
        return {
            "item_id": rng.integers(1, 10**9, rows),
            "topic": rng.choice(["news", "sport", "jobs", "unheard of"], rows),
            "age_hours": rng.exponential(30, rows),
            "text": list(rng.standard_normal((rows, 3))),
            "affinity": rng.standard_normal(rows),
        }

    history = pd.DataFrame(
        items(length)
        | {
            "member_id": ["m"] * length,
            "shown_at": now - np.sort(rng.integers(1, 10**6, length))[::-1],
            "click": rng.integers(0, 2, length),
            "dwell_seconds": rng.exponential(20, length),
        }
    )
    candidates = pd.DataFrame(items(count), index=rng.permutation(count * 10)[:count])
    return history, candidates, now


def copy_version(source: Path, folder: Path, number: int) -> None:
    """As an export puts it there: whole or not at all."""
    shutil.copytree(source, folder / ".copying")
    (folder / ".copying").rename(folder / str(number))
