"""The utility of a candidate: a weighted sum of what a model serves of its tasks, in one number to rank by."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from keras_ranking.configuration import is_real

SCORE = "score"
"""Name of the output with the utility, next to those of the tasks."""
WEIGHT = "weight_"
"""Prefix of the inputs with the weights of a request, by task."""


def checked_utility(utility: Any, tasks: Collection[str], name: str = "utility") -> dict[str, float]:
    """The weights by task, as plain numbers.

    Args:
        utility: task -> weight.
        tasks: those that the model serves.
        name: of the argument, for messages.

    Raises:
        ValueError: no weight, an unknown task, a weight that is not finite, or a task whose name is that of the output.
    """
    if not isinstance(utility, Mapping) or not utility:
        raise ValueError(f"`{name}` must map at least one task to its weight, such as {{'click': 1.0}}. Received: {utility!r}")
    for task, weight in utility.items():
        if task not in tasks:
            raise ValueError(f"`{name}` must name tasks that the model serves, {list(tasks)}. Received: {task!r}")
        if not is_real(weight) or not math.isfinite(weight):
            raise ValueError(f"`{name}` must have finite numbers as weights. Received: {weight!r} for task '{task}'")
    if SCORE in tasks:
        raise ValueError(f"`{name}` gives the model an output '{SCORE}', which is a task here: rename the task.")
    return {str(task): float(weight) for task, weight in utility.items()}
