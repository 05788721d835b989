"""`Past` of CADET and FeedSR: the same in rows of training and in requests, and worth something where the past is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, pack

SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tasks": ("click",)}
READS: dict[str, Any] = {"past_heads": 2, "past_linear": 1, "past_matches": ("author_id", "topic"), "past_dim": 4}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=8, days=5, seed=1, feedback_delay=60)


def randomise(model: Any) -> None:
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("CADET", {}),
        ("CADET", {"layout": "value", "max_history": 5}),
        ("FeedSR", {"layout": "fused", "mask": "session"}),
    ],
)
@pytest.mark.quickest
def test_rows_and_requests_agree(log: Any, kind: str, arguments: dict[str, Any]) -> None:
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **{**SMALL, **READS, **arguments})
    randomise(model)
    sequences = build_sequences(log.events, model.schema)
    offline = kr.training.predict_events(model, pack(sequences, 512))["click"]
    offline = offline[:, model.serving_tower] if offline.ndim > 1 else offline
    served = kr.training.predict_served(model, sequences, whole_session=False)["click"]
    np.testing.assert_allclose(served, offline, rtol=0, atol=2e-6)
    assert offline.std() > 0.05


@pytest.mark.quickest
def test_what_is_read_goes_through_saving_and_caches(log: Any, tmp_path: Any) -> None:
    schema = log.schema.fit(log.events)
    model = kr.models.CADET(schema, kr.models.Past(**READS), **SMALL)
    same = kr.models.CADET(schema, **READS, **SMALL)
    assert same.arguments == model.arguments
    randomise(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    sequences = build_sequences(log.events, schema)
    first = kr.training.predict_served(model, sequences)["click"]
    np.testing.assert_array_equal(kr.training.predict_served(again, sequences)["click"], first)
    assert {"past_key", "past_value", "past_numbers", "past_id_topic"} <= set(model.encoder.output)


def test_a_model_without_it_is_as_before(log: Any) -> None:
    model = kr.models.CADET(log.schema, **SMALL)
    assert not any(name.startswith("past") for name in model.arguments)
    assert not any("past" in weight.path for weight in model.weights)


@pytest.mark.quickest
def test_errors(log: Any) -> None:
    with pytest.raises(ValueError, match="must be of `token_features`"):
        kr.models.CADET(log.schema, token_features=("topic",), past_matches=("author_id",))
    with pytest.raises(
        ValueError, match="`past_matches` must name columns of one id with `buckets`, or categories. Received: \\['age_hours'\\]"
    ):
        kr.models.CADET(log.schema, past_matches=("age_hours",))
    with pytest.raises(ValueError, match="`past_numbers` must name actions that are numbers"):
        kr.models.CADET(log.schema, past_heads=1, past_numbers=("clicks",))
    with pytest.raises(ValueError, match="`past_keys` must name at least one column"):
        kr.models.CADET(log.schema, token_features=("age_hours",), past_heads=1)
    with pytest.raises(ValueError, match="must not be negative"):
        kr.models.FeedSR(log.schema, past_heads=-1)
    with pytest.raises(ValueError, match="an action that is a number"):
        kr.models.CADET(log.schema, past_linear=1, past_numbers=())
