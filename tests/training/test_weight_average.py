"""`ema` of `train`: the moving average of the weights that is validated and saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import Log
from keras_ranking.training import evaluate, read_checkpoint, warm_start
from tests.training.crashes import CrashAfter
from tests.training.small import quick as quick_with

quick = partial(quick_with, epochs=2)


@pytest.fixture(scope="module")
def log() -> Log:
    return kr.data.simulate(members=30, days=4, seed=0)


class Steps(keras.callbacks.Callback):
    """The trained weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(trained(self.model))


def trained(model: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.trainable_variables]


def average(seen: list[list[np.ndarray]], rate: float, every: int = 1) -> list[np.ndarray]:
    """The formula, in float64."""
    kept = seen[every - 1 :: every]
    shares = rate ** (every * np.arange(len(kept))[::-1].astype(np.float64))
    shares /= shares.sum()
    return [np.tensordot(shares, np.stack(weights).astype(np.float64), 1) for weights in zip(*kept, strict=True)]


@pytest.mark.parametrize(("every", "rule"), [(1, "rowwise_adagrad"), pytest.param(3, "same", marks=pytest.mark.quickest)])
def test_the_saved_weights_are_the_average_of_those_after_the_steps(every: int, rule: str, log: Log, tmp_path: Path) -> None:
    watch = Steps()
    options = {"ema": 0.9, "ema_every": every, "table_optimizer": rule}
    model, _ = quick(log, tmp_path, options=options, callbacks=[watch])
    assert len(watch.seen) > 10 and any(variable.path.endswith("/embeddings") for variable in model.trainable_variables)
    largest = max(np.abs(weight).max() for weight in watch.seen[-1])
    wanted = average(watch.seen, 0.9, every)
    for mine, saved, value in zip(trained(model), trained(kr.models.load(tmp_path)), wanted, strict=True):
        np.testing.assert_allclose(mine, value, rtol=0, atol=1e-6 * largest)
        np.testing.assert_array_equal(mine, saved)
    # Controls: neither the last weights, nor those of another rate.
    for other in (watch.seen[-1], average(watch.seen, 0.8, every)):
        assert max(np.abs(a - b).max() for a, b in zip(wanted, other, strict=True)) > 1e-4


@pytest.mark.quickest
def test_training_goes_on_from_the_weights_and_not_from_the_average(log: Log) -> None:
    plain, other = Steps(), Steps()
    quick(log, options={"validation": "validation"}, callbacks=[plain])
    model, history = quick(log, options={"ema": 0.9, "validation": "validation"}, callbacks=[other])
    for one, two in zip(plain.seen[-1], other.seen[-1], strict=True):
        np.testing.assert_array_equal(one, two)
    # What is measured after an epoch is the average.
    found = evaluate(model, log, "validation")
    assert history["epochs"]["val_click_log_loss"][-1] == pytest.approx(found["click"]["log_loss"], rel=1e-5)


@pytest.mark.quickest
def test_the_best_epoch_is_that_of_the_average(log: Log) -> None:
    class Worse(keras.callbacks.Callback):
        """After the first epoch the weights are far away, and the average after them."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            for variable in self.model.trainable_variables:
                variable.assign(variable + 3.0)

    watch = Steps()
    options = {"ema": 0.9, "validation": "validation", "best": True}
    model, history = quick(log, options=options, callbacks=[watch, Worse()])
    assert history["best"]["epoch"] == 1
    for mine, value in zip(trained(model), average(watch.seen[: len(watch.seen) // 2], 0.9), strict=True):
        np.testing.assert_allclose(mine, value, rtol=0, atol=1e-5)


@pytest.mark.quickest
@pytest.mark.parametrize("number", [4, None])
def test_a_stopped_run_reaches_the_same_average(number: int | None, log: Log, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"options": {"ema": 0.9, "ema_every": 2, "dropout": 0.2, "checkpoint_every": 2}}
    model, _ = quick(log, tmp_path / "whole", **settings)
    steps = read_checkpoint(tmp_path / "whole").about["progress"]["step"] // 2
    with pytest.raises(RuntimeError, match="crash"):
        quick(log, tmp_path / "broken", callbacks=[CrashAfter(number or steps + 1)], **settings)
    resumed, _ = quick(log, tmp_path / "broken", resume=True, **settings)
    for one, two in zip(trained(model), trained(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.quickest
def test_a_daily_step_begins_at_the_average(log: Log, tmp_path: Path) -> None:
    class First(keras.callbacks.Callback):
        seen: list[np.ndarray] = []

        def on_train_begin(self, logs: Any = None) -> None:
            First.seen = trained(self.model)

    model, history = quick(log, tmp_path, options={"ema": 0.9})
    assert history["recipe"] == {"ema": 0.9}
    warm_start(log, tmp_path, (log.events["split"] == "validation").to_numpy(), verbose=False, callbacks=[First()])
    for one, two in zip(trained(model), First.seen, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.0}, "`ema` must be a rate above 0 and below 1, such as 0.998. Received: ema=1.0"),
        ({"ema": 0.9, "ema_every": 0}, "`ema_every` must be a positive number of steps"),
        ({"ema_every": 2}, "`ema_every` has no effect without `ema`. Received: ema_every=2"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, log: Log) -> None:
    with pytest.raises(ValueError, match=message):
        quick(log, options=options)
