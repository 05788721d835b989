"""The numbers of each epoch, options and files of a training for MLflow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_ranking.training.tracking.tensorboard import learning_rate

_LONGEST = 500  # characters of a parameter
_PART = 500  # metrics at a time; MLflow takes at most 1,000


class MLflowLog(keras.callbacks.Callback):
    """Logs a training as a run of MLflow: the model's arguments as parameters, loss, metrics and learning rate of each epoch as metrics.

    Needs the extra `mlflow`. The run is begun with the training and marked as finished with it; a training that is interrupted leaves its
    run as running, and one that is resumed begins a run of its own.

    Args:
        uri: of the tracking server or store: `http://127.0.0.1:5000`, `sqlite:///runs.db`; None: that of the environment variable
            `MLFLOW_TRACKING_URI`.
        experiment: name, made where it is missing.
        run_name: of the run; None: one that MLflow draws.

    Attributes:
        run_id: of the run, None before the training.

    Raises:
        ModuleNotFoundError: MLflow is not installed; the message names the extra.

    Example:
        >>> board = kr.training.MLflowLog("http://127.0.0.1:5000", experiment="feed")  # doctest: +SKIP
        >>> model, history = kr.training.train(log, callbacks=[board])  # doctest: +SKIP
    """

    def __init__(self, uri: str | None = None, experiment: str = "keras-ranking", run_name: str | None = None) -> None:
        super().__init__()
        self.client: Any = client_of(uri)
        self.experiment, self.run_name = experiment, run_name
        self.run_id: str | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        if self.run_id is not None:  # the rest of an epoch, and then the others
            return
        self.run_id = self.client.create_run(experiment_of(self.client, self.experiment), run_name=self.run_name).info.run_id
        arguments = {"backend": keras.backend.backend(), "model": self.model.name, **getattr(self.model, "arguments", {})}
        for name, value in arguments.items():
            self.client.log_param(self.run_id, name, str(value)[:_LONGEST])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()} | {"learning_rate": learning_rate(self.model)}
        log_metrics(self.client, self.run_id, values, epoch)

    def on_train_end(self, logs: Any = None) -> None:
        self.client.set_terminated(self.run_id)

    def add_folder(self, folder: str | Path, metrics: Mapping[str, float] | None = None) -> None:
        """Add what `train` wrote, without weights, and further metrics.

        Args:
            folder: the files `history.json` and `schema.json` of it are added as artifacts.
            metrics: by name.
        """
        for name in ("history.json", "schema.json"):
            with contextlib.suppress(FileNotFoundError):
                self.client.log_artifact(self.run_id, str((Path(folder) / name).resolve(strict=True)))
        for name, value in (metrics or {}).items():
            self.client.log_metric(self.run_id, name, float(value))


def client_of(uri: str | None) -> Any:
    """A client of a tracking server or store.

    Raises:
        ModuleNotFoundError: MLflow is not installed; the message names the extra.
    """
    try:
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("MLflow runs need MLflow: pip install 'keras-ranking[mlflow]'", name="mlflow") from error
    return MlflowClient(tracking_uri=uri)


def log_metrics(client: Any, run_id: str | None, values: Mapping[str, float], step: int) -> None:
    """Log numbers by name, in parts of a size that MLflow takes."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entries = [Metric(name, value, now, step) for name, value in values.items()]
    for begin in range(0, len(entries), _PART):
        client.log_batch(run_id, metrics=entries[begin : begin + _PART])


def experiment_of(client: Any, name: str) -> str:
    """The id of an experiment, which is made where it is missing."""
    found = client.get_experiment_by_name(name)
    made: str = client.create_experiment(name) if found is None else found.experiment_id
    return made
