"""Semantic ids served: an export with all its checks, called with codes and with items, and items without codes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.serving import Client, ServingError, export, serve
from keras_ranking.serving.protocol.model_folder import read_card

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend

SMALL = {"hidden": (8,), "cross": "none", "max_history": 6, "history_options": {"num_layers": 1}, "action_dim": 4}
READ = {"features": ("item_id", "codes", "strict", "age_hours"), "history_features": ("codes", "strict")}


@pytest.fixture(scope="module")
def log() -> Any:
    log = kr.data.simulate(members=10, days=3, seed=0, feedback_delay=60)
    items = log.events["item_id"].unique()
    codes = np.random.default_rng(0).integers(0, 6, (len(items), 2))
    some = kr.SemanticId("codes", levels=2, codebook_size=6, prefixes=True, column="item_id").with_codes(items[:-4], codes[:-4])
    every = kr.SemanticId("strict", levels=2, codebook_size=6, unknown="error", column="item_id").with_codes(items, codes)
    schema = log.schema.model_copy(update={"features": (*log.schema.features, some, every)})
    return kr.data.Log(log.events, schema.fit(log.events), "coded")


def test_served_as_in_keras(log: Any, tmp_path: Any) -> None:
    keras.utils.set_random_seed(0)
    model = kr.models.LiRank(log.schema, id_dim=4, tasks=("click",), **SMALL, **READ)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
    version = export(model, tmp_path / "ranker", events=log.events)
    card = read_card(version)
    assert card.verified["largest_difference"] <= 1e-5
    assert card.inputs["candidate_codes"] == {"dtype": "int32", "shape": [None, None, 2], "axis": "candidate", "rows": 7}
    raw = card.signatures["raw"]["inputs"]["history_codes"]
    assert raw["shape"] == [None, None] and raw["dtype"] in ("string", "int64")
    sequences = kr.data.build_sequences(log.events, log.schema)
    requests = kr.data.requests(sequences, max_history=6, delay=model.arguments["delay"])
    which = int(np.argmax(requests.history_end - requests.history_begin))
    want = keras.ops.convert_to_numpy(model.serving_model(requests.tensors([which], list(model.serving_model.input)))["click"])[0]
    rows = log.events.iloc[sequences.rows[requests.candidate_begin[which] : requests.candidate_end[which]]]
    history = log.events.iloc[sequences.rows[requests.history_begin[which] : requests.history_end[which]]]
    moment = int(rows[log.schema.time].iloc[0])
    new = rows["item_id"].copy()
    new.iloc[0] = new.iloc[0] * 0 + 10**9 if new.dtype.kind in "iu" else "never seen"
    with serve(version.parent, rest_port=0, grpc_port=0) as server:
        for protocol, signature in (("grpc", "serving_default"), ("grpc", "raw"), ("rest", "raw")):
            with Client(f"127.0.0.1:{getattr(server, f'{protocol}_port')}", log.schema, "ranker", protocol, signature=signature) as client:
                np.testing.assert_allclose(client.score(history, rows, moment)["click"].to_numpy(), want, rtol=0, atol=1e-5)
                expected = (ServingError, ValueError)
                with pytest.raises(expected):
                    client.score(history, rows.assign(item_id=new), moment)
