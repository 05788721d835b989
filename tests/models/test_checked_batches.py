"""A caller's dataset: a wrong label, weight, time or id in any batch is an error of that batch, before its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.models.keras_model.compiled_ranker import CompiledRanker

BACKEND = keras.backend.backend()
COMPILED = {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}[BACKEND]
each_step = pytest.mark.parametrize("jit_compile", COMPILED)
STEP = COMPILED[-1]
Batches = list[Any]


class Small(CompiledRanker):
    """A ranker of two integer inputs."""

    boundaries: tuple[int, ...] = ()
    auxiliary_tasks: dict[str, float] = {}
    auxiliary: dict[str, tuple[str, float]] = {}
    arguments: dict[str, Any] = {}


@pytest.fixture
def model() -> Any:
    inputs = {name: keras.Input((4,), dtype="int32", name=name) for name in ("time", "item_id")}
    hour = keras.ops.expand_dims(keras.ops.cast(inputs["time"] % 24, "float32") / 24.0, -1)
    return Small(inputs, {"click": keras.layers.Dense(1)(hour) + keras.layers.Embedding(50, 1)(inputs["item_id"])})


@pytest.fixture
def good() -> Batches:
    rng = np.random.default_rng(0)
    return [
        (
            {"time": rng.integers(10**8, size=(2, 4)).astype("int32"), "item_id": rng.integers(50, size=(2, 4)).astype("int32")},
            {"click": kr.losses.targets(rng.integers(2, size=(2, 4)))},
            {"click": np.ones((2, 4), np.float32)},
        )
        for _ in range(3)
    ]


class Listed(keras.utils.PyDataset):
    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def generator(batches: Batches) -> Iterator[Any]:
    yield from batches


def tf_data(batches: Batches) -> Any:
    import tensorflow as tf

    merged = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(merged).batch(2)


def loader(batches: Batches) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


# The other libraries are slow to start: before a release.
KINDS = [
    pytest.param(generator, id="generator"),
    pytest.param(Listed, id="dataset"),
    pytest.param(tf_data, id="tf.data", marks=() if BACKEND == "tensorflow" else [pytest.mark.slow, pytest.mark.release]),
    pytest.param(loader, id="loader", marks=() if BACKEND == "torch" else [pytest.mark.slow, pytest.mark.release]),
]
each_kind = pytest.mark.parametrize("made", KINDS)


def changed(batches: Batches, part: int, name: str, change: Callable[[np.ndarray], Any], last: int = 1) -> Batches:
    """The batches with one entry of each from the `last` on changed."""
    found = []
    for number, batch in enumerate(batches):
        parts = [dict(entry) for entry in batch]
        if number >= last:
            parts[part][name] = change(parts[part][name].copy())
        found.append(tuple(parts))
    return found


def with_label(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(targets: np.ndarray) -> np.ndarray:
        targets[..., 0] = value
        return targets

    return change


def numbers(model: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


@each_kind
def test_a_wrong_label_is_an_error_before_its_step(model: Any, good: Batches, made: Any) -> None:
    model.compile("sgd", {"click": kr.losses.ObservedTowerLoss()}, jit_compile=STEP)
    wrong = changed(good, 1, "click", with_label(-1.0))
    before = numbers(model)
    with pytest.raises(ValueError, match=r"task 'click': `y_true` must hold labels from 0 to 1.* Received: label -1.0 at"):
        model.fit(made(wrong), epochs=2, shuffle=False, verbose=0)
    after = numbers(model)
    assert all(np.isfinite(values).all() for values in after)
    if made is not tf_data:  # there the batches are read ahead
        assert any((one != other).any() for one, other in zip(before, after, strict=True)), "the first batch was right"
    with pytest.raises(ValueError, match="task 'click': `y_true` must hold labels from 0 to 1"):
        model.evaluate(made(wrong), verbose=0)
    with pytest.raises(ValueError, match="task 'click': `sample_weight` must hold finite numbers"):
        model.fit(*good[0][:2], validation_data=made(changed(good, 2, "click", lambda weight: weight - 2)), verbose=0)
    # Controls: what is right trains on, and predicting reads no labels.
    history = model.fit(made(good), validation_data=made(good), epochs=1, verbose=0).history
    assert np.isfinite(history["loss"][0]) and np.isfinite(history["val_loss"][0])
    if made in (generator, loader):
        model.predict(made(wrong), verbose=0)


@each_step
def test_tensors_of_one_batch(model: Any, good: Batches, jit_compile: bool) -> None:
    model.compile("sgd", {"click": kr.losses.ObservedTowerLoss()}, jit_compile=jit_compile)
    x, y, weight = keras.tree.map_structure(keras.ops.convert_to_tensor, changed(good, 1, "click", with_label(2.0))[1])
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match="task 'click': `y_true` must hold labels from 0 to 1.* Received: label 2.0"):
            call(x, y, weight)
    assert np.isfinite(model.test_on_batch(*good[1]))


@each_kind
def test_times_and_ids(model: Any, good: Batches, made: Any) -> None:
    model.compile("sgd", {"click": kr.losses.ObservedTowerLoss()}, jit_compile=STEP)
    for name, calls in (("time", (model.predict, model.fit)), ("item_id", (model.evaluate,))):
        want = model.evaluate(made(good), verbose=0)
        wide = changed(good, 0, name, lambda values: values.astype("int64"), last=0)
        assert model.evaluate(made(wide), verbose=0) == want
        for call in calls:
            with pytest.raises(ValueError, match=f"`{name}` must be whole numbers of int32.*Received: "):
                call(made(changed(wide, 0, name, lambda values: values + 2**32)), verbose=0)
            with pytest.raises(ValueError, match=f"`{name}` must be integers .int32.. Received: dtype=float32"):
                call(made(changed(good, 0, name, lambda values: values.astype("float32"), last=0)), verbose=0)
