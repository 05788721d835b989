"""Retries and deadlines of the clients."""

from __future__ import annotations

import asyncio
import time

import pytest

from keras_ranking.serving import AsyncClient, Retry, ServingError
from keras_ranking.serving.client.retry import Budget
from tests.serving import standin
from tests.serving.client.flaky import Flaky

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(
    ("errors", "calls"),
    [
        ([("UNAVAILABLE", "x")] * 2, 3),
        ([("RESOURCE_EXHAUSTED", "busy", "50")], 2),
        ([("RESOURCE_EXHAUSTED", "The batch queue is full")], 2),
        ([("RESOURCE_EXHAUSTED", "too large", "-1")], 1),
        ([("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)")], 1),
        ([("INVALID_ARGUMENT", "x")], 1),
        ([("INTERNAL", "x")], 1),
        ([("UNAVAILABLE", "x")] * 9, 4),
    ],
)
def test_repeated_calls(errors, calls):
    with Flaky(errors) as server, server.client() as client:
        if len(errors) < calls:
            assert client.signatures() == {}
        else:
            with pytest.raises(ServingError, match=errors[0][1].split("(")[0]) as caught:
                client.signatures()
            assert caught.value.code == errors[0][0]
        assert len(server.calls) == calls


def test_never_beyond_the_deadline():
    """The deadline holds for all attempts together, and the server gets the remaining time."""
    with (
        Flaky([("UNAVAILABLE", "x")] * 50) as server,
        server.client(timeout=0.6, retry=Retry(attempts=50, burst=50, first_wait=0.1)) as client,
    ):
        begin = time.monotonic()
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            client.signatures()
        assert time.monotonic() - begin < 0.7
        left = [remaining for _, remaining in server.calls]
        assert len(left) > 2 and left == sorted(left, reverse=True) and 0 < left[-1] < left[0] <= 0.6
    with Flaky([("RESOURCE_EXHAUSTED", "busy", "5000")]) as server, server.client(timeout=1.0) as client:
        begin = time.monotonic()
        with pytest.raises(ServingError, match="busy"):  # the stated wait ends after the deadline: an error at once
            client.signatures()
        assert time.monotonic() - begin < 0.5 and len(server.calls) == 1


def test_budget():
    """After the burst, calls to a server that is down get one retry for every `1 / budget` calls."""
    budget = Budget(Retry(budget=0.25, burst=3))
    error = ServingError("UNAVAILABLE", "down")
    granted = 0
    for _ in range(100):
        budget.earn()
        granted += budget.wait(error, 1, time.monotonic() + 60) is not None
    assert 3 + 25 - 1 <= granted <= 3 + 25
    waits = [Budget(Retry()).wait(error, attempt, time.monotonic() + 60) for attempt in (1, 2, 3)]
    assert [0.05 <= waits[0] <= 0.1, 0.1 <= waits[1] <= 0.2, 0.2 <= waits[2] <= 0.4] == [True] * 3
    assert Budget(Retry()).wait(error, 4, time.monotonic() + 60) is None  # attempts are used up
    assert Budget(Retry(burst=0)).wait(error, 1, time.monotonic() + 60) is None
    for bad in ({"attempts": 0}, {"budget": -1}, {"first_wait": float("nan")}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must"):
            Retry(**bad)


def test_async_retries():
    async def run(port):
        async with AsyncClient(f"127.0.0.1:{port}", standin.SCHEMA, model="ranker") as client:
            return await client.signatures()

    with Flaky([("UNAVAILABLE", "x"), ("RESOURCE_EXHAUSTED", "busy", "10")]) as server:
        assert asyncio.run(run(server.port)) == {} and len(server.calls) == 3
