"""One number to rank by, in every signature; weights of the request, by signatures of their own; the client.

The model also reads sessions, and its cache grows: one export shows all three.
"""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.serving import Client, Request, ServingError, export, serve
from keras_ranking.serving.checking.sample_requests import random_requests
from keras_ranking.serving.checking.worker_process import ExportError
from keras_ranking.serving.protocol.model_folder import EXTRA, read_card

tf = pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.one_backend, pytest.mark.slow]  # an export with all its checks

WEIGHTS = {"click": 1.0, "like": 4.0}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=12, days=3, seed=0)


@pytest.fixture(scope="module")
def model(log: Any) -> Any:
    keras.utils.set_random_seed(0)
    return kr.models.CADET(log.schema.fit(log.events), mask="session", dim=8, num_layers=1, num_heads=2, id_dim=4)


@pytest.fixture(scope="module")
def version(log: Any, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Verified: each signature ran in a V1 session in a fresh process, on scores that Keras and numpy give."""
    return export(model, tmp_path_factory.mktemp("utility") / "ranker", utility=WEIGHTS, events=log.events)


def test_files_and_signatures(version: Any, model: Any) -> None:
    card = read_card(version)
    assert card is not None and card.utility == WEIGHTS and model.utility == {}  # of this version alone
    assert card.verified["largest_difference"] <= 1e-5
    scoring = {"serving_default", "raw", "score_candidates", "weighted", "raw_weighted", "score_candidates_weighted"}
    assert set(card.signatures) == scoring | {"raw_features", "encode_history", "extend_history"}
    for name in scoring:
        tensors = card.signatures[name]
        assert tensors["outputs"]["score"] == {"dtype": "float32", "shape": [None, None], "axis": "candidate", "rows": None}
        weights = {key for key in tensors["inputs"] if key.startswith("weight_")}
        assert weights == ({"weight_click", "weight_like"} if "weighted" in name else set())
    assert json.loads((version / EXTRA / "model_card.json").read_text())["utility"] == WEIGHTS
    assert "| score | 1 click + 4 like |" in (version / EXTRA / "model_card.md").read_text()


def test_a_wrong_sum_does_not_pass_the_verification(log: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""
    from keras_ranking.serving.exporting import weighted

    small = kr.models.LiRank(log.schema.fit(log.events), features=("age_hours",), history_features=(), hidden=(4,), cross_layers=1)
    monkeypatch.setattr(weighted, "weighted_sum", lambda values, weights: values["click"])
    with pytest.raises(ExportError, match="weighted score' differs"):
        export(small, tmp_path / "ranker", utility=WEIGHTS)


def requests_of(log: Any, count: int) -> list[Request]:
    found = []
    for _, shown in list(log.events.groupby("request_id", sort=False))[-count:]:
        at, member = int(shown["time"].iloc[0]), shown["member_id"].iloc[0]
        found.append(Request(log.events[(log.events["member_id"] == member) & (log.events["time"] < at)], shown, at))
    return found


def test_clients(version: Any, model: Any, log: Any) -> None:
    requests = requests_of(log, 5)
    other = {"like": -1.0, "click": 0.25}
    with serve(version.parent, rest_port=0, grpc_port=0) as server:
        for signature in ("serving_default", "raw"):
            with Client(f"127.0.0.1:{server.grpc_port}", model.schema, model="ranker", signature=signature) as client:
                plain = client.score_many(requests)
                mixed = client.score_many(
                    [
                        Request(each.history, each.candidates, each.request_time, utility=other if at % 2 else None)
                        for at, each in enumerate(requests)
                    ]
                )
                for at, (found, own) in enumerate(zip(plain, mixed, strict=True)):
                    assert list(found) == ["click", "like", "score"]
                    np.testing.assert_allclose(found["score"], found["click"] + 4 * found["like"], rtol=1e-6)
                    np.testing.assert_allclose(own[["click", "like"]], found[["click", "like"]], rtol=0, atol=1e-6)
                    wanted = found["score"] if not at % 2 else 0.25 * found["click"] - found["like"]
                    np.testing.assert_allclose(own["score"], wanted, rtol=0, atol=1e-6)
                with pytest.raises(ValueError, match="request 3: `utility` must name tasks that the model serves"):
                    client.score_many([*requests[:3], Request(*_parts(requests[3]), utility={"x": 1.0})])
        with Client(f"127.0.0.1:{server.rest_port}", model.schema, model="ranker", protocol="rest", tasks=["score"]) as client:
            one = requests[0]
            found = client.score(*_parts(one), utility={"like": 2.0})
            assert list(found) == ["score"]
            np.testing.assert_allclose(found["score"], 2 * plain[0]["like"], rtol=0, atol=1e-6)
            cache = client.encode(one.history, one.request_time)
            for utility, wanted in ((None, plain[0]["score"]), ({"click": 1.0}, plain[0]["click"])):
                cached = client.score_cached(cache, one.candidates, one.request_time, utility=utility)
                np.testing.assert_allclose(cached["score"], wanted, rtol=0, atol=1e-5)
            frame = client.score_frame(log.events.head(60))
            assert list(frame) == ["score"] and frame["score"].notna().all()
        with Client(f"127.0.0.1:{server.grpc_port}", model.schema, model="ranker") as client:
            one = max(requests, key=lambda each: len(each.history))
            half = len(one.history) // 2
            cache = client.extend(client.encode(one.history.head(half), one.request_time), one.history.iloc[half:])
            wanted = client.score(*_parts(one))
            np.testing.assert_allclose(client.score_cached(cache, one.candidates, one.request_time), wanted, rtol=0, atol=1e-5)
            # The session of the request is that of the candidates' column, or the one that is given.
            shown, session = one.candidates.drop(columns="session_id"), one.candidates["session_id"].iloc[0]
            given = client.score(one.history, shown, one.request_time, session=session)
            np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-6)
            first = client.score(one.history, shown, one.request_time, session=one.history["session_id"].iloc[0])
            nothing = client.score(None, shown, one.request_time, session=session)
            np.testing.assert_allclose(first, nothing, rtol=0, atol=1e-6)  # all events are of that session, or later than its first
            assert np.abs(first - wanted).to_numpy().max() > 1e-4
            with pytest.raises(ValueError, match="the model reads the session of a request: give `session`"):
                client.score(one.history, shown, one.request_time)
        with (
            Client(f"127.0.0.1:{server.grpc_port}", model.schema, model="ranker", signature="explore") as client,
            pytest.raises(ValueError, match="a `utility` of the request goes with the signatures"),
        ):
            client.score(*_parts(requests[0]), utility={"click": 1.0})
        with Client(f"127.0.0.1:{server.grpc_port}", model.schema, model="ranker") as client:
            inputs = read_card(version).signatures["weighted"]["inputs"]
            batch = random_requests(inputs, (3,), (2,))
            batch["weight_like"][:] = np.nan
            with pytest.raises(ServingError, match="weight_like"):
                client.predict(batch, "weighted")


def _parts(request: Request) -> tuple[Any, Any, Any]:
    return request.history, request.candidates, request.request_time


@pytest.mark.parametrize("utility", [{"clicks": 1.0}, {}, {"click": float("inf")}])
def test_mistakes_before_anything_is_written(model: Any, tmp_path: Any, utility: Any) -> None:
    with pytest.raises(ValueError, match="`utility` must"):
        export(model, tmp_path / "ranker", utility=utility)
    assert not (tmp_path / "ranker").exists()


def test_an_explored_utility(log: Any) -> None:
    model = kr.models.LiRank(log.schema.fit(log.events), history_features=(), hidden=(8,), explore=("click",))
    assert "score" not in model.explore_model.output
    model.utility = WEIGHTS
    tensors = kr.data.requests(log.events, model.schema).tensors([0, 1], list(model.serving_model.input))
    found = {name: np.asarray(x) for name, x in model.explore_model({**tensors, "seed": np.array([1, 2], "int32")}).items()}
    np.testing.assert_allclose(found["score"], found["click"] + 4 * found["like"], rtol=1e-6)
