"""The daily step: a Fisher penalty that holds weights, snapshots beside the run, effects on their schedule, one report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import FisherPenalty, FisherSnapshot, RefreshEffects, daily_step, warm_start
from keras_ranking.training.daily.penalty import measured_on, single_events
from keras_ranking.training.incremental.fisher import COLD, PREVIOUS, trainable_weights
from keras_ranking.training.scoring.events import metrics_of, rows_to_score

OPTIONS: dict[str, Any] = {"history_features": (), "hidden": (8,), "cross_layers": 1, "row_length": 32, "batch_size": 2}
OPTIONS |= {"explore": ("click",), "random_effects": {"click": "author_id"}, "learning_rate": 2e-3, "schedule": "constant"}
FEW = FisherPenalty(samples=64)


@pytest.fixture(scope="module")
def log() -> kr.data.Log:
    return kr.data.simulate(members=25, days=3, seed=4)


@pytest.fixture(scope="module")
def new(log: kr.data.Log) -> np.ndarray:
    return (log.events["split"] == "validation").to_numpy()


@pytest.fixture(scope="module")
def run(log: kr.data.Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "monday"
    kr.training.train(log, "lirank", folder, epochs=1, options=OPTIONS, verbose=False)
    return folder


@pytest.fixture(scope="module")
def held(log: kr.data.Log, new: np.ndarray, run: Path) -> Path:
    """A step with a penalty that is far stronger than the loss."""
    folder = run.with_name("held")
    warm_start(log, run, new, folder, epochs=4, verbose=False, penalty=FisherPenalty(forgetting=1e5, samples=64))
    return folder


def moved(before: Path, after: Path) -> float:
    """The change of weights, each by the root of its Fisher information before the step."""
    snapshot, now = FisherSnapshot.load(after / COLD), FisherSnapshot.load(after / PREVIOUS).weights
    return float(sum((fisher * (now[path] - snapshot.weights[path]) ** 2).sum() for path, fisher in snapshot.fisher.items()))


@pytest.mark.release("jax", "tensorflow")  # `tests/training/incremental` has the penalty itself on each
def test_weights_with_information_are_held(log: kr.data.Log, new: np.ndarray, run: Path, held: Path) -> None:
    free = run.with_name("free")
    warm_start(log, run, new, free, epochs=4, verbose=False, penalty=FisherPenalty(forgetting=0.0, samples=64))
    plain, _ = warm_start(log, run, new, None, epochs=4, verbose=False)
    for own, other in zip(kr.models.load(free).get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)  # without a weight it is the step without a penalty
    assert moved(run, held) < 0.5 * moved(run, free)


@pytest.mark.release("jax", "tensorflow")
def test_snapshots_go_on(log: kr.data.Log, new: np.ndarray, held: Path) -> None:
    """The next step reads what this one left, and adds the new information to a share of the old."""
    first = json.loads((held / "history.json").read_text())["penalty"]
    assert (first["measured_first"], first["samples"], first["forgetting"]) == (True, 64, 1e5)
    out = held.with_name("wednesday")
    model, history = warm_start(log, held, new, out, verbose=False, penalty="fisher")
    assert history["penalty"]["measured_first"] is False and history["penalty"]["samples"] == int(new.sum())
    before, after = FisherSnapshot.load(held / PREVIOUS), FisherSnapshot.load(out / PREVIOUS)
    assert (out / COLD).read_bytes() == (held / COLD).read_bytes()
    sequences = kr.data.build_sequences(log.events, model.schema, target=new)
    alone = measured_on(model, sequences, kr.training.TrainingOptions(), None, 0)
    for path, fisher in after.fisher.items():
        np.testing.assert_allclose(fisher, alone.fisher[path] + 0.9 * before.fisher[path], rtol=1e-4, atol=1e-10)
        np.testing.assert_array_equal(after.weights[path].shape, fisher.shape)


@pytest.mark.release("jax", "tensorflow")
def test_a_step_without_a_penalty_leaves_no_snapshot(log: kr.data.Log, new: np.ndarray, held: Path) -> None:
    """Its weights are others; a step without training keeps them, and the snapshots."""
    other = held.with_name("kept")
    shutil.copytree(held, other)
    model, _ = warm_start(log, other, new, other, epochs=0, verbose=False, penalty=FEW)
    for own, before in zip(model.get_weights(), kr.models.load(held).get_weights(), strict=True):
        np.testing.assert_array_equal(own, before)
    assert (other / PREVIOUS).read_bytes() == (held / PREVIOUS).read_bytes()
    warm_start(log, other, new, other, verbose=False)
    assert not (other / PREVIOUS).exists() and not (other / COLD).exists()


def test_what_cannot_hold(log: kr.data.Log, new: np.ndarray, run: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(run, mixed)
    weights = {path: weight + 1 for path, weight in trainable_weights(kr.models.load(run)).items()}
    FisherSnapshot(weights, weights, 1).save(mixed / PREVIOUS)
    with pytest.raises(ValueError, match="is of other weights than the model in .* the model was changed after the daily step"):
        warm_start(log, mixed, new, None, verbose=False, penalty=FEW)
    alone = kr.data.Log(log.events.assign(split=np.where(log.events["split"] == "train", "history", log.events["split"])), log.schema)
    with pytest.raises(ValueError, match="measures on rows that were trained on: the log has none beside the new ones"):
        warm_start(alone, run, new, None, verbose=False, penalty=FEW)
    with pytest.raises(ValueError, match="`penalty` must be 'fisher', a FisherPenalty or None"):
        warm_start(log, run, new, None, penalty="l2")
    with pytest.raises(NotImplementedError, match="`penalty` does not work with a `distribution`: take the step on one device"):
        warm_start(log, run, new, None, penalty="fisher", distribution="data")
    for wrong in ({"forgetting": -1.0}, {"cold_weight": 2.0}, {"decay": -0.1}, {"samples": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            FisherPenalty(**wrong)
    with pytest.raises(ValueError, match="`every` must be a positive number of seconds"):
        RefreshEffects(every=0)


def test_one_day(log: kr.data.Log, new: np.ndarray, run: Path, tmp_path: Path) -> None:
    """The report: metrics before the step, effects and exploration after it; what is saved scores as what is returned."""
    earlier = kr.models.load(run)
    effects = RefreshEffects(every=8 * 3600)
    model, report = daily_step(log, run, new, tmp_path / "day", penalty=FEW, effects=effects, explore=True, verbose=False)
    assert report["before"] == metrics_of(earlier, rows_to_score(earlier, log, new, "new row"))
    assert report["new_events"] == int(new.sum()) and report["penalty"]["samples"] == 64
    assert report["effects"]["fitted"] and report["effects"]["ids"]["click"] > 5
    assert {"before", "training", "exploration", "effects"} == report["seconds"].keys()
    assert json.loads((tmp_path / "day" / "daily.json").read_text()) == json.loads(json.dumps(report))
    sequences = kr.data.build_sequences(log.events, model.schema, target=new)
    rows, saved_model = kr.training.model_requests(model, sequences), kr.models.load(tmp_path / "day")
    returned, saved = (kr.training.predict_events(one, rows)["click"] for one in (model, saved_model))
    np.testing.assert_array_equal(returned, saved)
    # The same events once more, without training: the posterior is narrower, and the effects stay, as their time has not come.
    settings: dict[str, Any] = {"effects": effects, "explore": True, "verbose": False}
    _, again = daily_step(log, tmp_path / "day", new, tmp_path / "again", epochs=0, **settings)
    assert 0 < again["explored"]["click"] < report["explored"]["click"]
    assert again["effects"] == {**report["effects"], "fitted": False} and again["loss"] == []
    kept, before = (kr.models.load(tmp_path / name).last_layers("effects")["click"].effects for name in ("again", "day"))
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(before))
    assert np.abs(np.asarray(before)).max() > 0


def test_a_model_without_effects_is_refused_before_it_is_trained(log: kr.data.Log, new: np.ndarray, tmp_path: Path) -> None:
    options = {"features": ("age_hours",), "history_features": (), "hidden": (4,), "cross_layers": 1}
    kr.training.train(log, "lirank", tmp_path / "run", epochs=1, options=options, verbose=False)
    for settings, option in (({"effects": RefreshEffects()}, "random_effects"), ({"explore": True}, "explore")):
        with pytest.raises(ValueError, match=f"the model must be made with `{option}`"):
            daily_step(log, tmp_path / "run", new, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_single_events_of_packed_rows(log: kr.data.Log, new: np.ndarray) -> None:
    """Each sample has one slot with a weight, none comes twice, and all slots are targets."""
    model = kr.models.CADET(log.schema.fit(log.events), dim=8, num_layers=1, num_heads=2)
    sequences = kr.data.build_sequences(log.events, model.schema, target=new)
    training = kr.training.TrainingOptions(row_length=64, batch_size=2)
    seen: list[tuple[Any, ...]] = []
    for x, y, weights in single_events(model, sequences, training, 40, 0):
        assert len(x["time"]) == len(y["click"]) <= 8
        counts = (np.asarray(weights["click"]) > 0).reshape(len(x["time"]), -1).sum(axis=1)
        assert (counts == 1).all()
        for row in range(len(counts)):
            slot = int(np.argmax(np.asarray(weights["click"])[row].reshape(-1) > 0))
            seen.append((x["time"][row].tobytes(), slot))
    assert len(seen) == len(set(seen)) == min(40, int(new.sum()))
