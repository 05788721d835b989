"""What a model serves of its outputs, by kind of the task; and what tasks that are no binary outcomes cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import ops

from keras_ranking.schema import Schema
from keras_ranking.task import LARGEST_LOGARITHM, Task

_BINARY = {"choice": "a choice of one candidate", "explore": "a posterior", "random_effects": "random effects"}


def served_value(task: Task, outputs: Any) -> Any:
    """A probability, a share of the highest grade or a number, of outputs of any shape: `Task.served` on tensors."""
    if task.kind != "number":
        return ops.sigmoid(outputs)
    if task.transform.endswith("standardise"):
        outputs = outputs * float(task.std or 1.0) + float(task.mean or 0.0)
    if task.transform.startswith("log1p"):
        return ops.expm1(ops.minimum(outputs, LARGEST_LOGARITHM))
    return outputs + 0.0  # a tensor of its own: an exported graph needs one for each output


def check_kinds(schema: Schema, arguments: Mapping[str, Any]) -> None:
    """Check that tasks of other kinds than 'binary' are not given what is of probabilities, and that numbers are fitted.

    Raises:
        ValueError: naming the task.
    """
    for name in arguments.get("tasks") or ():
        task = schema.task(name)
        if not task.fitted:
            raise ValueError(
                f"task '{name}' has transform={task.transform!r} without `mean` and `std`: call `schema.fit(training_rows)` first."
            )
        for argument, what in _BINARY.items():
            if task.kind != "binary" and name in (arguments.get(argument) or ()):
                raise ValueError(f"`{argument}`: {what} is for binary tasks. Received: task '{name}' of kind={task.kind!r}")


def require_probabilities(schema: Schema, tasks: Any, what: str) -> None:
    """Check that no task is a number.

    Raises:
        ValueError: naming the first that is one.
    """
    for name in tasks:
        if schema.task(name).kind == "number":
            raise ValueError(f"{what} is for tasks whose outputs are probabilities. Received: task '{name}' of kind='number'")
