"""The embedded server refuses a request that the graph has marked, and says which input was refused; its neighbours are scored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_ranking.serving import ServingError
from keras_ranking.serving.client.encoding import checked_outputs
from keras_ranking.serving.protocol.marks import marked
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.requests import pad_requests
from tests.serving import standin
from tests.serving.calling import connect, frames, requests

pytest.importorskip("grpc")
pytestmark = pytest.mark.one_backend


@pytest.fixture(params=["grpc", "rest"])
def raw(server, request):
    """A client, and the raw tensors of two requests."""
    with connect(server, request.param) as made:
        signature = made.signatures()["raw"]
        encoded = [raw_request_tensors(standin.SCHEMA, *frames(length, 2, seed=length), signature) for length in (3, 1)]
        yield made, pad_requests(encoded)


@pytest.mark.parametrize("signature", ["raw", "raw_features"])
@pytest.mark.parametrize(
    ("name", "value"), [("candidate_age_hours", -0.5), ("history_time", standin.SCHEMA.epoch - 1), ("history_dwell_seconds", -1.0)]
)
def test_raw_values_that_the_schema_refuses(raw, signature, name, value):
    client, batch = raw
    good = client.predict(batch, signature)
    values = batch[name].copy()
    values[1, 0] = value
    with pytest.raises(ServingError, match=f"input '{name}' of request 1 has a value that the schema refuses") as caught:
        client.predict({**batch, name: values}, signature)
    assert (caught.value.code, caught.value.http_status) == ("INVALID_ARGUMENT", 400)
    again = client.predict(batch, signature)
    for key, found in good.items():
        np.testing.assert_array_equal(again[key], found)


def test_numbers_that_are_too_large(client, first):
    batch = requests(first.card, (2, 1), (2, 1), hostile=False)
    values = batch["candidate_affinity"].copy()
    values[1, 0] = 1e30
    with pytest.raises(ServingError, match="INVALID_ARGUMENT: the model cannot score request 1: .* too large"):
        client.predict({**batch, "candidate_affinity": values})


def test_neighbours_of_refused_calls(server, first):
    """Calls that share a run of the model: the bad ones fail, the good ones have their scores."""
    good = requests(first.card, (2,), (2,), hostile=False)
    bad = {**good, "request_time": np.array([-1], np.int32)}
    with connect(server, "grpc") as client, ThreadPoolExecutor(8) as pool:
        want = client.predict(good)

        def one(number):
            try:
                return client.predict(bad if number % 2 else good)
            except ServingError as error:
                return error.code

        for number, got in enumerate(pool.map(one, range(32))):
            if number % 2:
                assert got == "INVALID_ARGUMENT"
            else:
                np.testing.assert_allclose(got["click"], want["click"], rtol=0, atol=1e-6)


def test_marks_of_another_server():
    """A reply of TensorFlow Serving: the client raises, with the number of the request, unless arrays were asked for."""
    scores = {
        "click": np.array([[0.5, 0.1], [-1, -1], [0.2, 0.0]], np.float32),
        "like": np.array([[0.5, 0.1], [-1, -1], [-1, 0]], np.float32),
    }
    assert marked(scores).tolist() == [False, True, False]
    with pytest.raises(ServingError, match="INVALID_ARGUMENT: the model cannot score request 8: an id is outside its table"):
        checked_outputs(scores, first=7)
    fine = {name: values[[0, 2]] for name, values in scores.items()}
    assert checked_outputs(fine) is fine
    cache = {"cache_key": np.full((2, 1, 3), np.finfo(np.float32).min), "cache_length": np.zeros(2, np.int32)}
    cache["cache_key"][0] = 0.5
    assert marked(cache).tolist() == [False, True]
    assert not marked({"cache_key": np.zeros((0, 1, 3), np.float32)}).any()
