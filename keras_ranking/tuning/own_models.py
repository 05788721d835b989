"""The value of a trial of a user's own Keras model: what to build and how to fit it are functions of the user."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking.configuration import is_real
from keras_ranking.training.checkpoint import arrays_of, assign_arrays, write_whole
from keras_ranking.tuning.running import Objective, Run, TrialFailed
from keras_ranking.tuning.settings import Settings

CHECKPOINT = "checkpoint.npz"


class EpochState(keras.callbacks.Callback):
    """After each epoch: the value to the study, and weights and optimiser to a file, from which a trial is taken up.

    Args:
        run: the trial.
        path: of the file.
        metric: name in the logs.
        seed: of the run.
        first: number of values that were told of earlier seeds.
    """

    def __init__(self, run: Run, path: Path, metric: str, seed: int, first: int) -> None:
        super().__init__()
        self.run, self.path, self.metric, self.seed, self.first = run, path, metric, seed, first
        self.values: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        keras.utils.set_random_seed((self.seed * 1_000_003 + epoch) % 2**32)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.run.check()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.run.check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found = {name: float(value) for name, value in (logs or {}).items() if is_real(value)}
        if not math.isfinite(found.get("loss", 0.0)):
            raise TrialFailed(f"the loss is {found['loss']} after epoch {epoch + 1}")
        if self.metric not in found:
            raise TrialFailed(f"`metric` must be in the logs of fit, {sorted(found)}. Received: metric={self.metric!r}")
        self.values.append(found[self.metric])
        about = json.dumps({"epoch": epoch + 1, "values": self.values}).encode()
        arrays: dict[str, Any] = {"about": np.frombuffer(about, dtype=np.uint8), **arrays_of(self.model)}

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, **arrays)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({self.path: write})
        self.run.note("epoch", str(epoch + 1))
        self.run.report(found[self.metric], self.first + epoch)


def own_objective(build: Callable[[Mapping[str, Any]], Any], fit: Callable[..., Any], settings: Settings) -> Objective:
    """The objective of `tune_model`; see there."""

    def objective(run: Run) -> float:
        values, told = [], 0
        for seed in run.seeds:
            keras.utils.set_random_seed(seed)
            model = build(dict(run.options))
            if not isinstance(model, keras.Model) or getattr(model, "optimizer", None) is None:
                raise TypeError(f"`build` must return a compiled Keras model. Received: {type(model).__name__}")
            state = EpochState(run, run.folder / f"seed_{seed}" / CHECKPOINT, settings.search.metric, seed, told)
            begin = _restored(model, state)
            found = _fitted(fit, model, run, state, begin)
            if is_real(found):
                values.append(float(found))
            elif state.values:
                values.append(state.values[-1])
            else:
                raise TypeError("`fit` must pass `callbacks` to model.fit, or return a number. Received: no epoch, and no number")
            told += max(len(state.values), 1)
            del model
            keras.utils.clear_session()
        return sum(values) / len(values)

    return objective


def _fitted(fit: Callable[..., Any], model: Any, run: Run, state: EpochState, begin: int) -> Any:
    """Call `fit` with what it takes."""
    offered = {"options": dict(run.options), "callbacks": [state], "initial_epoch": begin}
    taken = inspect.signature(fit).parameters.values()
    every = any(one.kind is one.VAR_KEYWORD for one in taken)
    names = [one.name for one in taken]
    if not every and "callbacks" not in names:
        raise TypeError(f"`fit` must take `callbacks` and pass it to model.fit. Received: a function of {names}")
    return fit(model, **{name: value for name, value in offered.items() if every or name in names})


def _restored(model: Any, state: EpochState) -> int:
    """Set a model to the state of its file, if there is one; returns the number of epochs that it has seen."""
    if not state.path.is_file():
        return 0
    with np.load(state.path, allow_pickle=False) as stored:
        about = json.loads(stored["about"].tobytes().decode())
        arrays = {name: stored[name] for name in stored.files if name != "about"}
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    assign_arrays(arrays, model)
    state.values = list(about["values"])
    return int(about["epoch"])
