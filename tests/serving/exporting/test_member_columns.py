"""Columns of the member served: sent once a request, by tensors and by values of the log, in every signature and on the embedded server."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.serving import AccessLog, Client, HistoryClient, MemoryHistories, Request, ServingError, check_live_skew, export, serve
from keras_ranking.serving.protocol import codec
from keras_ranking.serving.protocol.logged_requests import is_hashed
from keras_ranking.serving.protocol.model_folder import read_card
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.raw_values import id_types, raw_specs
from keras_ranking.serving.protocol.requests import pad_requests, request_tensors
from keras_ranking.serving.protocol.signature import Signature, Tensor
from keras_ranking.serving.server.batch_tensors import Job, concatenate
from tests.member_columns import OF_MEMBER, log_of
from tests.serving.server.calls import rest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend

SMALL: dict[str, dict[str, Any]] = {
    "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,)},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "max_history": 6, "action_dim": 4},
    "LiRank": {"hidden": (8,), "cross": "none", "max_history": 6, "history_options": {"num_layers": 1}, "explore": ("click",)},
    "FeedSR": {"dim": 8, "num_layers": 1, "num_heads": 2, "head_options": {"hidden": (4,)}},
    "AmortizedDLRM": {"hidden": (8,), "cross": "none", "dim": 8, "num_layers": 1, "max_history": 6, "action_dim": 4},
}


@pytest.fixture(scope="module")
def log() -> Any:
    return log_of(kr.data.simulate(members=10, days=3, seed=0, feedback_delay=60))


def exported(log: Any, kind: str, folder: Any, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, kind)(log.schema, id_dim=4, tasks=("click",), **SMALL[kind])
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:  # a posterior of noise would draw weights of any size
        weight.assign(weight + rng.normal(0, 0.2, weight.shape).astype(weight.dtype))
    version = export(model, folder / "ranker", events=log.events, **settings)
    return SimpleNamespace(model=model, version=version, card=read_card(version))


@pytest.fixture(scope="module")
def found(log: Any, tmp_path_factory: Any) -> Any:
    return exported(log, "CADET", tmp_path_factory.mktemp("members"))


def request_of(log: Any, model: Any, place: int = -1) -> Any:
    """A request with a history: its tensors, the scores of the Keras model, and its rows of the log."""
    sequences = kr.data.build_sequences(log.events, log.schema)
    found = kr.data.requests(sequences)
    which = int(np.argsort(found.history_end - found.history_begin, kind="stable")[place])
    tensors = found.tensors([which], list(model.serving_model.input))
    want = keras.ops.convert_to_numpy(model.serving_model(tensors)["click"])[0]
    rows = log.events.iloc[sequences.rows[found.candidate_begin[which] : found.candidate_end[which]]]
    history = log.events.iloc[sequences.rows[found.history_begin[which] : found.history_end[which]]]
    values = {name: rows[name].iloc[0] for name in OF_MEMBER}
    return SimpleNamespace(tensors=tensors, want=want, rows=rows, history=history, values=values, moment=int(rows["time"].iloc[0]))


def test_the_card(found: Any) -> None:
    """Checked against Keras by random requests with hostile padding, and against the log's requests (skew), when it was exported."""
    inputs = found.card.inputs
    assert inputs["member_profile"] == {"dtype": "float32", "shape": [None, 6], "axis": None, "rows": None}
    assert inputs["member_country"] == {"dtype": "int32", "shape": [None], "axis": None, "rows": 4}
    assert inputs["member_interests"] == {"dtype": "int32", "shape": [None, 3], "axis": None, "rows": 40, "sets": True}
    raw = found.card.signatures["raw"]["inputs"]
    assert raw["member_interests"]["dtype"] == "string" and raw["member_tenure"]["missing"] and raw["member_home"]["dtype"] == "int64"
    assert found.card.verified["largest_difference"] <= 1e-5
    assert not any(name.startswith("member_") for name in found.card.signatures["encode_history"]["inputs"])
    assert not any(name.startswith("member_") for name in found.card.signatures["extend_history"]["inputs"])
    assert {name for name in found.card.signatures["score_candidates"]["inputs"] if name.startswith("member_")} == {
        f"member_{n}" for n in OF_MEMBER
    }


def test_clients_caches_and_json(found: Any, log: Any) -> None:
    one = request_of(log, found.model)
    bare = one.rows.drop(columns=list(OF_MEMBER))
    with serve(found.version.parent, rest_port=0, grpc_port=0) as server:
        for protocol, signature in (("grpc", "raw"), ("rest", "serving_default"), ("rest", "raw")):
            address = f"127.0.0.1:{getattr(server, f'{protocol}_port')}"
            with Client(address, log.schema, "ranker", protocol, signature=signature) as client:
                for rows, given in ((one.rows, None), (bare, one.values)):
                    scores = client.score(one.history, rows, one.moment, member_values=given)["click"].to_numpy()
                    np.testing.assert_allclose(scores, one.want, rtol=0, atol=1e-5)
                assert (
                    np.abs(client.score(one.history, bare, one.moment, member_values={**one.values, "home": 77})["click"] - one.want).max()
                    > 1e-4
                )
        with Client(f"127.0.0.1:{server.grpc_port}", log.schema, "ranker") as client:
            others = [Request(one.history.tail(n), bare.head(n), one.moment, member_values=one.values) for n in (1, 4)]
            alone = [client.score(r.history, r.candidates, one.moment, member_values=one.values) for r in others]
            for together, single in zip(client.score_many(others), alone, strict=True):
                np.testing.assert_allclose(together["click"], single["click"], rtol=0, atol=1e-6)
            store = MemoryHistories(log.schema)
            store.append(log.events)
            scorer = HistoryClient(client, store, events=512)
            scores = scorer.score(one.rows["member_id"].iloc[0], bare, one.moment, member_values=one.values)
            np.testing.assert_allclose(scores["click"], one.want, rtol=0, atol=1e-5)
            again = scorer.score(one.rows["member_id"].iloc[0], bare, one.moment, member_values={**one.values, "country": "SE"})
            assert scorer.encoded == scorer.found == 1, "what describes the member is no part of an encoded history"
            changed = client.score(one.history, bare, one.moment, member_values={**one.values, "country": "SE"})
            np.testing.assert_allclose(again["click"], changed["click"], rtol=0, atol=1e-5)
            with pytest.raises((ValueError, ServingError), match="missing input 'member_home'"):
                client.predict({name: x for name, x in one.tensors.items() if name != "member_home"})
            scored = client.score_frame(log.events, target=log.events["request_id"].isin(one.rows["request_id"]))
            np.testing.assert_allclose(scored.loc[one.rows.index, "click"], one.want, rtol=0, atol=1e-5)
        encoded = {name: values[0].tolist() for name, values in one.tensors.items()}
        encoded["member_interests"] = [code for code in encoded["member_interests"] if code != -1]
        path = "/v1/models/ranker:predict"
        status, reply = rest(server, path, {"instances": [encoded]})
        assert status == 200, reply
        np.testing.assert_allclose(reply["predictions"][0]["click"], one.want, rtol=0, atol=1e-5)
        for name, value, message in (
            ("member_interests", [1, 2, 3, 4], "input 'member_interests' may hold at most 3 ids. Received: 4 at [0]"),
            ("member_country", 4, "input 'member_country' must hold integers in 0 .. 3. Received: 4 at [0]"),
            ("member_profile", [0.5] * 5, "input 'member_profile' must have rank 2 and shape (?, 6). Received: (1, 5)"),
        ):
            status, reply = rest(server, path, {"instances": [{**encoded, name: value}]})
            assert status == 400 and message in reply["error"], reply


def test_requests_that_do_not_agree(log: Any, found: Any) -> None:
    one = request_of(log, found.model)
    names = ["member_country", "member_profile"]
    rows = one.rows.reset_index(drop=True)

    def tensors(rows: Any, given: Any = None) -> Any:
        return request_tensors(log.schema, None, rows, one.moment, names, member_values=given)

    other = "SE" if rows["country"].iloc[0] != "SE" else "DK"
    message = r"column 'country' \(known='member'\) must be the same for all candidates of a request, or be given once in `member_values`. "
    message += rf"Received: '{rows['country'].iloc[0]}' at row 0, '{other}' at row 2; other values than at row 0 in rows 2, 4"
    bad = rows.copy()
    bad.loc[[2, 4], "country"] = other
    with pytest.raises(ValueError, match=message):
        tensors(bad)
    assert tensors(bad, {"country": other})["member_country"] == {"DK": 1, "SE": 2}[other]
    with pytest.raises(ValueError, match="column 'country' of the member is missing in `member_values` and in the candidates"):
        tensors(rows.drop(columns="country"))
    with pytest.raises(ValueError, match="`member_values` must be of columns of the schema with known='member'.*Received: 'topic'"):
        tensors(rows, {"topic": "news"})
    with pytest.raises(ValueError, match="in `member_values`: column 'profile' must hold vectors of 6 numbers"):
        tensors(rows, {"profile": [1.0, 2.0]})


def test_batches_of_the_server_with_hostile_padding(found: Any, log: Any) -> None:
    """Calls of other lengths in one run: the member's values keep their rows, and no padding reaches them."""
    spec = found.card.inputs
    inputs = {n: Tensor(np.dtype(s["dtype"]), tuple(s["shape"]), s["axis"], s["rows"], sets=bool(s.get("sets"))) for n, s in spec.items()}
    outputs = {n: Tensor(np.dtype(s["dtype"]), tuple(s["shape"]), s["axis"]) for n, s in found.card.outputs.items()}
    signature = Signature("serving_default", inputs, outputs)
    assert signature.ragged
    from keras_ranking.serving.checking.sample_requests import random_requests

    calls = [random_requests(spec, [n], [m], seed=n) for n, m in ((3, 5), (0, 1), (9, 2))]
    for call in calls:
        signature.check(call)
    batch = concatenate([Job(signature, call, 1, 0.0, signature.longest(call)) for call in calls], signature)
    joint = keras.ops.convert_to_numpy(found.model.serving_model(batch)["click"])
    for row, call in enumerate(calls):
        alone = keras.ops.convert_to_numpy(found.model.serving_model(call)["click"])[0]
        count = int(call["candidate_count"][0])
        np.testing.assert_allclose(joint[row, :count], alone[:count], rtol=0, atol=1e-6)


def test_access_logs_hash_what_describes_the_member() -> None:
    for tensor in (Tensor(np.dtype("float32"), (None, 6)), Tensor(np.dtype("int32"), (None,), rows=4), Tensor(np.dtype("O"), (None,))):
        assert is_hashed("member_profile", tensor, ())
    assert not is_hashed("candidate_age", Tensor(np.dtype("float32"), (None, None), "candidate"), ())


def test_skew_of_live_requests(found: Any, log: Any, tmp_path: Any) -> None:
    """What was served is what the pipeline makes of the log, also where it is kept by its hash; another profile in the log is found."""
    key, schema = "a-long-secret-key", found.model.schema
    one, other = (request_of(log, found.model, place) for place in (-1, -2))
    kept = AccessLog(path=tmp_path / "requests.jsonl", key=key, share=1.0)
    with serve(found.version.parent, rest_port=0, grpc_port=0, access_log=kept) as server:
        for asked, protocol, signature in ((one, "grpc", "raw"), (other, "rest", "serving_default")):
            address = f"127.0.0.1:{getattr(server, f'{protocol}_port')}"
            with Client(address, schema, "ranker", protocol, signature=signature) as client:
                rows, number = asked.rows.drop(columns=list(OF_MEMBER)), asked.rows[schema.request].iloc[0]
                client.score(asked.history, rows, asked.moment, member_values=asked.values, request_id=number)
    report = check_live_skew(kept.path, found.model, log.events, key)
    assert report.replayed == 2 and not report.found, report.summary()
    assert {f"member {name}" for name in OF_MEMBER} <= set(report.features)
    mine = log.events[schema.request] == one.rows[schema.request].iloc[0]
    for name, value in (("tenure", 77.0), ("country", "SE" if one.values["country"] != "SE" else "DK"), ("home", 41)):
        report = check_live_skew(kept.path, found.model, log.events.assign(**{name: log.events[name].where(~mine, value)}), key)
        assert {feature for feature, entry in report.features.items() if entry.differ} == {f"member {name}"}
        assert report.scores["click"].differ


@pytest.mark.parametrize("form", ["serving_default", "raw"])
def test_bytes_of_a_request(form: str) -> None:
    """512 candidates and a vector of 256 numbers: at least 100 times fewer bytes than with one vector each, in JSON and in protobuf."""
    sizes = {}
    rng = np.random.default_rng(0)
    frame = kr.data.simulate(members=2, days=1, seed=0).events.iloc[[0] * 512].assign(item_id=rng.integers(0, 10**6, 512))
    profile = rng.normal(size=256).astype("float32").tolist()
    frame["profile"] = [profile] * 512
    for known in ("context", "member"):
        features = [kr.Id("item_id"), kr.Vector("profile", size=256, known=known)]
        schema = kr.Schema(member="member_id", time="time", request="request_id", features=features, tasks=["click"])
        names = {"candidate_item_id": [None, None], "candidate_count": [None], "request_time": [None]}
        names |= {"member_profile": [None, 256]} if known == "member" else {"candidate_profile": [None, None, 256]}
        kinds = {name: "float32" if "profile" in name else "int32" for name in names}
        plain = {
            name: {"dtype": kinds[name], "shape": shape, "axis": "candidate" if len(shape) > 1 and name[0] == "c" else None, "rows": None}
            for name, shape in names.items()
        }
        if form == "raw":
            specs = raw_specs(schema, plain, id_types(schema, frame))
            kept = {
                n: Tensor(np.dtype("O" if s["dtype"] == "string" else s["dtype"]), tuple(s["shape"]), s["axis"]) for n, s in specs.items()
            }
            one = raw_request_tensors(schema, None, frame, 1_790_000_000, Signature("raw", kept, {}))
        else:
            one = request_tensors(schema, None, frame, 1_790_000_000, list(names))
        batch = pad_requests([one])
        body = json.dumps({"signature_name": form, "inputs": {name: x.tolist() for name, x in batch.items()}}, separators=(",", ":"))
        sizes[known] = len(body), len(codec.predict_request("ranker", form, batch, None, None).SerializeToString())
    fewer = [wide / narrow for wide, narrow in zip(sizes["context"], sizes["member"], strict=True)]
    print(form, sizes, fewer)
    assert min(fewer) >= 100, sizes


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind == "LiGR" else pytest.mark.release) for kind in list(SMALL)[1:]])
def test_other_models(log: Any, kind: str, tmp_path: Any) -> None:
    """The exports of the other models, one of them in int8: the checks of an export are those of `found`."""
    made = exported(log, kind, tmp_path, **({"quantize": "int8"} if kind == "LiRank" else {}))
    assert made.card.verified["largest_difference"] <= 1e-5 and "member_profile" in made.card.inputs
