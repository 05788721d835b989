"""Requests, expected replies and versions for the tests of serving. Fixtures are in conftest.py."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.serving import Client
from keras_ranking.serving.checking.sample_requests import alone, random_requests
from tests.serving import standin


def until(condition, seconds=60.0):
    """Wait until the condition holds; a machine under load may need long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.02)


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
    """Copy a version atomically, as an export writes it."""
    shutil.copytree(source, folder / ".copying")
    (folder / ".copying").rename(folder / str(number))
