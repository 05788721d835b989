"""The base of the multi-task layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules
from keras_ranking.layers.multi_task.mlp_bank import MLPBank


class MultiTask(PassesMask, WeightRules, keras.layers.Layer):
    """Base of the multi-task layers. `call(inputs, training=None)` returns a dict, task name -> logit.

    Inputs are (B, ..., D); a logit has the shape of its labels, (B, ...), and is float32 under every dtype policy. With
    `return_hidden`, a second dict has the input of the last linear map of each task, (B, ..., H). A
    subclass maps tokens to one state per task; the tower of the task (an MLP with a scalar output) maps that state to the logit.

    Args:
        tasks: K names, each once.
        tower: widths of the hidden layers of each task's tower; empty: one linear map.
        activation: of all hidden layers.
        dropout: rate after each hidden layer of bottoms, experts and towers, except the last of a stack; in training.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of all MLPs and, of
            kernels, the gates.
    """

    def __init__(
        self, tasks: Sequence[str], tower: Sequence[int] = (64,), activation: str = "silu", dropout: float = 0.0, **settings: Any
    ) -> None:
        # autocast=False: gates use the inputs in their own dtype, and the `MLPBank`s cast them
        super().__init__(autocast=False, **settings)
        if isinstance(tasks, str) or not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"`tasks` must be one or more names, each once. Received: tasks={tasks!r}")
        if any(width < 1 for width in tower):
            raise ValueError(f"`tower` must be positive widths. Received: tower={tuple(tower)}")
        self.tasks, self.tower = tuple(tasks), tuple(int(width) for width in tower)
        self.activation, self.dropout_rate = activation, float(dropout)
        self.towers = self._bank(len(self.tasks), (*self.tower, 1), "towers", last_activation="linear")

    def _bank(self, count: int, widths: Sequence[int], name: str, **settings: Any) -> MLPBank:
        options = {
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "dtype": self.dtype_policy,
            **self.rules(MLPBank),
            **settings,
        }
        return MLPBank(count, widths, name=name, **{**options, **settings})

    def _build_states(self, width: int) -> tuple[int | None, ...]:
        """Build all but the towers for tokens of this width; returns the shape of the states."""
        raise NotImplementedError

    def _states(self, x: Any, training: bool | None) -> Any:
        """(N, D) -> (N, H), one state for all tasks, or (N, K, H)."""
        raise NotImplementedError

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(f"`inputs` must be (B, ..., D) with D known. Received: shape={tuple(input_shape)}")
        self.towers.build(self._build_states(int(input_shape[-1])))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, return_hidden: bool = False) -> Any:
        lead = ops.shape(inputs)[:-1]
        x = ops.reshape(inputs, (-1, inputs.shape[-1]))
        states = self._states(x, training)
        last, hidden = self.towers(states, training=training, return_hidden=True)
        # An auction or a sum over tasks uses the probabilities: logits stay in float32 under every dtype policy.
        last = ops.cast(last, "float32")
        logits = {task: ops.reshape(last[:, k, 0], lead) for k, task in enumerate(self.tasks)}
        if not return_hidden:
            return logits
        width = hidden.shape[-1]
        each = {task: hidden if len(hidden.shape) == 2 else hidden[:, k] for k, task in enumerate(self.tasks)}
        return logits, {task: ops.reshape(state, (*lead, width)) for task, state in each.items()}

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        return {task: tuple(input_shape)[:-1] for task in self.tasks}

    @property
    def hidden_width(self) -> int:
        """H: width of the input of the last linear map of a task."""
        return int(self.towers.kernels[-1].shape[1])

    def compute_output_spec(self, inputs: Any, training: bool | None = None, return_hidden: bool = False) -> Any:
        lead = tuple(inputs.shape)[:-1]
        logits = {task: keras.KerasTensor(lead, dtype="float32") for task in self.tasks}
        hidden = {task: keras.KerasTensor((*lead, self.hidden_width), dtype=self.compute_dtype) for task in self.tasks}
        return (logits, hidden) if return_hidden else logits

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tasks": list(self.tasks),
            "tower": list(self.tower),
            "activation": self.activation,
            "dropout": self.dropout_rate,
        }
