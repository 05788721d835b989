"""Sets of ids in the five models: the same scores in training rows, requests and caches; trained, saved, in int8, with a shared table."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, pack

SIZES: dict[str, dict[str, Any]] = {
    "CADET": {"dim": 8, "num_heads": 2, "num_layers": 1},
    "FeedSR": {"dim": 8, "num_heads": 2, "num_layers": 1, "layout": "fused", "head_options": {"hidden": (4,)}},
    "LiRank": {"hidden": (8,), "cross_layers": 1, "rank": 2, "max_history": 4, "history_options": {"num_layers": 1, "latest": 2}},
    "AmortizedDLRM": {"hidden": (8,), "cross_layers": 1, "rank": 2, "dim": 8, "num_layers": 1, "max_history": 4},
    "LiGR": {"dim": 8, "num_layers": 1, "num_heads": 2, "setwise_layers": 0, "max_history": 4},
}
SETS = (
    kr.Ids("tags", vocabulary=[f"t{tag}" for tag in range(12)], size=5, pooling="max"),
    kr.Ids("brands", buckets=None, divisor=2**20, size=3, pooling="sum"),
    kr.Ids("bought", buckets=300, size=4, separator=" ", table="item_id", known="context"),
)


@pytest.fixture(scope="module")
def log() -> Any:
    """A simulated log with a list of tags and brands of each item, and of items that the member bought as text; some have none."""
    log = kr.data.simulate(members=8, days=4, seed=1, feedback_delay=60)
    rng, items = np.random.default_rng(0), log.events["item_id"]

    def of_each(values: Any, make: Any) -> list[Any]:
        made = {value: make() for value in values.unique()}
        return [made[value] for value in values]

    events = log.events.assign(
        tags=of_each(items, lambda: [f"t{tag}" for tag in rng.integers(0, 14, rng.integers(0, 5))] or None),
        brands=of_each(items, lambda: rng.integers(0, 10**9, rng.integers(0, 4)).tolist()),
        bought=of_each(log.events["request_id"], lambda: " ".join(map(str, rng.choice(items, rng.integers(0, 5))))),
    )
    features = [kr.Id("item_id", buckets=300) if feature.name == "item_id" else feature for feature in log.schema.features]
    schema = log.schema.model_copy(update={"features": (*features, *SETS)})
    return kr.data.Log(events, schema.fit(events), "with sets")


def make(log: Any, builder: str, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, builder)(log.schema, tasks=("click",), id_dim=4, **{**SIZES[builder], **settings})
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def offline(model: Any, sequences: Any) -> np.ndarray:
    given = pack(sequences, 512) if model.form == "rows" else kr.training.model_requests(model, sequences)
    found = kr.training.predict_events(model, given)["click"]
    return found[:, model.serving_tower] if found.ndim > 1 and found.shape[1] > 1 else found.reshape(-1)


def served(model: Any, sequences: Any) -> np.ndarray:
    return np.asarray(kr.training.predict_served(model, sequences, whole_session=False)["click"])


@pytest.mark.quickest
@pytest.mark.parametrize("builder", SIZES)
def test_rows_requests_and_training(log: Any, builder: str) -> None:
    model = make(log, builder)
    sequences = build_sequences(log.events, log.schema)
    scores = offline(model, sequences)
    np.testing.assert_allclose(served(model, sequences), scores, rtol=0, atol=2e-6)
    # Ids in another order and empty places anywhere are the same sets. Control: without the ids of one column scores move.
    rng, columns = np.random.default_rng(0), dict(sequences.columns)
    for name in ("tags", "brands", "bought"):
        place = rng.permuted(np.broadcast_to(np.arange(columns[name].shape[1]), columns[name].shape[:2]), axis=1)
        sequences.columns[name] = np.take_along_axis(columns[name], place if columns[name].ndim == 2 else place[..., None], axis=1)
        assert (sequences.columns[name] != columns[name]).any()
    np.testing.assert_allclose(offline(model, sequences), scores, rtol=0, atol=2e-6)
    for name in ("tags", "brands", "bought"):
        sequences.columns[name] = np.full_like(columns[name], -1)
        assert np.abs(offline(model, sequences) - scores).max() > 1e-4, name
        sequences.columns[name] = columns[name]
    options = kr.training.TrainingOptions(row_length=64, batch_size=4)
    batch = kr.training.setup.training_data(model, sequences, options)[0][0]
    tables = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.trainable_variables if "table_" in weight.path}
    model.compile(kr.training.TableOptimizer("adam"), loss=model.losses_by_task())
    assert np.isfinite(model.train_on_batch(*batch))
    moved_tables = [path for weight in model.trainable_variables if (path := weight.path) in tables and (weight != tables[path]).any()]
    for table in ("table_tags", "table_brands", "table_item_id"):
        assert any(table in path for path in moved_tables), table


@pytest.mark.quickest
def test_a_shared_table_is_one_table(log: Any) -> None:
    paths = [weight.path for weight in make(log, "LiRank").trainable_variables if "table_" in weight.path]
    assert sum("item_id" in path for path in paths) == 1 and not any("table_bought" in path for path in paths)
    again = make(log, "LiRank", shared_tables={"words": ("tags",)})
    assert any("table_words" in weight.path for weight in again.trainable_variables)


@pytest.mark.quickest
@pytest.mark.parametrize("builder", ["LiRank", pytest.param("CADET", marks=pytest.mark.release)])
def test_saved_in_int8_and_trained_by_rows(log: Any, builder: str, tmp_path: Any) -> None:
    options = {**SIZES[builder], "id_dim": 4, "epochs": 1, "table_optimizer": "rowwise_adagrad", "row_length": 64, "batch_size": 4}
    model, history = kr.training.train(log, builder, tmp_path / "run", options=options, verbose=False)
    assert np.isfinite(history["epochs"]["loss"]).all()
    again = kr.models.load(tmp_path / "run")
    assert again.schema == model.schema
    sequences = build_sequences(log.events, model.schema)
    first = served(model, sequences)
    np.testing.assert_array_equal(served(again, sequences), first)
    small = kr.serving.quantize_embeddings(model)
    assert 0 < np.abs(served(small, sequences) - first).max() < 2e-2
    small.save(tmp_path / "small.keras")
    np.testing.assert_array_equal(served(kr.models.load(tmp_path / "small.keras"), sequences), served(small, sequences))


@pytest.mark.quickest
def test_where_a_set_cannot_be(log: Any) -> None:
    with pytest.raises(ValueError, match=r"`past_matches` must name columns of one id with `buckets`, or categories. Received: \['tags'\]"):
        make(log, "CADET", past_matches=("tags",))
    with pytest.raises(ValueError, match="to columns of one id with buckets, or categories. Received: 'click': 'tags'"):
        make(log, "LiRank", random_effects={"click": "tags"})


@pytest.mark.quickest
def test_the_past_is_read_with_sets_as_keys(log: Any) -> None:
    model = make(log, "CADET", past_heads=1, past_dim=4, past_keys=("item_id", "tags", "brands"))
    sequences = build_sequences(log.events, log.schema)
    np.testing.assert_allclose(served(model, sequences), offline(model, sequences), rtol=0, atol=2e-6)
