"""Which plan a training has: from the argument `distribution` and the backend."""

from __future__ import annotations

import importlib
from typing import Any

import keras

from keras_ranking.ops.messages import shown
from keras_ranking.training.distribution.plan import ONE, Plan

KINDS = ("data", "tables")


def plan_for(distribution: Any) -> Plan:
    """The plan of a training on this backend.

    Args:
        distribution: as in `train`; None: one device.

    Raises:
        ValueError: something else, or processes that are not started.
        NotImplementedError: what Keras cannot do on this backend, with the way that works.
    """
    if distribution is None:
        return ONE
    backend = keras.backend.backend()
    if isinstance(distribution, str) and distribution not in KINDS:
        raise ValueError(f"`distribution` must be None, one of {KINDS}, or a keras.distribution object. Received: {shown(distribution)}")
    made: Any = importlib.import_module(f"keras_ranking.training.distribution.{backend}_plan")
    plan: Plan = made.plan(distribution)
    return plan


def refused(what: str, backend: str, way: str) -> NotImplementedError:
    """The error for what does not work on a backend.

    Args:
        what: was asked for.
        backend: as a reader knows it.
        way: that works.
    """
    return NotImplementedError(f"{what} does not work with Keras on {backend}. {way}")
