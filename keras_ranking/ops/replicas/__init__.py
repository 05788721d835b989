"""Replicas of `tf.distribute` and of torch: parts of a batch on several devices, and sums over all of them.

On JAX a batch on several devices is one array, and nothing here is needed. Elsewhere each replica computes with its part of the batch.
Inside `added_up`, losses and moments are those of the whole batch, and the gradients of the replicas add up to its gradient.
Outside of it, what would be of one part alone is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

_JAX = "the JAX backend with `keras.distribution.DataParallel`, where a batch is one array on all devices"
_WAY = "`keras_ranking.training.train(..., distribution='data')`, which adds up over replicas"
_ADDED = [False]


def replicas() -> int:
    """Number of replicas of the `tf.distribute` strategy in scope, or of processes in torch's default group; 1 without one, and on JAX."""
    backend = keras.backend.backend()
    if backend == "torch":
        distributed = sys.modules.get("torch.distributed")
        started = distributed is not None and distributed.is_available() and distributed.is_initialized()
        return int(distributed.get_world_size()) if started and distributed is not None else 1
    tensorflow = sys.modules.get("tensorflow") if backend == "tensorflow" else None
    return 1 if tensorflow is None else int(tensorflow.distribute.get_strategy().num_replicas_in_sync)


@contextlib.contextmanager
def added_up() -> Iterator[None]:
    """Inside, sums over a batch are those of all replicas. The optimiser must apply the sum of their gradients, not the mean."""
    before, _ADDED[0] = _ADDED[0], True
    try:
        yield
    finally:
        _ADDED[0] = before


def together() -> int:
    """Number of replicas over which `total` adds up; 1 outside of `added_up`."""
    return replicas() if _ADDED[0] else 1


def _backend() -> Any:
    return importlib.import_module(f"keras_ranking.ops.replicas.{keras.backend.backend()}")


def total(values: Any) -> Any:
    """The sum of a tensor over replicas; its gradient is the sum of their gradients. The tensor itself where there is one."""
    return values if together() == 1 or _is_symbolic(values) else _backend().total(values)


def anywhere(flag: Any) -> Any:
    """Whether a boolean scalar is true on any replica."""
    return flag if together() == 1 or _is_symbolic(flag) else total(ops.cast(flag, "float32")) > 0


def loss_of_all(part: Any) -> Any:
    """A scalar loss of which each replica has a part of the sum: the value of the sum, the gradient of the part.

    Keras multiplies what it reports by the number of replicas of a strategy, so that the value is divided by it there.
    """
    if together() == 1 or _is_symbolic(part):
        return part
    value = ops.stop_gradient(total(ops.stop_gradient(part)))
    if keras.backend.backend() == "tensorflow":
        value = value / replicas()
    return value + (part - ops.stop_gradient(part))


def sum_gradients(gradients: Sequence[Any]) -> list[Any]:
    """Gradients added up over replicas, those of tables by rows too; None stays None."""
    return list(gradients) if together() == 1 else _backend().sum_gradients(list(gradients))


def whole_array(value: Any) -> np.ndarray:
    """A tensor in numpy. One that is shared out over processes of JAX is gathered: then all processes must call this."""
    return np.asarray(_backend().whole_array(value))


def _is_symbolic(values: Any) -> bool:
    """Whether Keras only learns shapes."""
    return bool(in_symbolic_scope() or isinstance(values, keras.KerasTensor) or getattr(values, "is_meta", False))


def refuse_replicas(name: str, reason: str, always: bool = False) -> None:
    """Raise an error where several replicas train together, each of which would compute with its own part of the batch.

    Args:
        name: what cannot be used.
        reason: what would be wrong.
        always: whether also inside `added_up`.

    Raises:
        NotImplementedError: more than one replica.
    """
    count = replicas()
    if count > 1 and (always or not _ADDED[0]):
        torch = keras.backend.backend() == "torch"
        where = f"a torch.distributed group of {count} processes" if torch else f"a tf.distribute strategy of {count} replicas"
        ways = f"one replica, or {_JAX}" if always else f"one replica, {_WAY}, or {_JAX}"
        raise NotImplementedError(f"`{name}` cannot be used in {where}: {reason}. Use {ways}.")
