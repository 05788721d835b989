"""Replicas of `tf.distribute`: sums over a batch are of one replica's part there, which this package does not add up."""

from __future__ import annotations

import sys

import keras


def replicas() -> int:
    """Number of replicas of the `tf.distribute` strategy in scope; 1 without one, and on other backends."""
    tensorflow = sys.modules.get("tensorflow") if keras.backend.backend() == "tensorflow" else None
    return 1 if tensorflow is None else int(tensorflow.distribute.get_strategy().num_replicas_in_sync)


def refuse_replicas(name: str, reason: str) -> None:
    """Raise an error in the scope of a strategy with several replicas.

    Args:
        name: what cannot be used.
        reason: what would be wrong.

    Raises:
        NotImplementedError: more than one replica.
    """
    count = replicas()
    if count > 1:
        raise NotImplementedError(
            f"`{name}` cannot be used in a tf.distribute strategy of {count} replicas: {reason}. Use one replica, or the JAX backend with "
            "`keras.distribution.DataParallel`, where a batch is one array on all devices."
        )
