"""`list_context` and `list_pooling`: the same in rows and in requests, whatever the order; a candidate sees the others."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, requests

pytestmark = pytest.mark.usefixtures("quick_calls")

SIZES: dict[str, dict[str, Any]] = {
    "LiRank": {"hidden": (8,), "cross_layers": 1, "rank": 2, "max_history": 4, "history_options": {"num_layers": 1, "latest": 2}},
    "AmortizedDLRM": {"hidden": (8,), "cross_layers": 1, "rank": 2, "dim": 8, "num_layers": 1, "max_history": 4},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "setwise_layers": 0, "max_history": 4},
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=10, days=3, seed=1)


def make(log: Any, kind: str, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, kind)(log.schema.fit(log.events), tasks=("click",), id_dim=4, **{**SIZES[kind], **settings})
    rng = np.random.default_rng(0)
    model.set_weights([w + (0.05 * rng.normal(size=w.shape)).astype(w.dtype) if w.dtype == "float32" else w for w in model.get_weights()])
    return model


def served(model: Any, found: Any, which: np.ndarray, order: Any = None, **change: Any) -> np.ndarray:
    tensors = found.tensors(which, list(model.serving_model.input))
    for name, value in list(tensors.items()):
        if order is not None and name.startswith("candidate_") and value.ndim > 1:
            tensors[name] = value[:, order]
    tensors |= {name: function(tensors[name]) for name, function in change.items()}
    return np.asarray(keras.ops.convert_to_numpy(model.serving_model(tensors)["click"]))


LISTS = {"context": {"list_context": True}, "pooling": {"list_pooling": 8}, "both": {"list_context": True, "list_pooling": 8}}
CASES = [
    *(("LiRank", {"history_features": ()}, lists) for lists in LISTS),
    *((kind, {}, lists) for kind in SIZES for lists in LISTS if kind != "LiGR" or lists == "context"),
]


@pytest.mark.parametrize(("kind", "settings", "lists"), CASES)
@pytest.mark.quickest
def test_rows_and_requests_agree(log: Any, kind: str, settings: dict[str, Any], lists: str) -> None:
    model = make(log, kind, **LISTS[lists], **settings)
    sequences = build_sequences(log.events, model.schema)
    offline = kr.training.predict_events(model, kr.training.model_requests(model, sequences))["click"].reshape(-1)
    other = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    np.testing.assert_allclose(other, offline, rtol=0, atol=2e-6)
    found = requests(sequences)
    which = np.flatnonzero(found.candidate_end - found.candidate_begin > 2)[:3]
    first = served(model, found, which)
    counts = found.tensors(which, ["candidate_count"])["candidate_count"]
    size = int(counts.min())
    order = np.r_[np.arange(size)[::-1], np.arange(size, first.shape[1])]
    same = counts == size
    np.testing.assert_allclose(served(model, found, which, order)[same], first[same][:, order], rtol=0, atol=2e-6)

    def raised(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[:, 0] += 3.0
        return values

    moved = served(model, found, which, candidate_age_hours=raised)
    assert np.abs(moved - first)[:, 1:size].max() > 1e-4
    alone = make(log, kind, **settings)  # control: without it a candidate is scored alone
    np.testing.assert_allclose(
        served(alone, found, which, candidate_age_hours=raised)[:, 1:size], served(alone, found, which)[:, 1:size], atol=1e-7
    )


@pytest.mark.quickest
def test_saving_training_and_exploring(log: Any, tmp_path: Any) -> None:
    options = {**SIZES["LiRank"], **LISTS["both"], "history_features": (), "id_dim": 4, "explore": ("click",)}
    model, history = kr.training.train(log, "lirank", epochs=1, options=options, verbose=False)
    assert np.isfinite(history["epochs"]["loss"]).all() and model.arguments["list_pooling"] == 8
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    sequences = build_sequences(log.events, model.schema)
    first = kr.training.predict_served(model, sequences)["click"]
    np.testing.assert_array_equal(kr.training.predict_served(again, sequences)["click"], first)
    found = requests(sequences)
    graph = model.explore_model if hasattr(model, "explore_model") else model._graphs.wiring.explore("explore")
    tensors = found.tensors(np.arange(3), [name for name in graph.input if name != "seed"])
    out = graph({**tensors, "seed": np.arange(3, dtype="int32")})
    assert np.isfinite(keras.ops.convert_to_numpy(out["click"])).all()
    assert not {"list_context", "list_pooling"} & set(make(log, "LiRank").arguments)


@pytest.mark.quickest
def test_errors(log: Any) -> None:
    with pytest.raises(ValueError, match="needs at least one number"):
        make(log, "LiRank", list_context=True, features=("topic",))
    for option in ({"list_context": True}, {"list_pooling": 8}):
        with pytest.raises(ValueError, match="does not go with fusion='append_self'"):
            make(log, "AmortizedDLRM", fusion="append_self", **option)
    with pytest.raises(ValueError, match="`list_pooling` must be a positive width, or 0. Received: list_pooling=-1"):
        make(log, "LiRank", list_pooling=-1)
    with pytest.raises(ValueError, match="`list_pooling` is not for LiGR, whose `setwise_layers` read the list"):
        make(log, "LiGR", list_pooling=8)
