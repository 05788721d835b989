"""Incremental training on a stream that drifts."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_ranking.training import FisherSnapshot, fit_incremental
from keras_ranking.training.incremental.layer_gradients import variable_path
from tests.layers.common import sigmoid
from tests.training.incremental.models import LOSS, Batches

IDS, BATCH, COLD_DAYS = 60, 30, 20
DEGREES, COUNT = 0.5, 120


class Stream:
    """Clicks from two features, whose weights rotate every day, and a constant effect of each id; a day has a third of the ids."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.effects = self.rng.normal(0, 1.5, IDS)

    def draw(self, day: int, ids: np.ndarray, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        x, row = self.rng.normal(size=(count, 2)), self.rng.choice(ids, count)
        angle = np.radians(DEGREES * day)
        p = sigmoid(1.5 * x @ [np.cos(angle), np.sin(angle)] + self.effects[row])
        return {"x": x.astype("float32"), "id": row[:, None].astype("int32")}, p[:, None]

    def day(self, day: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        x, p = self.draw(day, self.rng.choice(IDS, IDS // 3, replace=False), COUNT)
        return x, (self.rng.random(p.shape) < p).astype("float32")


def stream_model() -> keras.Model:
    x, ids = keras.Input((2,), name="x"), keras.Input((1,), dtype="int32", name="id")
    logit = keras.layers.Dense(1, name="d")(x) + keras.layers.Flatten()(keras.layers.Embedding(IDS, 1, name="effect")(ids))
    model = keras.Model({"x": x, "id": ids}, logit)
    model.compile(keras.optimizers.Adam(0.05), LOSS)
    return model


def expected_loss(model: keras.Model, x: dict[str, np.ndarray], p: np.ndarray) -> float:
    """Log loss for the true click probabilities, minus that of predicting them exactly."""
    logit = model.predict_on_batch(x).astype("float64")
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return float((p * np.logaddexp(0, -logit) + (1 - p) * np.logaddexp(0, logit) - entropy).mean())


def follow(seed: int, days: int = 4, epochs: int = 5) -> dict[str, float]:
    """Mean regret on the next day, and after the last day the regret of ids without events for three days."""
    stream, found = Stream(seed), {}
    past = [stream.day(day) for day in range(COLD_DAYS)]
    cold = Batches({k: np.concatenate([x[k] for x, _ in past]) for k in ("x", "id")}, np.concatenate([y for _, y in past]), size=BATCH)
    model = stream_model()
    model.fit(cold, epochs=2, verbose=0)
    # H is a mean over samples: that of COLD_DAYS days gets COLD_DAYS times the weight of one day.
    first = FisherSnapshot.measure(model, cold)
    first = first.accumulate(first, decay=COLD_DAYS - 1)
    fresh = [Batches(*stream.day(COLD_DAYS + day), size=BATCH) for day in range(days)]
    nexts = [stream.draw(COLD_DAYS + day + 1, np.arange(IDS), 2000) for day in range(days)]
    absent = np.setdiff1d(np.arange(IDS), np.concatenate([day.arrays[0]["id"][:, 0] for day in fresh[-3:]]))
    lost = stream.draw(COLD_DAYS + days, absent, 2000)
    assert len(cold) == COLD_DAYS * len(fresh[0])  # number of steps of retraining on such a window, for each step here
    found["cold"] = float(np.mean([expected_loss(model, *held_out) for held_out in nexts]))
    for name in ("plain", "penalty"):
        model.set_weights([first.weights[variable_path(model, variable)] for variable in model.weights])
        snapshot, regrets = first, []
        model.compile(keras.optimizers.Adam(0.05), LOSS)
        for day, held_out in zip(fresh, nexts, strict=True):
            if name == "plain":
                model.fit(day, epochs=epochs, verbose=0)
            else:
                _, snapshot = fit_incremental(model, day, snapshot, forgetting=1.0, accumulate=0.95, epochs=epochs, verbose=0)
            regrets.append(expected_loss(model, *held_out))
        found[name], found[f"{name}_absent"] = float(np.mean(regrets)), expected_loss(model, *lost)
    return found


@pytest.mark.slow
@pytest.mark.quickest
def test_incremental_training_beats_fine_tuning_on_the_next_day() -> None:
    found = [follow(seed) for seed in range(3)]
    mean = {name: np.mean([one[name] for one in found]) for name in found[0]}
    print({name: round(float(value), 4) for name, value in mean.items()})
    assert all(one["penalty"] < one["plain"] for one in found)
    assert mean["penalty"] < 0.75 * mean["plain"]
    assert mean["penalty"] < mean["cold"]
    assert mean["penalty_absent"] < mean["plain_absent"]
