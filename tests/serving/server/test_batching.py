"""Micro-batching: which calls share a run, and that calls of a run do not affect each other."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from keras_ranking.serving import Limits, ServingError
from tests.serving.calling import expected, requests

tf = pytest.importorskip("tensorflow")
from keras_ranking.serving.checking.saved_model import SavedModel  # noqa: E402
from keras_ranking.serving.server.batching import Batcher  # noqa: E402

pytestmark = pytest.mark.one_backend


class Gated(SavedModel):
    """The real model, whose first run waits for a signal, so that what gathers meanwhile is certain."""

    def __init__(self, version):
        super().__init__(version)
        self.runs, self.entered, self.go, self.poison = [], threading.Event(), threading.Event(), None

    def run(self, signature, inputs):
        self.runs.append({name: values.shape for name, values in inputs.items()})
        self.entered.set()
        assert self.go.wait(60)
        if self.poison is not None and self.poison in inputs["request_time"]:
            raise tf.errors.InvalidArgumentError(None, None, "a bad row")
        assert all(np.isfinite(values).all() for values in inputs.values())
        return super().run(signature, inputs)


@pytest.fixture
def model(first):
    made = Gated(first.version)
    yield made
    made.close()


def start(model, limits=None):
    """A batcher of one worker that is busy with a first call."""
    limits = limits or Limits()
    batcher = Batcher(model, limits, workers=1)
    signature = model.signature("")
    call = requests(model.card, (1,), (1,), seed=99)

    def submit(batch, seconds=60.0):
        return batcher.submit(signature, batch, signature.check(batch), time.monotonic() + seconds)

    future = submit(call)
    assert model.entered.wait(60)
    return batcher, submit, future


def test_calls_that_gather_are_run_together(first, model):
    """Different lengths, hostile padding, one of several rows: one run, no wider than its longest, and every score right."""
    batcher, submit, blocked = start(model)
    calls = [requests(first.card, h, c, seed=s) for s, (h, c) in enumerate([((5,), (4,)), ((0, 6), (5, 1)), ((4,), (4,)), ((5,), (3,))])]
    futures = [submit(call) for call in calls]
    assert len(batcher) == 4
    model.go.set()
    batcher.close()
    assert blocked.done() and len(model.runs) == 2
    assert model.runs[1]["history_text"] == (5, 6, 3) and model.runs[1]["candidate_item_id"] == (5, 5)
    for call, future in zip(calls, futures, strict=True):
        got, want = future.result(), expected(first.model, first.card, call)
        for name, values in want.items():
            assert got[name].shape == values.shape
            np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-5)


def test_waste_is_bounded(first, model):
    """A short call does not pay for a long one: padded cells stay within 1.3 times those that count."""
    batcher, submit, _ = start(model)
    futures = [submit(requests(first.card, (length,), (4,), seed=length)) for length in (2, 300, 3, 280)]
    model.go.set()
    batcher.close()
    assert [run["history_time"] for run in model.runs] == [(1, 1), (2, 3), (2, 300)]
    assert all(future.done() for future in futures)


@pytest.mark.parametrize(("limits", "rows"), [(Limits(batch=2), [2, 2, 1]), (Limits(batch_cells=25), [2, 2, 1]), (Limits(), [5])])
def test_limits_of_a_run(first, model, limits, rows):
    batcher, submit, _ = start(model, limits)
    for seed in range(5):
        submit(requests(first.card, (5,), (5,), seed=seed))
    model.go.set()
    batcher.close()
    assert [run["request_time"][0] for run in model.runs[1:]] == rows


def test_a_failing_call_fails_alone(first, model):
    batcher, submit, _ = start(model)
    calls = [requests(first.card, (3,), (2,), seed=seed) for seed in range(3)]
    model.poison = calls[1]["request_time"][0]
    futures = [submit(call) for call in calls]
    model.go.set()
    batcher.close()
    assert futures[1].exception().code == "INVALID_ARGUMENT" and "a bad row" in str(futures[1].exception())
    for index in (0, 2):
        want = expected(first.model, first.card, calls[index])
        np.testing.assert_allclose(futures[index].result()["click"], want["click"], rtol=0, atol=1e-5)


def test_late_and_unwanted_calls_are_not_run(first, model):
    batcher, submit, _ = start(model)
    late, unwanted = submit(requests(first.card), seconds=0.0), submit(requests(first.card))
    assert unwanted.cancel()
    time.sleep(0.01)
    model.go.set()
    batcher.close()
    assert late.exception().code == "DEADLINE_EXCEEDED"
    assert len(model.runs) == 1


def test_full_and_closed(first, model):
    batcher, submit, _ = start(model, Limits(queue=2, batch=3))
    submit(requests(first.card))
    waiting = submit(requests(first.card))
    with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED: 2 calls are waiting already") as caught:
        submit(requests(first.card))
    assert caught.value.http_status == 429
    with pytest.raises(ServingError, match="at most 3 requests") as caught:
        submit(requests(first.card, [1] * 4, [1] * 4))
    assert caught.value.http_status == 413
    model.go.set()
    batcher.close()
    assert waiting.result()["click"].shape[0] == 3  # waiting calls were finished
    with pytest.raises(ServingError, match="UNAVAILABLE"):
        submit(requests(first.card))
