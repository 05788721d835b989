"""The async client sends a bounded number of calls at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from keras_ranking.serving import AsyncClient, Retry, ServingError
from keras_ranking.serving.protocol.signature import Signature, Tensor
from tests.serving import standin
from tests.serving.calling import frames
from tests.serving.client.logs import events

grpc = pytest.importorskip("grpc")
pytestmark = pytest.mark.one_backend


class FewThreads:
    """A Predict method that takes few calls at once, as a server with as many threads; it scores the age of a candidate."""

    def __init__(self, threads, failures=0):
        self.threads, self.running, self.most, self.calls, self.failures = threads, 0, 0, 0, failures

    async def __call__(self, request, timeout, metadata):
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.running > self.threads or self.failures > 0:
                self.failures -= 1
                raise grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "no thread")
            await asyncio.sleep(0)
            return SimpleNamespace(outputs=request)
        finally:
            self.running -= 1


def scored(method, use, **settings):
    """What `use(client)` returns, with a client whose calls are those of `method`."""

    async def run():
        async with AsyncClient("127.0.0.1:1", standin.SCHEMA, "m", **settings) as client:
            inputs = {
                "candidate_age_hours": Tensor(np.dtype("float32"), (None, None)),
                "candidate_count": Tensor(np.dtype("int32"), (None,)),
            }
            client._signatures = {"serving_default": Signature("serving_default", inputs, {})}
            client._predict = method
            client._parts.predict_request = lambda signature, tensors: {"click": tensors["candidate_age_hours"]}
            client._parts.codec = SimpleNamespace(read_tensors=lambda outputs: outputs)
            return await use(client)

    return asyncio.run(run())


def requests(count):
    made = [frames(0, 2, seed=number) for number in range(count)]
    ages = [np.log1p(candidates["age_hours"].to_numpy()).astype(np.float32) for _, candidates, _ in made]
    return made, ages


def test_score_many_is_bounded():
    wanted, ages = requests(125)
    method = FewThreads(threads=4)
    got = scored(method, lambda client: client.score_many(wanted, batch=1), retry=Retry(attempts=1))
    assert (method.calls, method.most) == (125, 4)
    for frame, age in zip(got, ages, strict=True):
        np.testing.assert_allclose(frame["click"], age, rtol=1e-6)
    method = FewThreads(threads=16)
    scored(method, lambda client: client.score_many(wanted, batch=10, parallel=7))
    assert (method.calls, method.most) == (13, 7)


def test_more_than_the_server_takes_is_an_error():
    """Control: unbounded calls are lost, and the first error is raised."""
    wanted, _ = requests(20)
    with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"):
        scored(FewThreads(threads=4), lambda client: client.score_many(wanted, batch=1, parallel=20), retry=Retry(attempts=1))
    with pytest.raises(ValueError, match="`parallel` must be a positive integer. Received: parallel=0"):
        scored(FewThreads(4), lambda client: client.score_many(wanted, parallel=0))


def test_refused_calls_are_sent_again_within_the_budget():
    wanted, ages = requests(12)
    retry = Retry(first_wait=0.001, burst=3.0, budget=0.0)
    method = FewThreads(threads=4, failures=3)
    got = scored(method, lambda client: client.score_many(wanted, batch=1), retry=retry)
    assert method.calls == 15
    np.testing.assert_allclose(got[11]["click"], ages[11], rtol=1e-6)
    with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"):
        scored(FewThreads(threads=4, failures=4), lambda client: client.score_many(wanted, batch=1), retry=retry)


def test_score_frame_is_bounded():
    method = FewThreads(threads=3)
    got = scored(method, lambda client: client.score_frame(events(), batch=1, parallel=3), retry=Retry(attempts=1))
    assert method.most <= 3 < method.calls
    np.testing.assert_allclose(got["click"], np.log1p(events()["age_hours"]), rtol=1e-5)
