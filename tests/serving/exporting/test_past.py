"""Models that read the past, and a choice, exported: every signature, int8 tables, and a cache with other values beyond its length."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.serving import export, quantize_embeddings
from keras_ranking.serving.protocol.model_folder import read_card

tf = pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.one_backend, pytest.mark.slow]  # an export with all its checks

PAST: dict[str, Any] = {"past_heads": 2, "past_linear": 1, "past_matches": ("topic",), "past_dim": 4, "past_logit": True}
SMALL: dict[str, Any] = {"id_dim": 4, "action_dim": 4, "max_history": 6, "tasks": ("click",)}
MODELS: dict[str, dict[str, Any]] = {
    "LiRank": {"hidden": (8,), "cross": "none", "history_options": {"num_layers": 1}},
    "AmortizedDLRM": {"hidden": (8,), "cross": "none", "dim": 8, "num_layers": 1},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "setwise_layers": 0, "list_context": True, "choice": ("click",)},
}


def spoilt(cache: dict[str, Any]) -> dict[str, Any]:
    """NaN, or an id that matches, at the places of the past beyond the length."""
    length, changed = np.asarray(cache["cache_length"]), dict(cache)
    for name in (name for name in cache if name.startswith("cache_past_")):
        value = np.array(cache[name])
        beyond = np.arange(value.shape[1])[None, :] >= length[:, None]
        value[beyond] = 1 if value.dtype == np.int32 else np.nan
        changed[name] = tf.constant(value)
    return changed


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="loads the graph in this process")
@pytest.mark.parametrize(
    ("kind", "quantize"),
    [
        ("LiRank", None),
        pytest.param("AmortizedDLRM", "int8", marks=pytest.mark.release),
        pytest.param("LiGR", None, marks=pytest.mark.release),
    ],
)
def test_signatures(kind: str, quantize: str | None, tmp_path: Any) -> None:
    log = kr.data.simulate(members=10, days=4, seed=0, feedback_delay=60)
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **SMALL, **MODELS[kind], **PAST)
    into_logits = [variable for variable in model.trainable_variables if "past_logit" in variable.path]
    assert into_logits
    for variable in into_logits:  # which start at 0
        variable.assign(0.5 + keras.ops.zeros_like(variable))
    version = export(model, tmp_path / "ranker", events=log.events, quantize=quantize)
    card = read_card(version)
    assert {"raw", "encode_history", "score_candidates"} <= set(card.signatures) and card.verified["largest_difference"] <= 1e-5
    assert "cache_past_id_topic" in card.signatures["encode_history"]["outputs"]
    model = quantize_embeddings(model) if quantize else model
    found = kr.data.requests(log.events, model.schema)
    which = np.argsort(found.history_begin - found.history_end, kind="stable")[[0, 1, -1]]
    tensors = found.tensors(which, list(model.serving_model.input))
    want = np.asarray(model.serving_model(tensors)["click"])
    signatures = tf.saved_model.load(str(version)).signatures

    def run(name: str, given: dict[str, Any]) -> dict[str, Any]:
        wanted = signatures[name].structured_input_signature[1]
        return dict(signatures[name](**{key: tf.constant(given[key]) for key in wanted}))

    cache = run("encode_history", tensors)
    np.testing.assert_allclose(run("serving_default", tensors)["click"], want, rtol=0, atol=2e-6)
    for each in (cache, spoilt(cache)):
        np.testing.assert_allclose(run("score_candidates", {**tensors, **each})["click"], want, rtol=0, atol=2e-6)
    assert (np.asarray(cache["cache_length"]) < cache["cache_past_id_topic"].shape[1]).any()
