"""`Numbers` of the five models: the same in training, requests and caches, saved and trained; numbers are read as before without it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, pack
from keras_ranking.layers import NumericEmbedding

SIZES: dict[str, dict[str, Any]] = {
    "CADET": {"dim": 8, "num_heads": 2, "num_layers": 1},
    "FeedSR": {"dim": 8, "num_heads": 2, "num_layers": 1, "layout": "fused"},
    "LiRank": {"hidden": (8,), "cross_layers": 1, "rank": 2, "max_history": 4, "history_options": {"num_layers": 1, "latest": 2}},
    "AmortizedDLRM": {"hidden": (8,), "cross_layers": 1, "rank": 2, "dim": 8, "num_layers": 1, "max_history": 4},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "setwise_layers": 0, "max_history": 4},
}
BINS = ("age_hours", "editor_score", "item_views_24h", "dwell_seconds")
OPTIONS: dict[str, dict[str, Any]] = {
    "piecewise_linear": {"number_width": 3, "number_activation": "relu"},
    "periodic": {"number_width": None, "number_frequencies": 2, "number_sigma": 0.5, "number_plain": True},
    "linear": {"number_columns": ("age_hours", "item_views_24h", "dwell_seconds")},
}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=8, days=4, seed=1, feedback_delay=60)


def make(log: Any, builder: str, number_embedding: str | None = None, bins: Any = BINS, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    schema = log.schema.binned(5, bins).fit(log.events)
    chosen = {"number_embedding": number_embedding} if number_embedding else {}
    model = getattr(kr.models, builder)(schema, tasks=("click",), id_dim=4, **{**SIZES[builder], **chosen, **settings})
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def offline(model: Any, sequences: Any) -> np.ndarray:
    given = pack(sequences, 512) if model.form == "rows" else kr.training.model_requests(model, sequences)
    found = kr.training.predict_events(model, given)["click"]
    return found[:, model.serving_tower] if found.ndim > 1 and found.shape[1] > 1 else found.reshape(-1)


def number_layers(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, NumericEmbedding)]


@pytest.mark.parametrize(
    ("builder", "kind"), [*((name, "piecewise_linear") for name in SIZES), ("CADET", "periodic"), ("LiRank", "linear")]
)
@pytest.mark.quickest
def test_rows_and_requests_agree(log: Any, builder: str, kind: str) -> None:
    model = make(log, builder, kind, **OPTIONS[kind])
    sequences = build_sequences(log.events, model.schema)
    scores = offline(model, sequences)
    served = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    np.testing.assert_allclose(served, scores, rtol=0, atol=2e-6)
    # Control: a number moves scores where it is that of a candidate, and where it is that of a past event.
    for name in ("age_hours", "item_views_24h", "dwell_seconds"):
        moved = log.events.assign(**{name: log.events[name] * 1.5 + 1})
        assert np.abs(offline(model, build_sequences(moved, model.schema)) - scores).max() > 1e-4, name


@pytest.mark.parametrize("builder", ["CADET", "LiGR"])
@pytest.mark.quickest
def test_saving_and_training(log: Any, builder: str, tmp_path: Any) -> None:
    options = {**SIZES[builder], "id_dim": 4, "number_embedding": "piecewise_linear", "number_bins": 4, "epochs": 1}
    model, history = kr.training.train(log, builder, tmp_path / "run", options=options, verbose=False)
    assert np.isfinite(history["epochs"]["loss"]).all()
    assert model.arguments["number_columns"] == [name for name in model.arguments["number_columns"] if "dwell" not in name]
    fitted = {feature.name: feature.edges for feature in model.schema.features if isinstance(feature, kr.Number)}
    assert all(edges is not None and len(edges) <= 5 for edges in fitted.values())
    again = kr.models.load(tmp_path / "run")
    assert again.schema == model.schema
    sequences = build_sequences(log.events, model.schema)
    first = kr.training.predict_served(model, sequences)["click"]
    np.testing.assert_array_equal(kr.training.predict_served(again, sequences)["click"], first)
    new = (log.events["split"] == "validation").to_numpy()
    kr.training.warm_start(log, tmp_path / "run", new, verbose=False)  # a log whose schema has no bins


@pytest.mark.quickest
def test_objects_and_options_are_the_same(log: Any) -> None:
    numbers = kr.models.Numbers(number_embedding="periodic", number_width=2)
    schema = log.schema.fit(log.events)
    for builder, sizes in SIZES.items():
        build = getattr(kr.models, builder)
        first, second = build(schema, numbers, **sizes), build(schema, number_embedding="periodic", number_width=2, **sizes)
        assert first.arguments == second.arguments
        assert {layer.width for layer in number_layers(first)} == {2}


@pytest.mark.quickest
def test_candidates_and_past_events_share_the_weights_of_a_number(log: Any) -> None:
    for builder in ("LiRank", "AmortizedDLRM", "LiGR"):
        found = [layer.edges for layer in number_layers(make(log, builder, "piecewise_linear"))]
        assert sorted(map(len, found)) == [1, 3], "one layer of features, one of actions"


@pytest.mark.quickest
def test_a_model_without_it_is_as_before(log: Any) -> None:
    for builder in SIZES:
        model, binned = make(log, builder, bins=()), make(log, builder)
        assert not any(name.startswith("number_") for name in model.arguments)
        assert not number_layers(binned)
        for first, second in zip(model.get_weights(), binned.get_weights(), strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "mixed_float16"])
@pytest.mark.quickest
def test_bins_are_exact_under_half_policies(log: Any, policy: str) -> None:
    """A model whose bins are finer than bfloat16 tells numbers apart that bfloat16 does not."""
    for builder in ("CADET", "LiRank"):
        schema = log.schema.binned(2, ["age_hours"]).fit(log.events)
        edges = {"edges": (1.0, 1.0 + 2.0**-12, 1.0 + 2.0**-11), "transform": "identity"}
        fine = tuple(feature.model_copy(update=edges) if feature.name == "age_hours" else feature for feature in schema.features)
        schema = schema.model_copy(update={"features": fine})
        keras.utils.set_random_seed(0)
        settings = {**SIZES[builder], "number_embedding": "piecewise_linear", "dtype": policy, "tasks": ("click",)}
        model = getattr(kr.models, builder)(schema, **settings)
        scores = []
        for age in (1.0, 1.0 + 2.0**-11):
            sequences = build_sequences(log.events.assign(age_hours=age), schema)
            scores.append(offline(model, sequences))
        assert np.abs(scores[0] - scores[1]).max() > 1e-3


@pytest.mark.quickest
def test_errors(log: Any) -> None:
    schema = log.schema.fit(log.events)
    with pytest.raises(ValueError, match=r"needs numbers with bins: Number\('age_hours', bins=16\), or `schema.binned\(16\)`"):
        kr.models.CADET(schema, number_embedding="piecewise_linear")
    with pytest.raises(ValueError, match=r"the bins of \['age_hours'\] have no edges yet: call `schema = schema.fit"):
        kr.models.LiRank(log.schema.binned(4, ["age_hours"]), number_embedding="piecewise_linear")
    with pytest.raises(ValueError, match=r"`number_columns` must be numbers that the model reads, .*Received: \['topic'\]"):
        kr.models.LiGR(schema, number_embedding="periodic", number_columns=("topic",))
    with pytest.raises(ValueError, match="`number_embedding` must be one of"):
        kr.models.FeedSR(schema, number_embedding="spline")
    with pytest.raises(ValueError, match="`number_width` has no effect without `number_embedding`"):
        kr.models.FeedSR(schema, number_width=4)
    with pytest.raises(ValueError, match="`number_embedding` needs at least one number that the model reads"):
        kr.models.LiRank(schema, number_embedding="linear", features=("topic",), history_features=())
    with pytest.raises(ValueError, match="with `number_plain=True` a number with a vector is one"):
        kr.models.LiRank(schema, number_embedding="linear", list_context=True)
    with pytest.raises(ValueError, match="`number_bins` has no effect without `number_embedding`"):
        kr.training.train(log, "cadet", options={"number_bins": 4}, verbose=False)
    concat = {"kind": "piecewise_linear", "columns": ["a"]}
    with pytest.raises(ValueError, match=r"needs numbers with fitted edges: .*Received: \['a'\]"):
        kr.layers.FeatureConcat([kr.Number("a", bins=3)], numbers=concat)
    with pytest.raises(ValueError, match=r"`numbers` must have `columns` that are numbers, of \['a'\]. Received: columns=\['b'\]"):
        kr.layers.FeatureConcat([kr.Number("a")], numbers={**concat, "columns": ["b"]})
