"""Models with choices and list context, exported: every signature, in one step and in two, and int8 tables."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.serving import export, quantize_embeddings
from keras_ranking.serving.protocol.model_folder import read_card

tf = pytest.importorskip("tensorflow")
# An export with all its checks; before a release, since test_past.py has a LiGR with both.
pytestmark = [pytest.mark.one_backend, pytest.mark.slow, pytest.mark.release]

LISTS: dict[str, Any] = {"list_context": True, "list_pooling": 8, "choice": ("click",), "id_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "CADET": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_boundaries": (), "tower_hidden": (8,)},
    "LiRank": {"hidden": (8,), "cross": "none", "history_options": {"num_layers": 1}, "max_history": 6},
}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="loads the graph in this process")
@pytest.mark.parametrize(("kind", "quantize"), [("CADET", None), ("LiRank", "int8")])
def test_signatures(kind: str, quantize: str | None, tmp_path: Any) -> None:
    log = kr.data.simulate(members=10, days=4, seed=0, feedback_delay=60)
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **LISTS, **MODELS[kind])
    for weight in model._graphs.wiring.choices.layers["click"].weights:  # which start at 0
        weight.assign(0.5)
    version = export(model, tmp_path / "ranker", events=log.events, quantize=quantize)
    card = read_card(version)
    assert {"raw", "encode_history", "score_candidates"} <= set(card.signatures) and card.verified["largest_difference"] <= 1e-5
    model = quantize_embeddings(model) if quantize else model
    found = kr.data.requests(log.events, model.schema)
    tensors = found.tensors(np.arange(4), list(model.serving_model.input))
    want = np.asarray(model.serving_model(tensors)["click"])
    signatures = tf.saved_model.load(str(version)).signatures

    def run(name: str, given: dict[str, Any]) -> dict[str, Any]:
        wanted = signatures[name].structured_input_signature[1]
        return dict(signatures[name](**{key: tf.constant(given[key]) for key in wanted}))

    cache = run("encode_history", tensors)
    np.testing.assert_allclose(run("serving_default", tensors)["click"], want, rtol=0, atol=2e-6)
    np.testing.assert_allclose(run("score_candidates", {**tensors, **cache})["click"], want, rtol=0, atol=2e-6)
    sums = want.sum(axis=1)
    assert (sums < 1).all() and (sums > 0).all() and np.abs(run("serving_default", tensors)["like"].numpy().sum(axis=1) - sums).min() > 1e-3
