"""What a training is made with, and where it begins: at its first step, or where its checkpoint was written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking.training.checkpoint import Checkpoint, best_of, check_same, read_checkpoint, restore
from keras_ranking.training.options import NEWER, Settings, TrainingOptions
from keras_ranking.training.recipe import Recipe, as_plain
from keras_ranking.training.start_tables import StartTables
from keras_ranking.training.weight_average import WeightAverage, averages_of


def made_with(ranker: Any, named: dict[str, Any], data: str, training: TrainingOptions, recipe: Recipe, callbacks: Any) -> dict[str, Any]:
    """What must be equal for a training to be resumed.

    Args:
        ranker: the model.
        named: model, seed and backend.
        data: digest of the data.
        training, recipe: the options.
        callbacks: of `train`.

    Returns:
        The entries of a checkpoint's fingerprint. Options that files of earlier versions do not have are there where they are set.
    """
    settings = {name: value for name, value in asdict(training).items() if name not in NEWER or value is not None}
    found = {**named, "data": data, "training": as_plain(settings), "arguments": as_plain(ranker.arguments)}
    listed = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else callbacks
    if started := {column: digest for one in listed if isinstance(one, StartTables) for column, digest in one.digests.items()}:
        found["started_tables"] = started
    if chosen := recipe.plain():
        found["recipe"] = chosen
    return found


@dataclass(frozen=True)
class Beginning:
    """Where a training begins.

    Attributes:
        checkpoint: from which it is resumed; None: it begins with its first step.
    """

    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, given: Settings, made: dict[str, Any]) -> Beginning:
        """As `resume` and `out` of `train` say.

        Raises:
            ValueError: a training that is finished, or a checkpoint of another one.
            FileNotFoundError: no checkpoint.
        """
        if not given.resume or given.out is None:
            return cls()
        checkpoint = read_checkpoint(given.out)
        if checkpoint.about["finished"]:
            raise ValueError(f"the training in '{given.out}' is finished and cannot be resumed; `warm_start` trains it on new events.")
        check_same(checkpoint.about["fingerprint"], made, given.out)
        return cls(checkpoint)

    @property
    def progress(self) -> dict[str, Any] | None:
        """Epoch, batch, step and what `Progress` keeps; None at the first step."""
        return None if self.checkpoint is None else self.checkpoint.about["progress"]

    @property
    def epoch(self) -> int:
        return 0 if self.progress is None else int(self.progress["epoch"])

    @property
    def best(self) -> dict[str, np.ndarray] | None:
        """The best weights so far; None at the first step."""
        return None if self.checkpoint is None else best_of(self.checkpoint)

    def average(self, recipe: Recipe) -> WeightAverage | None:
        """The moving average of the weights, where the recipe has one."""
        if recipe.ema is None:
            return None
        arrays = {} if self.checkpoint is None else averages_of(self.checkpoint.arrays)
        return WeightAverage(recipe.ema, recipe.ema_every, 0 if self.progress is None else self.progress["step"], arrays)

    def restore(self, ranker: Any) -> None:
        """Set the weights and the optimiser's state."""
        if self.checkpoint is not None:
            restore(self.checkpoint, ranker)


def weights_digest(weights: Sequence[np.ndarray]) -> str:
    """A digest of weights."""
    found = hashlib.blake2b(digest_size=16)
    for weight in weights:
        found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()


def path_of(given: Settings, file: str) -> Path | None:
    """A file in the folder of `train`, or None without one."""
    return None if given.out is None else Path(given.out) / file
