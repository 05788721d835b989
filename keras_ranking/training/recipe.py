"""How a training is steered: validation, early stopping, optimiser, schedule, first weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import keras

from keras_ranking.configuration import is_integer, is_real

SCHEDULES = ("cosine", "constant", "onecycle")
LAST_DAY = "last_day"
METRICS = {"auc": "max", "impression_auc": "max", "log_loss": "min", "normalized_entropy": "min", "rmse": "min", "mae": "min"}
"""Metrics of a validation, and whether more is better."""
_OTHER_WORDS = {"grouped_auc": "impression_auc"}
_RATES = ("learning_rate", "trunk_learning_rate", "warmup")
_OF_OPTIMIZER = ("learning_rate", "trunk_learning_rate", "schedule", "warmup", "weight_decay", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of `train` next to those of the model and `TrainingOptions`, given by name in `options` all the same.

    Attributes:
        validation: rows on which the model is measured after each epoch, and which it is not trained on: 'last_day' (the last 24 hours of
            the training rows), a share (0.1: the last tenth of the requests of the training rows, by time), or another split of the log.
            Each row is scored from earlier rows, as `evaluate` does. None: none.
        early_stopping: number of epochs in a row without a better value of `monitor` after which training stops. None: never.
        monitor: 'log_loss', 'normalized_entropy', 'auc' or 'impression_auc' (also 'grouped_auc'), of numbers 'rmse' or 'mae': the mean over
            tasks that have it; or that of one task, such as 'click_log_loss'. A model of numbers alone has 'rmse' for 'log_loss'.
        best: whether the saved model has the weights of the best epoch, and not of the last. None: where `early_stopping` is given.
        optimizer: a name of Keras, such as 'adam', which is made with `learning_rate`, `schedule`, `warmup`, `weight_decay` and
            `clip_norm`; or an optimiser of Keras, which has its own.
        schedule: 'cosine': linear warm-up, then half a cosine period down to a hundredth. 'onecycle': half a cosine period up from a 25th,
            and one down to a 10,000th of that. 'constant': no warm-up, for callbacks that set the rate. Or a `LearningRateSchedule` of
            Keras, for all weights but tables with a rule of their own, whose rate is then constant.
        metrics: computed on the rows of training: names of classes of `keras_ranking.metrics` or `keras.metrics`, such as
            'NormalizedEntropy'; for each task.
        ema: rate of an exponential moving average of the weights, such as 0.998: what is validated and saved is the average, and training
            goes on from the weights themselves. It needs the memory of the trained weights once more, tables too. None: none.
        ema_every: steps between moves of the average, with rate `ema` to that power: a move costs a pass over all weights, which is
            the larger part of a step where tables are large.
        ensemble: number of models of different seeds, the first one that of the training: what is returned and saved is the mean of
            their probabilities, as one model (`kr.models.ensemble`). Each is trained, and can be resumed, in a folder `members/N`.
        init_from: folder or file of a saved model, with the same builder and arguments: training starts from its weights, and reads numbers
            with its schema. The optimiser starts anew; `warm_start` continues a training.
        utility: task -> weight of the output `score`, such as {"click": 1.0, "like": 4.0}. It is set as `model.utility`, saved with the
            model, and changes nothing in training. None: no such output.
        checkpoint_every: number of steps between writes of `checkpoint.npz`, which is then also written after each epoch. A training may be
            resumed with another number. None: at the end alone.

    Raises:
        ValueError: a value out of range, or an option that has no effect without another.

    Example:
        >>> log = kr.data.simulate(members=30, days=3, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> options |= {"validation": "last_day", "early_stopping": 1}
        >>> model, history = kr.training.train(log, "lirank", epochs=2, options=options, verbose=False)
        >>> history["best"]["monitor"], len(history["epochs"]["val_log_loss"])
        ('val_log_loss', 2)
    """

    validation: str | float | None = None
    early_stopping: int | None = None
    monitor: str = "log_loss"
    best: bool | None = None
    optimizer: Any = "adamw"
    schedule: Any = "cosine"
    metrics: Any = ()
    ema: float | None = None
    ema_every: int = 1
    ensemble: int = 1
    init_from: str | Path | None = None
    utility: Mapping[str, float] | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if is_real(self.validation) and not 0 < float(self.validation) < 1:  # type: ignore[arg-type]
            raise ValueError(f"`validation` must be a share above 0 and below 1. Received: validation={self.validation}")
        if self.early_stopping is not None and not (is_integer(self.early_stopping) and self.early_stopping > 0):
            raise ValueError(f"`early_stopping` must be a positive number of epochs. Received: early_stopping={self.early_stopping!r}")
        if self.ema is not None and not (is_real(self.ema) and 0 < self.ema < 1):
            raise ValueError(f"`ema` must be a rate above 0 and below 1, such as 0.998. Received: ema={self.ema!r}")
        if not (is_integer(self.ema_every) and self.ema_every > 0):
            raise ValueError(f"`ema_every` must be a positive number of steps. Received: ema_every={self.ema_every!r}")
        if not (is_integer(self.ensemble) and self.ensemble > 0):
            raise ValueError(f"`ensemble` must be a positive number of models. Received: ensemble={self.ensemble!r}")
        if self.checkpoint_every is not None and not (is_integer(self.checkpoint_every) and self.checkpoint_every > 0):
            raise ValueError(f"`checkpoint_every` must be a positive integer. Received: checkpoint_every={self.checkpoint_every!r}")
        if self.ema is None and self.ema_every != 1:
            raise ValueError(f"`ema_every` has no effect without `ema`. Received: ema_every={self.ema_every}")
        for name, default in (("early_stopping", None), ("best", None), ("monitor", "log_loss")):
            if getattr(self, name) != default and self.validation is None:
                raise ValueError(f"`{name}` needs `validation`, the rows to compare epochs on. Received: {name}={getattr(self, name)!r}")
        object.__setattr__(self, "metrics", (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics))
        if wrong := [name for name in self.metrics if not isinstance(name, str)]:
            raise ValueError(f"`metrics` must be names of metrics, such as 'NormalizedEntropy'. Received: {wrong[0]!r}")
        for name in ("optimizer", "schedule"):
            value = getattr(self, name)
            if isinstance(value, Mapping):  # of a checkpoint
                object.__setattr__(self, name, keras.saving.deserialize_keras_object(dict(value)))
        schedule = keras.optimizers.schedules.LearningRateSchedule
        if self.schedule not in SCHEDULES and not isinstance(self.schedule, schedule):
            raise ValueError(f"`schedule` must be one of {SCHEDULES}, or a schedule of Keras. Received: schedule={self.schedule!r}")
        if isinstance(self.optimizer, str):
            try:
                keras.optimizers.get(self.optimizer)
            except ValueError:
                raise ValueError(f"`optimizer` must be a name that Keras has. Received: optimizer={self.optimizer!r}") from None
        elif not isinstance(self.optimizer, keras.optimizers.Optimizer):
            raise ValueError(f"`optimizer` must be a name or an optimiser of Keras. Received: {type(self.optimizer).__name__}")

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best epoch are saved."""
        return self.early_stopping is not None if self.best is None else self.best

    @property
    def rate(self) -> Any:
        """What sets the learning rate: 'constant' if nothing does but callbacks."""
        if isinstance(self.optimizer, str):
            return self.schedule
        rate = getattr(self.optimizer, "_learning_rate", None)
        return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else "constant"

    def monitored(self, tasks: list[str]) -> tuple[str, str]:
        """Name in the logs of what is monitored, and 'min' or 'max'.

        Raises:
            ValueError: no such metric, or no such task.
        """
        for begin in ("", *(f"{task}_" for task in tasks)):
            metric = self.monitor.removeprefix(begin) if self.monitor.startswith(begin) else ""
            metric = _OTHER_WORDS.get(metric, metric)
            if metric in METRICS:
                return f"val_{begin}{metric}", METRICS[metric]
        of_task = f"{tasks[0]}_log_loss"
        raise ValueError(
            f"`monitor` must be one of {[*METRICS, *_OTHER_WORDS]}, for one task such as '{of_task}'. Received: monitor={self.monitor!r}"
        )

    def require_out(self, out: Any) -> None:
        """Check that there is a folder for checkpoints.

        Raises:
            ValueError: there is none.
        """
        if self.checkpoint_every is not None and out is None:
            raise ValueError(
                f"`checkpoint_every` needs `out`, the folder to write. Received: checkpoint_every={self.checkpoint_every}, out=None"
            )

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults and what a resumed training must have alike, for JSON."""
        default = {field.name: field.default for field in fields(self) if field.name != "checkpoint_every"}
        values = {name: getattr(self, name) for name in default}
        return {name: as_plain(value) for name, value in values.items() if value is not default[name] and value != default[name]}


def split_recipe(options: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Recipe]:
    """The options of model and training, and the recipe, for which those of a preset fill in the rest.

    Raises:
        ValueError: an option out of range or without effect.
    """
    names = {field.name for field in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in {**(preset or {}), **options}.items() if name in names})
    if not isinstance(recipe.optimizer, str) and (given := [name for name in _OF_OPTIMIZER if name in options]):
        raise ValueError(
            f"`{given[0]}` has no effect on an optimiser of Keras, which has its own. Received: {given[0]}={options[given[0]]!r}"
        )
    if recipe.schedule == "constant" and "warmup" in options:
        raise ValueError(f"`warmup` has no effect with schedule='constant'. Received: warmup={options['warmup']!r}")
    if not isinstance(recipe.schedule, str) and (
        given := [name for name in ("learning_rate", "trunk_learning_rate", "warmup") if name in options]
    ):
        raise ValueError(f"`{given[0]}` has no effect with a schedule of Keras. Received: {given[0]}={options[given[0]]!r}")
    return {name: value for name, value in options.items() if name not in names}, recipe


def as_plain(value: Any) -> Any:
    """A value for JSON: lists for tuples and ranges, plain numbers for numpy's, the configuration of an object of Keras."""

    def plain(inner: Any) -> Any:
        if hasattr(inner, "get_config"):
            return keras.saving.serialize_keras_object(inner)
        if isinstance(inner, Path):
            return str(inner)
        return inner.tolist() if hasattr(inner, "tolist") else list(inner)

    return json.loads(json.dumps(value, default=plain))


def better(value: float, than: float | None, mode: str) -> bool:
    """Whether a value is a number, and better than an earlier one."""
    if than is None or not math.isfinite(value):
        return math.isfinite(value)
    return value < than if mode == "min" else value > than


def rate_of_step(learning_rate: float | None, before: Mapping[str, Any], peak: float, recipe: Recipe) -> tuple[float | None, float | None]:
    """The learning rate that is chosen for a daily step, and its share of the highest rate of the training; None: none is.

    Args:
        learning_rate: the argument of `warm_start`; None: that of the step before.
        before: of the checkpoint.
        peak, recipe: highest rate, and the recipe, of the training.

    Raises:
        ValueError: a rate that is not positive, or of an optimiser or a schedule that is not given by name.
    """
    if learning_rate is None:
        learning_rate = before.get("learning_rate")
    if learning_rate is None:
        return None, None
    if not (is_real(learning_rate) and 0 < float(learning_rate) < float("inf")):
        raise ValueError(f"`learning_rate` must be a positive number. Received: learning_rate={learning_rate!r}")
    if not (isinstance(recipe.optimizer, str) and isinstance(recipe.schedule, str)):
        what = "an optimiser" if not isinstance(recipe.optimizer, str) else "a schedule"
        raise ValueError(f"`learning_rate` does not go with {what} of Keras that the training was given, which has rates of its own.")
    return float(learning_rate), float(learning_rate) / peak
