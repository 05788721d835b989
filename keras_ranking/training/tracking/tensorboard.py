"""The numbers of each epoch for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from keras_ranking.training.tracking.event_file import EventFile


class TensorBoardLog(keras.callbacks.Callback):
    """Writes loss, metrics and learning rate of each epoch for TensorBoard, on every backend; TensorFlow need not be installed.

    Tags are those of `keras.callbacks.TensorBoard`: `epoch_loss` and others in the folder `train`, those that begin with `val_`, without
    it, in the folder `validation`. The step is the number of the epoch, from 0 on. Graphs, histograms and profiles are not written: on
    TensorFlow, `keras.callbacks.TensorBoard` writes them.

    Args:
        folder: for `tensorboard --logdir`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> board = kr.training.TensorBoardLog("boards/first")
        >>> model, history = kr.training.train(log, "lirank", epochs=1, options=options, verbose=False, callbacks=[board])
        >>> import os
        >>> os.listdir("boards/first")
        ['train']
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._files: dict[str, EventFile] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        known = {name.removeprefix("val_"): value for name, value in values.items() if name.startswith("val_")}
        trained = {name: value for name, value in values.items() if not name.startswith("val_")}
        trained["learning_rate"] = learning_rate(self.model)
        for place, found in (("train", trained), ("validation", known)):
            if found:
                self.file(place).scalars({f"epoch_{name}": value for name, value in found.items()}, epoch)

    def file(self, place: str) -> EventFile:
        """The file of a folder, for further numbers and pictures."""
        if place not in self._files:
            self._files[place] = EventFile(self.folder / place)
        return self._files[place]


def learning_rate(model: Any) -> float:
    """The rate of the next step."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
