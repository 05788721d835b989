"""What a model serves of its outputs, by kind of the task and as their weighted sum; and what tasks of other kinds cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keras import ops

from keras_ranking.schema import Schema
from keras_ranking.task import LARGEST_LOGARITHM, Task
from keras_ranking.utility import SCORE, checked_utility

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


@dataclass(frozen=True)
class _Utility:
    """The weights, in an object that Keras does not track."""

    weights: dict[str, float] = field(default_factory=dict)


class HasUtility:
    """A model whose tasks are served next to one number to rank by."""

    _utility = _Utility()

    @property
    def utility(self) -> dict[str, float]:
        """Weights of the output `score` of the serving graph, by task; empty: there is no such output.

            score = sum_t weight_t served_t

        `served_t` is what serving returns of a task: a probability, a share of the highest grade, or a number in its unit. A linear
        combination of probabilities is what Feed-SR and LiRank rank by (stated; the weights are unknown). It may be set at any time, also
        after training, which it does not change, and is saved with the model. None takes the output away.

        Raises:
            ValueError: no weight, an unknown task, a weight that is not finite, or a task that is named 'score'.
        """
        return dict(self._utility.weights)

    @utility.setter
    def utility(self, weights: Mapping[str, float] | None) -> None:
        arguments = self._builder_call.arguments  # type: ignore[attr-defined]
        self._utility = _Utility({} if weights is None else checked_utility(weights, arguments["tasks"]))
        self._graphs.forget("serving", "explore")  # type: ignore[attr-defined]

    def with_score(self, served: Mapping[str, Any]) -> dict[str, Any]:
        """What is served by task, and the utility where the model has one; arrays and tensors alike."""
        if not self._utility.weights:
            return dict(served)
        return {**served, SCORE: weighted_sum({task: served[task] for task in self._utility.weights}, self._utility.weights)}


def weighted_sum(values: Mapping[str, Any], weights: Mapping[str, Any]) -> Any:
    """The sum of values by task, each times its weight."""
    first, *rest = ((values[task], weight) for task, weight in weights.items())
    total = first[0] * first[1]
    for value, weight in rest:
        total = total + value * weight
    return total
