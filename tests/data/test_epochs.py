"""Same seed, same batches: whatever the workers, the number of batches and what `fit` reads before the first epoch."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRequests, RequestDataset, build_sequences, pack, pad, requests

pytestmark = pytest.mark.every_backend
LOG = kr.data.simulate(members=8, days=3, seed=1)
SEQUENCES = build_sequences(LOG.events, LOG.schema.fit(LOG.events))
ROWS, PADDED = pack(SEQUENCES, 32), pad(SEQUENCES, 32)
FOUND = requests(SEQUENCES, max_history=4)
THREADS: list[dict[str, Any]] = [{"workers": 2}, {"workers": 5, "max_queue_size": 3}, {"workers": 2, "use_multiprocessing": True}]


def packed(batch_size: int = 2, **settings: Any) -> Any:
    return PackedDataset(ROWS, batch_size, inputs=["age_hours"], tasks=["click"], seed=3, **settings)


def bucketed(batch_size: int = 2, **settings: Any) -> Any:
    given = {"length": "bucketed", "length_multiple": 8, "shuffle_sessions": None}
    return PackedDataset(PADDED, batch_size, inputs=["age_hours"], tasks=["click"], seed=3, **given, **settings)


def in_requests(batch_size: int = 2, **settings: Any) -> Any:
    return PackedRequests(FOUND, 32, batch_size, names=["candidate_age_hours"], tasks=["click"], seed=3, **settings)


KINDS = {"packed": packed, "bucketed": bucketed, "requests": in_requests}


def numbers(dataset: Any) -> list[np.ndarray]:
    return [next(iter(dataset[batch][0].values())) for batch in range(len(dataset))]


def fitted(dataset: Any, epochs: int = 2) -> tuple[np.ndarray, int]:
    """Weights after a training that depends on the order of the batches, and the epoch that comes next."""
    name = "candidate_age_hours" if isinstance(dataset, PackedRequests) else "age_hours"
    inputs = keras.Input((None,), name=name)
    outputs = keras.layers.Dense(1, kernel_initializer="ones", name="click")(keras.ops.expand_dims(inputs, -1))
    model = keras.Model({name: inputs}, {"click": outputs})
    model.compile(keras.optimizers.SGD(0.5), {"click": kr.losses.ObservedTowerLoss()})
    model.fit(dataset, epochs=epochs, shuffle=False, verbose=0)
    return np.concatenate([np.ravel(values) for values in model.get_weights()]), dataset.epoch


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_do_not_depend_on_the_workers(kind: str) -> None:
    make = KINDS[kind]
    assert len(make()) > 2
    wanted, epoch = fitted(make())
    assert epoch == 2
    for settings in THREADS[: 3 if kind == "packed" else 1]:
        found, epoch = fitted(make(**settings))
        assert epoch == 2
        np.testing.assert_array_equal(found, wanted)
    other, _ = fitted(make(epoch=1))  # control: other batches, other weights
    assert np.abs(other - wanted).max() > 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"workers": 2}], ids=["alone", "threads"])
def test_one_batch_is_one_epoch(kind: str, settings: dict[str, Any]) -> None:
    dataset = KINDS[kind](500, **settings)
    assert len(dataset) == 1
    assert fitted(dataset)[1] == 2
    assert fitted(dataset, epochs=3)[1] == 5  # a second `fit` goes on


def test_threads_make_the_batches_of_their_epoch() -> None:
    at_once: set[str] = set()

    class Watched(PackedDataset):
        def make(self, batch: int) -> Any:
            at_once.add(threading.current_thread().name)
            return super().make(batch)

    dataset = Watched(ROWS, 2, inputs=["age_hours"], seed=3, workers=3)
    for epoch in range(3):
        stated = numbers(PackedDataset(ROWS, 2, inputs=["age_hours"], seed=3, epoch=epoch))
        dataset.on_epoch_begin()
        for one, other in zip(numbers(dataset), stated, strict=True):
            np.testing.assert_array_equal(one, other)
        dataset.on_epoch_end()
    assert dataset.epoch == 3 and at_once and all(name.startswith("batches") for name in at_once)
    # In any order, and in copies that another thread or process has.
    order = np.random.default_rng(0).permutation(len(dataset))
    stated = numbers(packed(epoch=3))
    for again in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(packed(epoch=3, workers=2)))):
        for batch in order:
            np.testing.assert_array_equal(next(iter(again[int(batch)][0].values())), stated[batch])


def test_predictions_are_in_the_order_of_the_requests() -> None:
    names = ["candidate_age_hours"]
    inputs = keras.Input((None,), name=names[0])
    model = keras.Model({names[0]: inputs}, keras.layers.Identity()(inputs))
    alone = RequestDataset(FOUND, 4, names)
    wanted = np.concatenate([alone[batch][0][names[0]] for batch in range(len(alone))])
    for settings in ({}, *THREADS):
        found = model.predict(RequestDataset(FOUND, 4, names, **settings), verbose=0)
        np.testing.assert_array_equal(found, wanted)


def test_an_error_in_a_thread_is_raised_where_the_batch_is_read() -> None:
    class Broken(PackedDataset):
        def make(self, batch: int) -> Any:
            if batch == 1:
                raise KeyError("batch 1")
            return super().make(batch)

    dataset = Broken(ROWS, 2, workers=2)
    dataset[0]
    with pytest.raises(KeyError, match="batch 1"):
        dataset[1]
    for settings, message in (({"workers": -1}, "`workers` must be an integer of at least 0"), ({"max_queue_size": 0}, "`max_queue_size`")):
        with pytest.raises(ValueError, match=message):
            packed(**settings)
