"""Towers by another column than the position: which tower learns, what is served, and what is refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack, requests
from keras_ranking.training.setup import training_data
from tests.layers.common import numpy

SLOTS = ("banner", "list", "carousel")
SMALL: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,), "id_dim": 4, "tasks": ("click",)}
pytestmark = pytest.mark.usefixtures("quick_calls")


@pytest.fixture(scope="module")
def log() -> Any:
    log = kr.data.simulate(members=8, days=4, seed=1, feedback_delay=60)
    rng = np.random.default_rng(0)
    events = log.events.assign(place=rng.choice(SLOTS, len(log.events)), page=rng.integers(1, 9, len(log.events)))
    columns = (kr.Category("place", vocabulary=SLOTS, known="after"), kr.Number("page", known="after"))
    schema = log.schema.model_copy(update={"features": (*log.schema.features, *columns)})
    return kr.data.Log(events, schema.fit(events), "with places")


def make(log: Any, **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = kr.models.CADET(log.schema, **{**SMALL, "tower_by": "place", **settings})
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def batch(model: Any, log: Any) -> tuple[Any, ...]:
    sequences = build_sequences(log.events, log.schema)
    options = kr.training.TrainingOptions(row_length=96, batch_size=4)
    dataset, _ = training_data(model, sequences, options, 0)
    return sequences, dataset, dataset[0]


def test_the_tower_of_the_column_learns(log: Any) -> None:
    """The loss is that of the tower of each impression's place, and only those towers change that a batch has places for."""
    model = make(log)
    _, _, (x, y, weights) = batch(model, log)
    assert model.boundaries == (1, 2) and model.tower_by == "place" and "place" not in model.input_columns
    logits, label, place = numpy(model(x)["click"]), y["click"][..., 0], y["click"][..., 1].astype(int)
    assert logits.shape[-1] == 3 and set(np.unique(place[weights["click"] > 0])) == {1, 2, 3}
    own = np.take_along_axis(logits, np.maximum(place - 1, 0)[..., None], axis=-1)[..., 0]
    want = (weights["click"] * (np.logaddexp(0, own) - label * own)).sum() / weights["click"].sum()
    loss = model.losses_by_task()["click"]
    np.testing.assert_allclose(float(loss(y["click"], model(x)["click"], weights["click"])), want, rtol=1e-5)
    shown = np.searchsorted((1, 4), np.where(weights["click"] > 0, place, 0))
    assert np.abs(np.take_along_axis(logits, shown[..., None], axis=-1)[..., 0] - own).max() > 1e-2, "control: towers by position"
    alone = {"click": weights["click"] * (place == 2)}
    towers = {w.path: numpy(w) for w in model.trainable_variables if "towers_click" in w.path}
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=model.losses_by_task())
    model.train_on_batch(x, y, alone)
    moved = {w.path: not np.array_equal(numpy(w), towers[w.path]) for w in model.trainable_variables if w.path in towers}
    assert moved and all(changed == ("tower_1_" in path) for path, changed in moved.items()), moved


def test_served_and_saved(log: Any, tmp_path: Any) -> None:
    """All towers are returned under the column's name; the score is that of `serving_tower`, or a mixture."""
    model = make(log, serving_tower=2)
    tensors = requests(build_sequences(log.events, log.schema)).tensors([5, 9], list(model.serving_model.input))
    served = {name: numpy(value) for name, value in model.serving_model(tensors).items()}
    assert sorted(served) == ["click", "click_by_place"] and served["click_by_place"].shape[-1] == 3
    np.testing.assert_array_equal(served["click"], served["click_by_place"][..., 2])
    assert np.abs(served["click"] - served["click_by_place"][..., 0]).max() > 1e-3, "control: towers differ"
    mixed = make(log, serving="mixture", tower_prior=(0.2, 0.3, 0.5))
    found = {name: numpy(value) for name, value in mixed.serving_model(tensors).items()}
    np.testing.assert_allclose(found["click"], found["click_by_place"] @ [0.2, 0.3, 0.5], rtol=1e-5)
    model.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path / "model.keras")
    assert again.arguments == model.arguments and again.tower_by == "place"
    np.testing.assert_array_equal(numpy(again.serving_model(tensors)["click_by_place"]), served["click_by_place"])
    assert "tower_by" not in kr.models.CADET(log.schema, **SMALL).arguments, "models of earlier versions are saved as they were"


def test_evaluated_at_the_place_shown(log: Any) -> None:
    from keras_ranking.training.scoring.events import logits_of_targets

    model = make(log)
    sequences = build_sequences(log.events, log.schema)
    rows = pack(sequences, 128)
    dataset = PackedDataset(rows, len(rows.index), inputs=model.input_columns, shuffle=False)
    towers = rows.scatter(numpy(model(dataset[0][0])["click"]))
    place = np.asarray(sequences.columns["place"]) - 1
    np.testing.assert_allclose(logits_of_targets(model, rows)["click"], np.take_along_axis(towers, place[:, None], axis=1)[:, 0], atol=1e-5)


@pytest.mark.one_backend
def test_pages_have_boundaries(log: Any) -> None:
    model = make(log, tower_by="page", tower_boundaries=(1, 3))
    sequences, _, (_, y, weights) = batch(model, log)
    assert model.boundaries == (1, 3)
    real = weights["click"] > 0
    assert set(np.unique(y["click"][..., 1][real])) == set(range(1, 9)), "pages, as they are"
    with pytest.raises(ValueError, match="`tower_boundaries` must be given for towers by a number"):
        make(log, tower_by="page")
    events = log.events.copy()
    events["page"] = events["page"].astype(float)
    events.loc[events.index[3], "page"] = 2.5
    with pytest.raises(
        ValueError, match="column 'page', which the towers go by, must hold whole numbers from 1 on. Received: 2.5 at row 3"
    ):
        batch(model, kr.data.Log(events, log.schema, "halves"))
    assert sequences.by_column(None) is sequences


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tower_by": "topic"}, "Received: 'topic', a Category known='item'"),
        ({"tower_by": "nothing"}, "Received: 'nothing', no feature of the schema"),
        ({"tower_boundaries": (2,)}, "`tower_boundaries` are not for towers by a category"),
        ({"serving_tower": 3}, "`serving_tower` must be from 0 to 2. Received: serving_tower=3"),
    ],
)
def test_what_is_refused(log: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(log, **settings)


@pytest.mark.one_backend
def test_unknown_places_are_refused(log: Any) -> None:
    events = log.events.copy()
    events.loc[events.index[[4, 7]], "place"] = "sidebar"
    with pytest.raises(ValueError, match=r"column 'place', which the towers go by, has no known value at row 4 \(2 training rows\)"):
        batch(make(log), kr.data.Log(events, log.schema, "sidebar"))


@pytest.mark.slow
@pytest.mark.one_backend
def test_shards_train_the_same_towers(log: Any, tmp_path: Any) -> None:
    """One shard: the losses of the frame; pairs are those of one place."""
    settings = {"epochs": 1, "row_length": 128, "batch_size": 4, "tower_by": "place", "pairwise_weight": 0.1, **SMALL}
    del settings["tasks"]
    whole, history = kr.training.train(log, "cadet", options=settings, verbose=False)
    shards = kr.data.prepare(log, tmp_path / "shards", shards=1)
    _, of_shards = kr.training.train(shards, "cadet", options=settings, verbose=False)
    assert whole.tower_by == "place"
    np.testing.assert_allclose(of_shards["epochs"]["loss"], history["epochs"]["loss"], rtol=1e-6)
    assert of_shards["pairs"] == history["pairs"] and 0 < history["pairs"]["click"]["share"] < 1
    assert set(kr.training.evaluate(whole, log, "validation")) >= {"click"}
