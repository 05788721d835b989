"""The async client, and scores of whole logs."""

from __future__ import annotations

import asyncio

import numpy as np
import pandas as pd
import pytest

from keras_ranking import data
from keras_ranking.serving import AsyncClient, Request, ServingError
from tests.serving import standin
from tests.serving.calling import connect, frames, requests
from tests.serving.client.logs import events

pytestmark = pytest.mark.one_backend


def test_async_client(server, first):
    wanted = [frames(length, count, seed=length) for length, count in ((3, 2), (0, 5), (30, 1), (7, 7))]
    log = events()

    async def run():
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}", standin.SCHEMA, model="ranker") as client:
            one = await asyncio.gather(*(client.score(*request) for request in wanted))
            many = await client.score_many([Request(*wanted[0]), *wanted[1:]], batch=2)
            whole = await client.score_frame(log, batch=3)
            tensors = await client.predict(requests(first.card, (2,), (3,), hostile=False))
            with pytest.raises(ServingError, match="at most 16 requests") as caught:
                await client.predict(requests(first.card, [1] * 17, [1] * 17, hostile=False))
            assert caught.value.http_status == 413
            with pytest.raises(ServingError, match="at most 16 requests"):
                await client.score_frame(log, batch=17)
            with pytest.raises(ValueError, match="column 'topic' is missing in the candidates"):
                await client.score(wanted[0][0], wanted[0][1].drop(columns="topic"), wanted[0][2])
            return one, many, whole, tensors

    one, many, whole, tensors = asyncio.run(run())
    with connect(server, "grpc") as client:
        for got, again, request in zip(one, many, wanted, strict=True):
            pd.testing.assert_frame_equal(got, client.score(*request), atol=1e-6)
            pd.testing.assert_frame_equal(again, got, atol=1e-6)
        pd.testing.assert_frame_equal(whole, client.score_frame(log, batch=8), atol=1e-6)
    assert tensors["click"].shape == (1, 5)


@pytest.mark.parametrize("max_history", [None, 5])
def test_score_frame(client, first, max_history):
    """The score of each row is that of the Keras model on the tensors of the data pipeline."""
    log = events()
    got = client.score_frame(log, max_history=max_history, batch=5, parallel=2)
    assert got.index.equals(log.index) and list(got.columns) == ["click", "like"] and not got.isna().any().any()
    found = data.requests(log.reset_index(drop=True), standin.SCHEMA, max_history=max_history)
    for number in range(len(found)):
        tensors = found.tensors([number], sorted(first.card.inputs))
        want = standin.scores(first.model, tensors)
        at = found.sequences.rows[found.candidate_index([number])[0]]
        for task in got:
            np.testing.assert_allclose(got[task].to_numpy()[at], want[task][0], rtol=0, atol=1e-5)
    assert got["click"].nunique() == len(log)  # control: a wrong row is found


def test_score_frame_of_some_rows(client):
    log = events()
    wanted = (log["shown_at"] > 1_790_004_000).to_numpy() & (log["rank"] < 3).to_numpy()
    got, whole = client.score_frame(log, target=wanted, batch=8), client.score_frame(log, batch=8)
    assert got[~wanted].isna().all().all()
    pd.testing.assert_frame_equal(got[wanted], whole[wanted], atol=1e-6)
    nothing = client.score_frame(log, target=np.zeros(len(log), dtype=bool))
    assert nothing.isna().all().all() and list(nothing.columns) == ["click", "like"]
    with pytest.raises(ValueError, match="topic"):
        client.score_frame(log.drop(columns="topic"))
    with pytest.raises(ValueError, match="`parallel` must be a positive integer"):
        client.score_frame(log, parallel=0)
