"""What a `RankingModel` is compiled with, and how that is checked, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ranking import losses, metrics
from keras_ranking.losses.reduction import PackedLoss
from keras_ranking.models.graph import CheckedModel
from keras_ranking.models.keras_model.compile_checks import Foreign, check_choices, check_compiled, check_targets, own_by_name
from keras_ranking.ops.whole import read

_SEEDS = "seed_generators"
_BUILT = "built"


class CompiledRanker(CheckedModel, keras.Model):
    """A model of several tasks with packed targets: losses with weights by task, auxiliary outputs, and checks of both.

    The subclass gives `boundaries`, `auxiliary_tasks`, `auxiliary` and `arguments`, and may give `tasks` and `choice`.
    """

    _foreign: tuple[Foreign, ...] = ()

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, loss_weights: Any = None, **settings: Any) -> None:
        """As `keras.Model.compile`; an auxiliary task has the weight it was given to the model, unless `loss_weights` has one.

        Raises:
            ValueError: a loss or metric of probabilities (the outputs are logits), one with other boundaries than the model's towers,
                `InRequestChoice` for a task that is no choice, or a metric of this package in `metrics`, where Keras passes no weights. A
                loss or metric of a library for packed targets is an error at the first batch.
        """
        loss = own_by_name(loss, losses, self.boundaries, getattr(self, "tasks", ()))
        for name in {"metrics", "weighted_metrics"} & settings.keys():
            settings[name] = own_by_name(settings[name], metrics, self.boundaries)
        foreign = check_compiled(loss, settings.get("metrics"), settings.get("weighted_metrics"), self.boundaries)
        check_choices(loss, getattr(self, "tasks", ()), getattr(self, "choice", ()))
        if self.auxiliary_tasks and isinstance(loss, dict) and (loss_weights is None or isinstance(loss_weights, dict)):
            loss_weights = {**dict.fromkeys(loss, 1.0), **self.auxiliary_tasks, **(loss_weights or {})}
        optimizer = keras.optimizers.get(optimizer)
        # Keras scales the loss under its global policy alone; this one is the model's.
        scaled = self._half_precision and settings.get("auto_scale_loss", True)
        if scaled and optimizer is not None and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
        super().compile(optimizer=optimizer, loss=loss, loss_weights=loss_weights, **settings)
        self._foreign = foreign
        # What Keras saves has 'auto' replaced by what it means on this machine.
        self._as_given: dict[str, Any] = {name: settings[name] for name in ("jit_compile", "auto_scale_loss") if name in settings}

    def fit(self, *args: Any, class_weight: Any = None, validation_split: float = 0.0, **settings: Any) -> Any:
        """As `keras.Model.fit`, without what cannot be said of packed rows.

        Raises:
            ValueError: `class_weight` or `validation_split`, with the way that works.
        """
        if class_weight is not None:
            raise ValueError(
                "`class_weight` must be None: the batches have a weight for each event. Weigh rows by the function "
                "`keras_ranking.training.event_weights`, or tasks by `loss_weights` of `compile`."
            )
        if validation_split:
            raise ValueError(
                "`validation_split` must be 0: a share of packed rows has earlier events of the same members. "
                "Give `fit` data for validation, or use `keras_ranking.training.train`, which cuts by time."
            )
        return super().fit(*args, **settings)

    def _run_through_graph(self, inputs: Any, operation_fn: Any = None, call_fn: Any = None) -> Any:
        # To run, Keras wraps what a layer does in a function; to clone a model, it puts new layers in the places of its own.
        def own(layer: Any) -> Any:
            given = layer if operation_fn is None else operation_fn(layer)
            if isinstance(given, keras.Layer) and given is not layer:
                raise ValueError(
                    f"`keras.models.clone_model` copies layers one by one, and would lose what serves the model '{self.name}'. For new "
                    "weights use `type(model).from_config(model.get_config())`, for a copy of these `copy.deepcopy(model)`."
                )
            return given

        return super()._run_through_graph(inputs, operation_fn=own, call_fn=call_fn)

    def export(self, *args: Any, **settings: Any) -> Any:
        """As `keras.Model.export`.

        Raises:
            NotImplementedError: on torch, with the call that works.
        """
        if keras.backend.backend() == "torch":
            raise NotImplementedError(
                "Keras cannot export named inputs on torch: `keras_ranking.serving.export(model, folder)` writes a SavedModel."
            )
        return super().export(*args, **settings)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was called with, serialised."""
        config = super().get_compile_config()
        if not config:
            return {}
        # Only the description of the optimiser may have a further entry: Keras's own models take the rest as arguments of `compile`.
        optimizer = config["optimizer"] and {**config["optimizer"], _BUILT: bool(self.optimizer.built)}
        return {**config, "optimizer": optimizer, "jit_compile": "auto", **self._as_given}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was, with the optimiser's variables made, so that their values can be loaded."""
        built = (config.get("optimizer") or {}).get(_BUILT, True)
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built and built:
            self.optimizer.build(self.trainable_variables)

    def compile_anew(self) -> None:
        """Compile as before, with an optimiser that has no state yet."""
        config = self.get_compile_config()
        optimizer = config["optimizer"] and {**config["optimizer"], _BUILT: False}
        self.compile_from_config({**config, "optimizer": optimizer})

    @property
    def _half_precision(self) -> bool:
        return bool(self.arguments.get("dtype") == "mixed_float16")

    def save_own_variables(self, store: Any) -> None:
        """The states of seed generators, which Keras leaves out: training that goes on after loading draws the same dropout."""
        states = self._seed_states()
        if states:
            store[_SEEDS] = np.stack([keras.ops.convert_to_numpy(state) for state in states])

    def load_own_variables(self, store: Any) -> None:
        states = self._seed_states()
        if _SEEDS not in store.keys():  # noqa: SIM118 - a store of HDF5; files of earlier versions have none
            return
        if len(store[_SEEDS]) != len(states):
            raise ValueError(f"the file has {len(store[_SEEDS])} seed states, and the model '{self.name}' has {len(states)}.")
        for state, value in zip(states, store[_SEEDS], strict=True):
            state.assign(np.asarray(value))

    def _seed_states(self) -> list[Any]:
        weights = {id(variable) for variable in self.weights}
        return [variable for variable in self.variables if id(variable) not in weights]

    def check_batch(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """The inputs; a label or weight out of range is an error, where inside a compiled step it would only make the loss NaN.

        Raises:
            ValueError: such a number, its task and place, or targets that the compiled losses and metrics do not read.
        """
        if y is not None and self.compiled:
            self.check_targets(y)
            for task, target in (y if isinstance(y, Mapping) else {None: y}).items():
                loss = self.loss.get(task) if isinstance(self.loss, Mapping) and task is not None else self.loss
                weight = sample_weight.get(task) if isinstance(sample_weight, Mapping) else sample_weight
                label, weight = read(target), None if weight is None else read(weight)
                if isinstance(loss, PackedLoss) and label is not None:
                    try:
                        loss.check(label, weight)
                    except ValueError as error:
                        raise ValueError(f"{error}" if task is None else f"task '{task}': {error}") from None
        return super().check_batch(x, y, sample_weight)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        """The compiled loss of the tasks, and of auxiliary outputs against the labels of theirs."""
        self.check_targets(y)
        if not self.auxiliary or not isinstance(y_pred, dict):
            return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        total = super().compute_loss(x=x, y=y, y_pred=self.of_tasks(y_pred), sample_weight=sample_weight, training=training)
        added = self.auxiliary_loss(y, y_pred, sample_weight)
        return total + keras.ops.cast(added, keras.backend.standardize_dtype(total.dtype))

    def check_targets(self, y: Any) -> None:
        """Raise an error for packed targets if the model is compiled with a loss or metric of plain labels.

        Raises:
            ValueError: such a loss or metric.
        """
        if self._foreign:
            check_targets(self._foreign, y)

    def auxiliary_loss(self, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """What `compute_loss` adds for auxiliary outputs: the loss of their task, times their own weight and the task's."""
        total = 0.0
        for output, (task, weight) in self.auxiliary.items():
            loss = keras.losses.get(self.loss[task] if isinstance(self.loss, dict) else self.loss)
            rows = sample_weight[task] if isinstance(sample_weight, dict) else sample_weight
            weights = self._compile_loss._user_loss_weights
            of_task = weights.get(task, 1.0) if isinstance(weights, dict) else 1.0
            total = total + of_task * weight * loss(y[task], y_pred[output], sample_weight=rows)
        return total

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        self.check_targets(y)
        return super().compute_metrics(x, y, self.of_tasks(y_pred), sample_weight)

    def of_tasks(self, outputs: Any) -> Any:
        """Outputs without the auxiliary ones."""
        if not self.auxiliary or not isinstance(outputs, dict):
            return outputs
        return {name: value for name, value in outputs.items() if name not in self.auxiliary}
