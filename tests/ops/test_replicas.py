"""In a strategy of several replicas, or a group of torch processes, what sums over a batch is refused: figures would be of one part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.losses import InRequestPairwise, InRequestSoftmax, ObservedTowerLoss
from keras_ranking.ops.replicas import replicas

tensorflow_only = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")


torch_only = pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.distributed is torch's")


def strategy(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A strategy of so many replicas in scope."""
    import tensorflow as tf

    class Strategy:
        num_replicas_in_sync = count

    monkeypatch.setattr(tf.distribute, "get_strategy", Strategy)


def made() -> Any:
    log = kr.data.simulate(members=4, days=2, seed=1)
    return kr.models.LiRank(log.schema.fit(log.events), history_features=(), hidden=(4,), cross_layers=1, rank=2)


def penalty() -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
    weights = {"d/kernel": np.zeros((2, 1), "float32"), "d/bias": np.zeros(1, "float32")}
    return kr.training.IncrementalPenalty(kr.training.FisherSnapshot(weights, weights, 1)).attach(model).detach()


ROWS = np.ones((4, 3), "float32")
USES: dict[str, Callable[[], Any]] = {
    "LiRank": made,
    "ObservedTowerLoss": lambda: ObservedTowerLoss()([[1.0, 0.0]], [[0.0, 0.0]]),
    "InRequestPairwise": lambda: InRequestPairwise()([[1.0, 0.0]], [[0.0, 0.0]]),
    "InRequestSoftmax": lambda: InRequestSoftmax()([[1.0, 0.0]], [[0.0, 0.0]]),
    "MaskedBatchNormalization": lambda: kr.layers.MaskedBatchNormalization()(ROWS, training=True),
    "ResidualQuantizer": lambda: kr.layers.ResidualQuantizer(1, 2)(ROWS, training=True),
    "IncrementalPenalty": penalty,
}


@tensorflow_only
@pytest.mark.parametrize("use", USES)
def test_several_replicas_are_refused(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    USES[use]()  # control: without a strategy
    strategy(monkeypatch, 2)
    with pytest.raises(
        NotImplementedError, match=r"cannot be used in a tf.distribute strategy of 2 replicas: .*keras.distribution.DataParallel"
    ):
        USES[use]()


@tensorflow_only
def test_one_replica_and_scores_are_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = kr.layers.MaskedBatchNormalization()
    wanted = keras.ops.convert_to_numpy(layer(ROWS))
    strategy(monkeypatch, 1)
    USES["ObservedTowerLoss"]()
    strategy(monkeypatch, 2)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(ROWS)), wanted)


@pytest.fixture
def group() -> Iterator[Any]:
    """torch's default group, of this process alone."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed
    distributed.destroy_process_group()


@torch_only
@pytest.mark.parametrize("use", [use for use in USES if use != "LiRank"])
def test_processes_of_torch_are_refused(use: str, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DistributedDataParallel` averages the gradients of losses, each of which is divided by the weights of its own part."""
    USES[use]()  # control: a group of one
    monkeypatch.setattr(group, "get_world_size", lambda: 2)
    with pytest.raises(
        NotImplementedError, match=r"cannot be used in a torch.distributed group of 2 processes: .*keras.distribution.DataParallel"
    ):
        USES[use]()


@torch_only
def test_processes_of_torch_may_score(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "get_world_size", lambda: 2)
    made()


def test_there_is_one_replica_without_a_strategy() -> None:
    assert replicas() == 1
