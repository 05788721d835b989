"""The client: scores equal to Keras's, and every mistake named before anything is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_ranking import Schema
from keras_ranking.serving import Client, Request, ServingError, pad_requests, request_tensors
from keras_ranking.serving.protocol.signature import Signature
from tests.serving import standin
from tests.serving.calling import connect, frames

pytestmark = pytest.mark.one_backend
NAMES = ["history_length", "candidate_count", "request_time", "history_time"]
NAMES += [f"history_{name}" for name in ("item_id", "topic", "age_hours", "text", "affinity", "click", "dwell_seconds")]
NAMES += [f"candidate_{name}" for name in ("item_id", "topic", "age_hours", "text", "affinity")]


def keras_scores(model, request):
    """Scores of one request by the Keras model."""
    batch = pad_requests([request_tensors(standin.SCHEMA, *request, NAMES)])
    return standin.scores(model, batch)


# -- encoding -------------------------------------------------------------------------------------------------------------


def test_request_tensors():
    history, candidates, now = frames(4, 3)
    tensors = request_tensors(standin.SCHEMA, history, candidates, now, NAMES)
    assert list(tensors) == NAMES
    assert {name: (str(values.dtype), values.shape) for name, values in tensors.items() if "text" in name or values.ndim == 0} == {
        "history_length": ("int32", ()),
        "candidate_count": ("int32", ()),
        "request_time": ("int32", ()),
        "history_text": ("float32", (4, 3)),
        "candidate_text": ("float32", (3, 3)),
    }
    assert (tensors["history_length"], tensors["candidate_count"]) == (4, 3)
    assert tensors["request_time"] == now - standin.SCHEMA.epoch
    np.testing.assert_array_equal(tensors["history_time"], history["shown_at"] - standin.SCHEMA.epoch)
    np.testing.assert_allclose(tensors["candidate_age_hours"], np.log1p(candidates["age_hours"]), rtol=1e-6)
    words = {"news": 1, "sport": 2, "jobs": 3}
    assert tensors["candidate_topic"].tolist() == [words.get(topic, 0) for topic in candidates["topic"]]


@pytest.mark.parametrize("history", [None, pd.DataFrame(), frames(2, 1)[0].iloc[:0]])
def test_empty_history(history):
    _, candidates, now = frames(1, 2)
    tensors = request_tensors(standin.SCHEMA, history, candidates, now, NAMES)
    assert tensors["history_length"] == 0 and tensors["history_text"].shape == (0, 3)
    assert {str(tensors[name].dtype) for name in ("history_item_id", "history_topic", "history_time")} == {"int32"}
    assert pad_requests([tensors])["history_text"].shape == (1, 1, 3)


def test_padding():
    requests = [request_tensors(standin.SCHEMA, *frames(length, count), NAMES) for length, count in ((3, 1), (0, 4))]
    batch = pad_requests(requests)
    assert batch["history_text"].shape == (2, 3, 3) and batch["candidate_topic"].shape == (2, 4)
    np.testing.assert_array_equal(batch["history_length"], [3, 0])
    np.testing.assert_array_equal(batch["history_text"][0], requests[0]["history_text"])
    assert not batch["history_text"][1].any() and not batch["candidate_text"][0, 1:].any()
    with pytest.raises(ValueError, match="at least one request"):
        pad_requests([])
    with pytest.raises(ValueError, match=r"Request 1 and request 0 differ in \['history_click'\]"):
        pad_requests([requests[0], {name: values for name, values in requests[1].items() if name != "history_click"}])


@pytest.mark.parametrize(
    "now", [1_790_000_000, 1_790_000_000.0, pd.Timestamp("2026-09-21 14:13:20"), pd.Timestamp("2026-09-21 16:13:20+02:00")]
)
def test_forms_of_the_request_time(now):
    history, candidates, _ = frames(2, 2)
    assert (
        request_tensors(standin.SCHEMA, history, candidates, now, ["request_time"])["request_time"] == 1_790_000_000 - standin.SCHEMA.epoch
    )


def mistaken(mistake):
    history, candidates, now = frames(4, 3)
    return mistake(history, candidates, now)


MISTAKES = {
    "no candidate": (lambda h, c, t: (h, c.iloc[:0], t), "`candidates` must have at least one row"),
    "candidate column": (lambda h, c, t: (h, c.drop(columns="topic"), t), "column 'topic' is missing in the candidates. There are:"),
    "history column": (lambda h, c, t: (h.drop(columns="dwell_seconds"), c, t), "column 'dwell_seconds' is missing in the history"),
    "no times": (lambda h, c, t: (h.drop(columns="shown_at"), c, t), "the history must have the time column 'shown_at'"),
    "order": (lambda h, c, t: (h.iloc[[1, 0, 2, 3]], c, t), "oldest first. Column 'shown_at' goes back at row 1"),
    "later": (lambda h, c, t: (h, c, int(h["shown_at"].iloc[-1]) - 5), "must not be later than the request.*is 5 s after it at row 3"),
    "before the epoch": (lambda h, c, t: (h, c, 1), "in the request time: column 'shown_at' .*before the schema's epoch"),
    "two members": (lambda h, c, t: (h.assign(member_id=list("mmmn")), c, t), "must be of one member. Received: 2 members"),
    "nan": (lambda h, c, t: (h, c.assign(affinity=[1.0, np.nan, 2.0]), t), "in the candidates: column 'affinity' must .*row 1"),
    "negative": (lambda h, c, t: (h.assign(dwell_seconds=-1.0), c, t), "in the history: column 'dwell_seconds'.*must not be negative"),
    "vector": (lambda h, c, t: (h, c.assign(text=[[1.0], [1.0], [1.0]]), t), "in the candidates: column 'text' must hold vectors of 3"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(client, case):
    mistake, message = MISTAKES[case]
    client.input_names()
    client._transport.predict = lambda inputs: pytest.fail("it was sent")
    with pytest.raises(ValueError, match=message):
        client.score(*mistaken(mistake))
    with pytest.raises(ValueError, match=f"request 1: .*{message}"):
        client.score_many([frames(1, 1), mistaken(mistake)])


def test_frames_only(client):
    history, candidates, now = frames(2, 2)
    with pytest.raises(TypeError, match="`candidates` must be a DataFrame. Received: dict"):
        client.score(history, candidates.to_dict(), now)
    with pytest.raises(TypeError, match="`history` must be a DataFrame. Received: list"):
        client.score([], candidates, now)


# -- scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "count"), [(5, 4), (0, 1), (1, 30), (64, 2)])
def test_scores(client, first, length, count):
    request = frames(length, count, seed=length)
    got = client.score(*request)
    want = keras_scores(first.model, request)
    assert list(got.columns) == ["click", "like"] and got.index.equals(request[1].index)
    for task in got:
        assert got[task].dtype == np.float32
        np.testing.assert_allclose(got[task], want[task][0], rtol=0, atol=1e-5)


def test_order_of_candidates_is_kept(client):
    history, candidates, now = frames(5, 6)
    got = client.score(history, candidates, now)
    back = client.score(history, candidates.iloc[::-1], now)
    pd.testing.assert_frame_equal(back.iloc[::-1], got, atol=1e-6)
    assert got["click"].nunique() == 6  # control: the order would show


def test_many_requests(client, first):
    requests = [frames(length, count, seed=10 * length + count) for length, count in ((3, 2), (0, 7), (20, 1), (5, 5), (1, 1))]
    got = client.score_many([Request(*requests[0]), *requests[1:]], batch=2)
    assert len(got) == 5
    for request, scores in zip(requests, got, strict=True):
        np.testing.assert_allclose(scores["like"], keras_scores(first.model, request)["like"][0], rtol=0, atol=1e-5)
    assert client.score_many([]) == []
    with pytest.raises(ValueError, match="`batch` must be a positive integer"):
        client.score_many(requests, batch=0)


def test_chosen_tasks(server):
    with connect(server, "rest", tasks=["like"]) as client:
        assert list(client.score(*frames(2, 2)).columns) == ["like"]
    with pytest.raises(ValueError, match="unknown task 'follow'"):
        connect(server, "grpc", tasks=["follow"])


@pytest.mark.parametrize(
    ("settings", "name"), [({"protocol": "http"}, "protocol"), ({"timeout": 0}, "timeout"), ({"address": ""}, "address")]
)
def test_settings(settings, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        Client(**({"address": "127.0.0.1:1", "schema": standin.SCHEMA, "model": "ranker"} | settings))
    with pytest.raises(ValueError, match="`address` must be HOST:PORT"):
        Client("ftp://127.0.0.1:1", standin.SCHEMA, model="ranker", protocol="rest")


# -- servers that say no --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_no_server(protocol):
    client = Client("127.0.0.1:1", standin.SCHEMA, model="ranker", protocol=protocol, timeout=5)
    with client, pytest.raises(ServingError, match="127.0.0.1:1") as caught:
        client.score(*frames(1, 1))
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_unknown_model_and_signature(server, protocol):
    port = server.grpc_port if protocol == "grpc" else server.rest_port
    for settings, message, code in (
        ({"model": "other"}, 'model "other" not found', "NOT_FOUND"),
        ({"signature": "guess"}, 'signature "guess" not found', "FAILED_PRECONDITION"),
        ({"version": 9}, "version 9 is not loaded", "NOT_FOUND"),
        ({"label": "canary"}, 'label "canary" not found', "INVALID_ARGUMENT"),
    ):
        client = Client(f"127.0.0.1:{port}", standin.SCHEMA, **{"model": "ranker", "protocol": protocol, **settings})
        with client, pytest.raises(ServingError, match=message) as caught:
            client.score(*frames(1, 1))
        assert caught.value.code == code


def test_schema_of_another_model(client):
    """The server's inputs are not the schema's columns."""
    client.schema = standin.SCHEMA.model_copy(update={"features": standin.SCHEMA.features[:-1]})
    with pytest.raises(ValueError, match="the model's input '(history|candidate)_affinity' is not a column of the schema"):
        client.score(*frames(1, 1))


def test_schema_from_the_export(server, first):
    path = first.version / "assets.extra/schema.json"
    assert Schema.load(path) == standin.SCHEMA
    with Client(f"127.0.0.1:{server.rest_port}", path, model="ranker", protocol="rest") as client:
        assert client.score(*frames(1, 1)).shape == (1, 2)


def test_inputs_that_changed_since(client):
    """Names read from an older version: read again, and the request is sent once more."""
    now = client.signatures()["serving_default"]
    before = Signature(now.name, {name: tensor for name, tensor in now.inputs.items() if name != "history_click"}, now.outputs)
    client._signatures = {now.name: before}
    assert client.score(*frames(2, 2)).shape == (2, 2)
    assert client.signatures()["serving_default"] == now


def test_idle_connection_closed_by_the_server(server):
    with connect(server, "rest") as client:
        want = client.score(*frames(2, 2))
        client._transport._local.connection.sock.close()
        client._transport._local.connection.close()
        pd.testing.assert_frame_equal(client.score(*frames(2, 2)), want)


def run(code):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_imported():
    """A REST client needs neither TensorFlow nor Keras; the package itself needs nothing."""
    code = """
import sys
import keras_ranking as kr
kr.serving.Client("127.0.0.1:1", kr.Schema(member="m", time="t", request="r", features=[], tasks=["click"]), model="x", protocol="rest")
kr.serving.request_tensors, kr.serving.Limits
print({"tensorflow", "keras", "grpc", "aiohttp", "jax", "torch"} & sys.modules.keys())
"""
    assert run(code).strip() == "set()"


@pytest.mark.parametrize("missing", ["aiohttp", "grpc_health"])
def test_missing_extra(missing):
    code = f"""
import sys
sys.modules["{missing}"] = None
import keras_ranking as kr
try:
    kr.serving.serve
except ModuleNotFoundError as error:
    print(error)
"""
    assert "pip install keras-ranking[serving]" in run(code)


def test_names_stay_functions():
    """Importing the modules must not hide the public functions behind modules of the same name."""
    code = """
import importlib, pkgutil
import keras_ranking.serving as serving
modules = {module.name for module in pkgutil.iter_modules(serving.__path__)}
assert not modules & set(serving.__all__), modules
from keras_ranking.serving import Client, Request, export, request_tensors
assert callable(serving.export) and callable(export)
try:
    serving.nothing
except AttributeError as error:
    print(error)
"""
    assert "has no attribute 'nothing'" in run(code)
