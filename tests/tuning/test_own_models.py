"""Studies of a user's own Keras model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.tuning import Float, Study, tune_model
from keras_ranking.tuning.own_models import CHECKPOINT

pytestmark = pytest.mark.quickest
SPACE = {"units": [2, 4], "rate": Float(1e-3, 1e-1, log=True)}
X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X.sum(axis=1)


def build(options: Any) -> Any:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(options["units"], "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(options["rate"]), "mse", jit_compile=False)
    return model


def test_a_model_of_ones_own_is_tuned_and_confirmed(tmp_path: Path) -> None:
    def fit(model: Any, callbacks: Any) -> None:
        model.fit(X, Y, validation_split=0.5, epochs=2, callbacks=callbacks, verbose=0)

    study = tune_model(build, fit, tmp_path / "study", SPACE, trials=3, verbose=False)
    rows = study.trials
    assert rows["state"].tolist() == ["COMPLETE"] * 3 and sorted(study.best()["options"]) == ["rate", "units"]
    assert study.best()["value"] == rows["value"].min()
    report = study.confirm(best=2, seeds=2, verbose=False)
    assert report.fresh is not None and len(report.fresh.settings) == 2 and len(set(study.fresh["seed"])) == 2
    with pytest.raises(ValueError, match="runs where `tune_model` was called"):
        Study(tmp_path / "study").join()


def test_a_trial_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    """Stopped after two of four epochs, as by Ctrl-C; whole batches, so that the order of rows does not matter."""
    begun: list[int] = []

    def fit(model: Any, callbacks: Any, initial_epoch: int, options: Any) -> None:
        begun.append(initial_epoch)
        model.fit(X, Y, validation_data=(X, Y), batch_size=32, epochs=4, initial_epoch=initial_epoch, callbacks=callbacks, verbose=0)

    whole = tune_model(build, fit, tmp_path / "whole", SPACE, trials=1, verbose=False)
    stop = {"left": 2}

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            stop["left"] -= 1
            if not stop["left"]:
                raise KeyboardInterrupt

    def stopped(model: Any, callbacks: Any, initial_epoch: int, options: Any) -> None:
        fit(model, [*callbacks, Stop()], initial_epoch, options)

    with pytest.raises(KeyboardInterrupt):
        tune_model(build, stopped, tmp_path / "stopped", SPACE, trials=1, verbose=False)
    from keras_ranking.tuning.own_models import own_objective
    from keras_ranking.tuning.running import work
    from keras_ranking.tuning.store import open_store

    store = open_store(tmp_path / "stopped")
    work(store, own_objective(build, fit, store.settings), verbose=False)
    assert begun == [0, 0, 2]
    np.testing.assert_allclose(Study(tmp_path / "stopped").trials["value"], whole.trials["value"], rtol=1e-6)
    assert not (tmp_path / "none").exists() and (tmp_path / "stopped" / "trials" / "0000" / "seed_0" / CHECKPOINT).is_file()


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda model: 1.0, "`fit` must take `callbacks`"),
        (lambda model, callbacks: None, "`fit` must pass `callbacks` to model.fit, or return a number"),
        (lambda model, callbacks: model.fit(X, Y, callbacks=callbacks, verbose=0), "Received: metric='val_loss'"),
    ],
)
def test_what_fit_does_wrong_is_told(fit: Any, message: str, tmp_path: Path) -> None:
    study = tune_model(build, fit, tmp_path / "study", SPACE, trials=1, verbose=False)
    assert message in study.trials["told"][0]


def test_a_number_that_fit_returns_is_the_value(tmp_path: Path) -> None:
    study = tune_model(build, lambda model, **_: 3.0, tmp_path / "study", SPACE, trials=1, direction="maximize", verbose=False)
    assert study.trials["value"].tolist() == [3.0]
    with pytest.raises(TypeError, match="`build` must be a function"):
        tune_model("model", lambda model, callbacks: None, tmp_path / "other", SPACE)  # type: ignore[arg-type]
