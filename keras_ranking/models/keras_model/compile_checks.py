"""What a `RankingModel` may be compiled with: losses and metrics that read packed targets and logits, with the model's own towers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from keras_ranking.losses.in_request_choice import InRequestChoice
from keras_ranking.losses.reduction import PackedLoss
from keras_ranking.metrics.observed_base import ObservedBase

_LIBRARIES = {
    "keras",
    "keras_rs",
    "keras_hub",
    "keras_cv",
    "tf_keras",
    "tensorflow",
    "tensorflow_ranking",
    "torch",
    "torchmetrics",
    "jax",
    "optax",
}
# Metrics of Keras that compare a probability with a threshold, or with a label.
_OF_PROBABILITIES = ("confusion_metrics", "accuracy_metrics", "probabilistic_metrics", "f_score_metrics", "iou_metrics")
_RIGHT = {
    "loss": "Use `model.losses_by_task()`, or a loss of `keras_ranking.losses`.",
    "metrics": "Use `weighted_metrics` with the metrics of `keras_ranking.metrics`; "
    "`Observed(metric, boundaries=model.boundaries)` reads packed targets for a metric of Keras.",
}


class Foreign(NamedTuple):
    """A loss or metric of a library that reads plain labels: not for packed targets."""

    argument: str
    name: str


def own_by_name(given: Any, room: Any, boundaries: Sequence[int], tasks: Sequence[str] = ()) -> Any:
    """Names of classes of this package as objects with the model's boundaries; one name of a loss is for each task. Other things stay."""
    if isinstance(given, Mapping):
        return {name: own_by_name(one, room, boundaries) for name, one in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(own_by_name(one, room, boundaries) for one in given)
    kind: Any = getattr(room, given, None) if isinstance(given, str) else None
    if not (isinstance(kind, type) and issubclass(kind, PackedLoss | ObservedBase)):
        return given
    if tasks:
        return {task: own_by_name(given, room, boundaries) for task in tasks}
    made: Any = kind
    return made(boundaries=tuple(boundaries)) if "boundaries" in inspect.signature(made).parameters else made()


def check_compiled(loss: Any, metrics: Any, weighted_metrics: Any, boundaries: Sequence[int]) -> tuple[Foreign, ...]:
    """Losses and metrics of libraries, which `check_targets` excludes for packed targets.

    Raises:
        ValueError: a loss or metric that is wrong for any targets: of probabilities, while the outputs are logits; with other boundaries
            than the model's towers; a metric of this package in `metrics`, which Keras gives no weights.
    """
    foreign = []
    for argument, given in (("loss", loss), ("metrics", metrics), ("weighted_metrics", weighted_metrics)):
        for item in _leaves(given):
            if isinstance(item, PackedLoss | ObservedBase):
                _check_own(item, argument, tuple(boundaries))
                continue
            found = _resolved(item, argument)
            if not _of_library(found):
                continue
            right = _RIGHT["loss" if argument == "loss" else "metrics"]
            if _reads_probabilities(found):
                raise ValueError(
                    f"`{argument}` must be for logits, which this model returns. Received: {_name(item)}, for probabilities. {right}"
                )
            foreign.append(Foreign(argument, _name(item)))
    return tuple(foreign)


def check_choices(loss: Any, tasks: Sequence[str], choice: Sequence[str]) -> None:
    """Raise an error for the likelihood of a choice on logits of items that know nothing of each other.

    Raises:
        ValueError: `InRequestChoice` for a task that is not in the model's `choice`.
    """
    of_tasks = loss if isinstance(loss, Mapping) else dict.fromkeys(tasks, loss)
    if wrong := [task for task, found in of_tasks.items() if isinstance(found, InRequestChoice) and task not in choice]:
        raise ValueError(
            f"`loss` must be InRequestChoice for tasks in the model's `choice` alone, {list(choice)}. Received: InRequestChoice for "
            f"{wrong}; make the model with choice={wrong}"
        )


def check_targets(foreign: Sequence[Foreign], y: Any) -> None:
    """Raise an error for packed targets with a loss or metric that would read them as labels.

    Raises:
        ValueError: the argument of `compile`, and what to use.
    """
    for target in keras.tree.flatten(y):
        shape = tuple(getattr(target, "shape", ()))
        if len(shape) == 3 and shape[-1] in (3, None):
            argument, name = foreign[0]
            raise ValueError(
                f"`{argument}` must read packed targets (B, T, 3): label, position and request. Received: {name}, which takes all three "
                f"for labels. {_RIGHT['loss' if argument == 'loss' else 'metrics']}"
            )


def _leaves(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple):
        for item in given:
            yield from _leaves(item)
    elif given is not None:
        yield given


def _check_own(item: Any, argument: str, boundaries: tuple[int, ...]) -> None:
    if argument == "metrics":
        raise ValueError(
            "`metrics` must hold metrics without weights: Keras passes `sample_weight` to `weighted_metrics` alone, and padding would be "
            f"counted here. Received: {_name(item)}; give it in `weighted_metrics`"
        )
    if isinstance(item, PackedLoss) and not item.from_logits:
        raise ValueError(
            f"`{argument}` must be for logits, which this model returns. Received: {_name(item)} with from_logits=False; leave that out"
        )
    if item.boundaries != boundaries:
        raise ValueError(
            f"`{argument}` must have the boundaries of the model's towers, {boundaries}. Received: {_name(item)} with "
            f"boundaries={item.boundaries}; use `boundaries=model.boundaries`"
        )


def _resolved(item: Any, argument: str) -> Any:
    """What Keras makes of a name; a name that Keras resolves by the shapes, such as 'accuracy', stays as it is."""
    if not isinstance(item, str):
        return item
    try:
        return (keras.losses if argument == "loss" else keras.metrics).get(item)
    except ValueError:
        return item


def _function(item: Any) -> Any:
    """The function that a wrapper of Keras calls, else the object itself."""
    for name in ("fn", "_fn"):
        if isinstance(item, keras.losses.Loss | keras.metrics.Metric) and hasattr(item, name):
            return getattr(item, name)
    while isinstance(item, functools.partial):
        item = item.func
    return item


def _of_library(item: Any) -> bool:
    """Whether the numbers are computed by code of a library, and not by the caller's own."""
    if isinstance(item, str):
        return True
    if isinstance(item, keras.losses.Loss | keras.metrics.Metric):
        names = ("__call__", "call") if isinstance(item, keras.losses.Loss) else ("update_state",)
        if not all(_library(_definer(type(item), name)) for name in names):
            return False
    return _library(_module(_function(item)))


def _definer(kind: type, method: str) -> str:
    return next((base.__module__ for base in kind.__mro__ if method in vars(base)), "")


def _module(item: Any) -> str:
    return str(getattr(item, "__module__", "") or type(item).__module__)


def _library(module: str) -> bool:
    return module.split(".")[0] in _LIBRARIES


def _reads_probabilities(item: Any) -> bool:
    """Whether a loss or metric of a library would be wrong on logits."""
    if isinstance(item, str):
        return True
    function = _function(item)
    settings = getattr(item, "_fn_kwargs", {}) or (item.keywords if isinstance(item, functools.partial) else {})
    if callable(function) and not isinstance(function, type) and "from_logits" in _parameters(function):
        return not settings.get("from_logits", False)
    if isinstance(item, keras.metrics.Metric):
        if hasattr(item, "_from_logits"):
            return not item._from_logits
        return any(base.__module__.endswith(_OF_PROBABILITIES) for base in type(item).__mro__)
    return False


def _parameters(function: Any) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def _name(item: Any) -> str:
    if isinstance(item, str):
        return repr(item)
    if isinstance(item, keras.losses.Loss | keras.metrics.Metric):
        return type(item).__name__
    return str(getattr(_function(item), "__name__", type(item).__name__))
