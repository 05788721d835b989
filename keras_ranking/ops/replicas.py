"""Replicas of `tf.distribute` and of torch: sums over a batch are of one replica's part there, which this package does not add up."""

from __future__ import annotations

import sys

import keras

_JAX = "the JAX backend with `keras.distribution.DataParallel`, where a batch is one array on all devices"


def replicas() -> int:
    """Number of replicas of the `tf.distribute` strategy in scope, or of processes in torch's default group; 1 without one, and on JAX."""
    backend = keras.backend.backend()
    if backend == "torch":
        distributed = sys.modules.get("torch.distributed")
        started = distributed is not None and distributed.is_available() and distributed.is_initialized()
        return int(distributed.get_world_size()) if started and distributed is not None else 1
    tensorflow = sys.modules.get("tensorflow") if backend == "tensorflow" else None
    return 1 if tensorflow is None else int(tensorflow.distribute.get_strategy().num_replicas_in_sync)


def refuse_replicas(name: str, reason: str) -> None:
    """Raise an error where several replicas train together.

    Args:
        name: what cannot be used.
        reason: what would be wrong.

    Raises:
        NotImplementedError: more than one replica.
    """
    count = replicas()
    if count > 1:
        torch = keras.backend.backend() == "torch"
        where = f"a torch.distributed group of {count} processes" if torch else f"a tf.distribute strategy of {count} replicas"
        raise NotImplementedError(f"`{name}` cannot be used in {where}: {reason}. Use one replica, or {_JAX}.")
