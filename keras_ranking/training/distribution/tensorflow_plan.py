"""Several devices of one machine with TensorFlow: `MirroredStrategy`, whose gradients are added up before they are clipped."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ranking.ops.messages import shown
from keras_ranking.ops.replicas import added_up
from keras_ranking.optimizers.summed import apply_sums
from keras_ranking.training.checkpoint import arrays_of, assign_arrays
from keras_ranking.training.distribution.choice import refused
from keras_ranking.training.distribution.plan import Plan

_WAYS = "On one machine distribution='data' (MirroredStrategy) works; for several, use JAX, `KERAS_BACKEND=jax`, or torch with torchrun."


def plan(distribution: Any) -> Plan:
    """See `keras_ranking.training.distribution.plan_for`."""
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    if sum(len(jobs) for jobs in cluster.values()) > 1:
        raise refused("a training on several machines (`TF_CONFIG`: MultiWorkerMirroredStrategy)", "TensorFlow", _WAYS)
    if distribution == "tables":
        raise refused("distribution='tables'", "TensorFlow", "Use JAX, `KERAS_BACKEND=jax`, or distribution='data' with whole tables.")
    if distribution == "data":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        distribution = _mirrored(tuple(device.name for device in devices))
    one_machine = isinstance(distribution, tf.distribute.MirroredStrategy)
    if not one_machine:
        name = type(distribution).__name__ if isinstance(distribution, tf.distribute.Strategy) else shown(distribution)
        raise refused(f"`distribution`: {name}", "TensorFlow", _WAYS)
    return TensorflowPlan(distribution)


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> Any:
    """One strategy for all trainings of this process: each numbers its sums over replicas from the same number on, and TensorFlow refuses
    a number that another training used for a tensor of another shape."""
    return tf.distribute.MirroredStrategy(list(devices))


class TensorflowPlan(Plan):
    """The replicas of a `tf.distribute.MirroredStrategy`."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.parts = int(strategy.num_replicas_in_sync)
        self.own = 0, self.parts  # TensorFlow shares a batch out to the replicas of this process
        self._inside = contextlib.ExitStack()
        self._calls: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def devices(self) -> Iterator[None]:
        with contextlib.ExitStack() as self._inside:
            self._inside.enter_context(self.strategy.scope())
            self._inside.enter_context(added_up())
            yield

    def describe(self, dataset: Any, ranker: Any) -> str:
        kind = tf.DeviceSpec.from_string(self.strategy.extended.worker_devices[0]).device_type.lower()
        count = f"{self.parts} {kind} device{'s' if self.parts > 1 else ''} of MirroredStrategy"
        return f"{count}, without XLA: {self.rows(dataset)}; gradients are added up"

    def prepare(self, ranker: Any) -> None:
        ranker.jit_compile = False  # XLA compiles for one device
        apply_sums(ranker.optimizer)

    def finished(self, ranker: Any, again: Callable[[], Any], compiled: Callable[[Any], None]) -> Any:
        arrays = arrays_of(ranker)
        self._inside.close()
        plain = again()
        compiled(plain)
        if not plain.optimizer.built:
            plain.optimizer.build(plain.trainable_variables)
        assign_arrays(arrays, plain)
        return plain

    def predict_on_batch(self, ranker: Any, x: Any) -> Any:
        """By the first replica: Keras would score each batch once for each."""
        kept = self._calls.get(id(ranker))
        if kept is None or kept[0] is not ranker:
            call = tf.function(lambda x: ranker(x, training=False), reduce_retracing=True, autograph=False)
            kept = self._calls[id(ranker)] = ranker, call
        return {name: np.asarray(value) for name, value in kept[1]({name: tf.constant(value) for name, value in x.items()}).items()}
