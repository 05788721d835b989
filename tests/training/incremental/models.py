"""Small models and data for the tests of incremental training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_ranking.training import FisherSnapshot
from keras_ranking.training.incremental.layer_gradients import variable_path

LOSS = keras.losses.BinaryCrossentropy(from_logits=True)


class Batches(keras.utils.PyDataset):
    """Arrays in batches, as `fit` and `measure` read them."""

    def __init__(self, *arrays: Any, size: int = 16) -> None:
        super().__init__()
        self.arrays, self.size = arrays, size

    def __len__(self) -> int:
        return -(-len(keras.tree.flatten(self.arrays[0])[0]) // self.size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        part = slice(index * self.size, (index + 1) * self.size)
        return tuple(keras.tree.map_structure(lambda array: array[part], array) for array in self.arrays)


def logistic(features: int = 3, bias: bool = True) -> keras.Model:
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(1, use_bias=bias, name="d")])
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    return model


def points(count: int = 50, features: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)).astype("float32"), (rng.random((count, 1)) < 0.4).astype("float32")


def sequence_model(rows: int = 7, dim: int = 3, hidden: int = 4) -> keras.Model:
    """mean_t tanh(E[id_t] W + b) v + c."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Dense(hidden, activation="tanh", name="inner")(keras.layers.Embedding(rows, dim, name="table")(ids))
    model = keras.Model({"ids": ids}, {"click": keras.layers.Dense(1, name="logit")(keras.layers.GlobalAveragePooling1D()(x))})
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.7, weight.shape).astype("float32") for weight in model.weights])
    model.compile(keras.optimizers.SGD(0.1), {"click": LOSS})
    return model


def sequences(count: int = 20, length: int = 5, rows: int = 7) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, rows - 1, (count, length)).astype("int32")
    ids[:, 3] = ids[:, 0]  # each sample has a repeated id; no sample has the last row
    return {"ids": ids}, {"click": (rng.random((count, 1)) < 0.5).astype("float32")}


def snapshot_at(model: keras.Model, seed: int, holes: bool = True) -> FisherSnapshot:
    """Random weights and precisions, a third of these zero."""
    rng = np.random.default_rng(seed)
    shapes = {variable_path(model, variable): tuple(variable.shape) for variable in model.trainable_variables}
    weights = {path: rng.normal(size=shape).astype("float32") for path, shape in shapes.items()}
    fisher = {path: (rng.random(shape) * (rng.random(shape) > holes / 3)).astype("float32") for path, shape in shapes.items()}
    return FisherSnapshot(weights, fisher, 10)
