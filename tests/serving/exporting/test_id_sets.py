"""Sets of ids served: an export with all its checks, in int8, called with tensors, with values of the log, and with JSON lists."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.serving import Client, ServingError, export, quantize_embeddings, serve
from keras_ranking.serving.protocol.json_codec import decode
from keras_ranking.serving.protocol.model_folder import read_card
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.raw_values import raw_specs
from keras_ranking.serving.protocol.signature import Signature, Tensor
from tests.serving.server.calls import rest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend

SETS = (
    kr.Ids("tags", vocabulary=["t0", "t1", "t2", "t3"], size=3, pooling="max"),
    kr.Ids("brands", buckets=None, divisor=2**20, size=2, pooling="sum"),
    kr.Ids("bought", buckets=300, size=4, separator=" ", table="item_id", known="context"),
)
SMALL: dict[str, dict[str, Any]] = {
    "LiRank": {
        "hidden": (8,),
        "cross": "none",
        "max_history": 6,
        "history_options": {"num_layers": 1},
        "action_dim": 4,
        "features": ("item_id", "age_hours", "tags", "brands", "bought"),
        "history_features": ("item_id", "tags", "brands"),
    },
    "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,)},
}


@pytest.fixture(scope="module")
def log() -> Any:
    log = kr.data.simulate(members=10, days=3, seed=0, feedback_delay=60)
    rng, count = np.random.default_rng(0), len(log.events)
    events = log.events.assign(
        tags=[[f"t{tag}" for tag in rng.integers(0, 6, rng.integers(0, 4))] or None for _ in range(count)],
        brands=[rng.integers(0, 10**12, rng.integers(0, 3)).tolist() for _ in range(count)],
        bought=[" ".join(map(str, rng.integers(0, 200, rng.integers(0, 5)))) for _ in range(count)],
    )
    features = [kr.Id("item_id", buckets=300) if feature.name == "item_id" else feature for feature in log.schema.features]
    return kr.data.Log(events, log.schema.model_copy(update={"features": (*features, *SETS)}).fit(events), "with sets")


def exported(log: Any, kind: str, folder: Any, quantize: str | None) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, kind)(log.schema, id_dim=4, tasks=("click",), **SMALL[kind])
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
    version = export(model, folder / "ranker", events=None if quantize else log.events, quantize=quantize)
    return SimpleNamespace(model=quantize_embeddings(model) if quantize else model, version=version, card=read_card(version))


@pytest.fixture(scope="module")
def found(log: Any, tmp_path_factory: Any) -> Any:
    return exported(log, "LiRank", tmp_path_factory.mktemp("sets"), "int8")


def test_the_card_says_which_inputs_are_sets(found: Any) -> None:
    tags, brands = found.card.inputs["candidate_tags"], found.card.inputs["history_brands"]
    assert tags == {"dtype": "int32", "shape": [None, None, 3], "axis": "candidate", "rows": 5, "sets": True}
    assert brands["shape"] == [None, None, 2, 2] and brands["rows"] is None and brands["sets"]
    raw = found.card.signatures["raw"]["inputs"]["candidate_brands"]
    assert raw == {"dtype": "string", "shape": [None, None, 2], "axis": "candidate", "rows": None, "sets": True}
    assert found.card.quantized and found.card.verified["largest_difference"] <= 1e-5


def test_clients_and_json(found: Any, log: Any) -> None:
    """One request by each protocol and signature: the scores of the Keras model."""
    schema, events = log.schema, log.events
    sequences = kr.data.build_sequences(events, schema)
    requests = kr.data.requests(sequences, max_history=6, delay=found.model.arguments["delay"])
    which = int(np.argmax(requests.history_end - requests.history_begin))
    tensors = requests.tensors([which], list(found.model.serving_model.input))
    want = keras.ops.convert_to_numpy(found.model.serving_model(tensors)["click"])[0]
    assert np.ptp(want) > 1e-3
    rows = events.iloc[sequences.rows[requests.candidate_begin[which] : requests.candidate_end[which]]]
    history = events.iloc[sequences.rows[requests.history_begin[which] : requests.history_end[which]]]
    moment = int(rows[schema.time].iloc[0])
    with serve(found.version.parent, rest_port=0, grpc_port=0) as server:
        for protocol in ("grpc", "rest"):
            for signature in ("serving_default", "raw"):
                with Client(f"127.0.0.1:{getattr(server, f'{protocol}_port')}", schema, "ranker", protocol, signature=signature) as client:
                    scores = client.score(history, rows, moment)["click"].to_numpy()
                    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-5)
                    if signature == "raw":
                        with pytest.raises(ValueError, match="in the candidates: column 'tags' must hold at most size=3 ids in a row"):
                            client.score(history, rows.assign(tags=[["t1"] * 4] * len(rows)), moment)
        signature = SimpleNamespace(inputs={name: _tensor(spec) for name, spec in found.card.signatures["raw"]["inputs"].items()})
        raw = raw_request_tensors(schema, history, rows, moment, signature)
        plain = {name: _plain(values.tolist()) for name, values in raw.items()}
        ragged = dict(plain)
        for name in ("candidate_tags", "history_tags", "candidate_brands", "candidate_bought"):
            ragged[name] = [[word for word in cell if word] for cell in plain[name]]
        assert len({len(cell) for cell in ragged["candidate_tags"]}) > 1
        path = "/v1/models/ranker:predict"
        for content in (plain, ragged):
            status, reply = rest(server, path, {"signature_name": "raw", "instances": [content]})
            assert status == 200, reply
            np.testing.assert_allclose(reply["predictions"][0], want, rtol=0, atol=1e-5)
        encoded = {name: values[0].tolist() for name, values in tensors.items()}
        for name in ("candidate_tags", "candidate_brands"):
            encoded[name] = [[ids for ids in cell if ids not in (-1, [-1, -1])] for cell in encoded[name]]
        status, reply = rest(server, path, {"instances": [encoded]})
        assert status == 200, reply
        np.testing.assert_allclose(reply["predictions"][0], want, rtol=0, atol=1e-5)
        encoded["candidate_tags"][1] = [1, 2, 3, 1]
        status, reply = rest(server, path, {"instances": [encoded]})
        assert status == 400 and "input 'candidate_tags' may hold at most 3 ids. Received: 4 at [0, 1]" in reply["error"]
        encoded["candidate_tags"][1] = [1, -2]
        status, reply = rest(server, path, {"instances": [encoded]})
        assert status == 400 and "input 'candidate_tags' must hold integers in -1 .. 4. Received: -2 at [0, 1, 1]" in reply["error"]


def _tensor(spec: Any) -> Tensor:
    return Tensor(np.dtype("O" if spec["dtype"] == "string" else spec["dtype"]), tuple(spec["shape"]), spec["axis"])


def _plain(values: Any) -> Any:
    """Bytes as text, in nested lists."""
    return list(map(_plain, values)) if isinstance(values, list) else values.decode() if isinstance(values, bytes) else values


@pytest.mark.slow
@pytest.mark.release
def test_cadet(log: Any, tmp_path: Any) -> None:
    found = exported(log, "CADET", tmp_path, None)
    assert found.card.verified["largest_difference"] <= 1e-5 and "encode_history" in found.card.signatures


def test_raw_ids_of_a_set_are_text() -> None:
    schema = kr.Schema(member="m", time="t", request="r", features=SETS[:2], tasks=["click"])
    with pytest.raises(ValueError, match="`raw_ids` must be 'string' for a set of ids. Received: 'brands': 'int64'"):
        raw_specs(schema, {}, {"brands": "int64"})


def test_json_of_other_forms() -> None:
    tags = Tensor(np.dtype("O"), (None, None, 2), "candidate", sets=True)
    signature = Signature("raw", {"candidate_tags": tags}, {})

    def read(body: bytes) -> Any:
        return decode(body, lambda _: signature, 10)[1]["candidate_tags"].tolist()

    assert read(b'{"inputs": [[["a"], []], [["b", "c"], [{"b64": "ZA=="}]]]}') == [[[b"a", b""], [b"", b""]], [[b"b", b"c"], [b"d", b""]]]
    for body, message in (
        (b'{"inputs": [[["a"], [null]]]}', "must be text"),
        (b'{"inputs": [[["a"], ["b", "c", "d"]]]}', r"may hold at most 2 ids. Received: 3 at \[0, 1\]"),
    ):
        with pytest.raises(ServingError, match=message):
            read(body)
