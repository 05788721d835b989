"""Snapshots of a trained model: its weights and their diagonal Fisher information."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking.training.incremental.layer_gradients import embedding_tables, variable_path
from keras_ranking.training.incremental.squared_gradients import Measurement

_FORMAT = 1
PREVIOUS, COLD = "fisher.npz", "fisher_cold.npz"  # files of a run after a daily step with a penalty
SNAPSHOTS = (PREVIOUS, COLD)


@dataclass(frozen=True)
class FisherSnapshot:
    """Weights and their diagonal empirical Fisher information, by variable path (without the model's own name).

        F_i = 1/N sum_n ( d log p(y_n | x_n, w) / d w_i )^2

    Gradients are those of single samples and true labels: squares of minibatch gradients would underestimate F by about the
    batch size. A sample is one entry of the batch axis (of packed rows: a row), -log p its own loss, as `model.compile` defines
    it for a batch of that sample alone, without regularisers. N counts samples with a weight other than zero.

    LiRank (2402.06859) approximates the diagonal of the Hessian by the empirical Fisher (stated). The samples, and whether it is
    accumulated from day to day, are not stated: `samples` and `accumulate` are our choice.

    Attributes:
        weights: float32 by path, trainable variables only.
        fisher: float32 by path, of the same shapes, not negative.
        samples: N.

    Raises:
        ValueError: other paths or shapes in `fisher` than in `weights`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="d")])
        >>> model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
        >>> x, y = np.array([[1.0, 0.0], [2.0, 4.0]], "float32"), np.array([[1.0], [0.0]], "float32")
        >>> kr.training.FisherSnapshot.measure(model, [(x, y)]).fisher["d/kernel"].tolist()  # p = 1/2: means of (x / 2)^2
        [[0.625], [2.0]]
    """

    weights: dict[str, np.ndarray]
    fisher: dict[str, np.ndarray]
    samples: int

    def __post_init__(self) -> None:
        shapes = [{path: np.shape(array) for path, array in part.items()} for part in (self.weights, self.fisher)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"`fisher` must have the paths and shapes of `weights`, {shapes[0]}. Received: {shapes[1]}")

    @classmethod
    def measure(
        cls,
        model: Any,
        dataset: Any,
        loss: Any = None,
        samples: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        training: bool = False,
    ) -> FisherSnapshot:
        """The snapshot of a model on the data it was trained on.

        The gradients of all samples of a batch are computed at once if the backend can vectorise the model, otherwise one by one
        with a warning. `Embedding` and `Dense` layers are differentiated at their outputs: no array (samples, rows,
        D) is made, and the cost of a table does not depend on its rows. The result for the first sample with a weight is compared
        with plain differentiation; a layer whose weights are also used elsewhere is then differentiated plainly. (A use without a
        gradient for this sample is not detected.)

        Args:
            model: built; its weights and other state do not change.
            dataset: a `PyDataset`, a `tf.data.Dataset` or any iterable of batches `(x, y)` or `(x, y, sample_weight)`, nested as
                for `fit`. It must be finite.
            loss: what `compile` takes for one output, or a dict of these by output; None: the compiled loss.
            samples: largest number of samples; None: all.
            seed: of the order of the batches of a `PyDataset` if `samples` is given.
            batch_size: samples differentiated at once; None: as many as 256 MiB of gradients hold, at most 512.
            training: call the model in training mode. BatchNormalization then sees batches of one.

        Raises:
            ValueError: no loss, no sample with a weight, a model that is not built or has two variables of one path, or a gradient
                that is not finite.
        """
        for name, value in (("samples", samples), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be a positive integer or None. Received: {name}={value}")
        weights = trainable_weights(model)
        found = Measurement(model, loss, training, batch_size)
        for batch in _batches(dataset, None if samples is None else seed):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            found.add(x, y, weight, limit=None if samples is None else samples - found.samples)
            if samples is not None and found.samples >= samples:
                break
        if not found.samples:
            raise ValueError("`dataset` must hold at least one sample with a weight other than zero. Received: none")
        for path, total in found.sums.items():
            if not np.isfinite(total).all():
                raise ValueError(f"the gradient of '{path}' is not finite on some sample of `dataset`.")
        fisher = {path: (total / found.samples).astype(np.float32) for path, total in found.sums.items()}
        return cls(weights, fisher, found.samples)

    def accumulate(self, previous: FisherSnapshot, decay: float) -> FisherSnapshot:
        """These weights with F_t = F(D_t) + decay F_{t-1}: Bayes' rule for data that arrives in parts (our reading).

        With the mean loss of N samples per day, the day k days ago has weight decay^k; with decay = 1 all days have equal weights.

        Raises:
            ValueError: `decay` below 0 or not finite, or a variable of `previous` that is missing here or of another width.
        """
        if not (math.isfinite(decay) and decay >= 0):
            raise ValueError(f"`decay` must be a finite number, at least 0. Received: decay={decay}")
        fisher = dict(self.fisher)
        for path, old in previous.fisher.items():
            if path not in fisher:
                raise ValueError(f"the snapshot has no variable '{path}', which the previous one has. It has: {sorted(fisher)}")
            new = fisher[path]
            if old.shape[1:] != new.shape[1:] or old.ndim != new.ndim or (old.ndim and len(old) > len(new)):
                raise ValueError(f"variable '{path}' is {new.shape}, and was {old.shape} in the previous snapshot.")
            fisher[path] = (new + decay * grown(old, new.shape)).astype(np.float32)
        return FisherSnapshot(self.weights, fisher, self.samples)

    def save(self, path: str | Path) -> None:
        """Write one `.npz` file; nothing in it is pickled."""
        arrays = {f"weights/{name}": array for name, array in self.weights.items()}
        arrays |= {f"fisher/{name}": array for name, array in self.fisher.items()}
        with Path(path).open("wb") as file:  # an open file: `savez` would append .npz to another name
            np.savez(file, format=np.int64(_FORMAT), samples=np.int64(self.samples), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> FisherSnapshot:
        """Read what `save` wrote.

        Raises:
            ValueError: another file, or one of another format.
        """
        with np.load(path, allow_pickle=False) as file:
            if "format" not in file or int(file["format"]) != _FORMAT:
                raise ValueError(f"`{path}` must be a snapshot of format {_FORMAT}. Received: {sorted(file)[:5]}")
            weights, fisher = (
                {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)} for prefix in ("weights/", "fisher/")
            )
            return cls(weights, fisher, int(file["samples"]))

    def check(self, model: Any) -> None:
        """Raise unless every variable here is one of the model's, of its shape; an `Embedding` may have more rows in the model.

        Variables and rows of the model alone are new: they are neither penalised nor initialised.

        Raises:
            ValueError: the variable, and what the model has.
        """
        variables = {variable_path(model, variable): tuple(variable.shape) for variable in model.trainable_variables}
        tables = {variable_path(model, table) for table in embedding_tables(model).values()}
        unknown = sorted(set(variables) - set(self.weights))
        for path, array in self.weights.items():
            if path not in variables:
                raise ValueError(
                    f"the snapshot has a variable '{path}' that the model does not have; the snapshot has no variable for {unknown}; "
                    f"the model has {sorted(variables)}"
                )
            shape = variables[path]
            rows_added = path in tables and array.shape[1:] == shape[1:] and len(array) <= shape[0]
            if array.shape != shape and not rows_added:
                raise ValueError(f"variable '{path}' is {shape} in the model and {array.shape} in the snapshot; only tables may grow.")


def grown(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` with rows of zeros added up to `shape`."""
    return array if array.shape == shape else np.pad(array, [(0, shape[0] - len(array))] + [(0, 0)] * (array.ndim - 1))


def trainable_weights(model: Any) -> dict[str, np.ndarray]:
    """Float32 copies of the trainable variables by path.

    Raises:
        ValueError: a model that is not built, or two variables of one path.
    """
    if not model.built:
        raise ValueError(f"`model` must be built: call it on a batch first. Received: {model.name}")
    weights: dict[str, np.ndarray] = {}
    for variable in model.trainable_variables:
        path = variable_path(model, variable)
        if path in weights:
            raise ValueError(f"two trainable variables of the model have the path '{path}'; give their layers names.")
        weights[path] = np.array(keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32")))
    return weights


def _batches(dataset: Any, seed: int | None) -> Iterator[Any]:
    if not isinstance(dataset, keras.utils.PyDataset):
        yield from dataset
        return
    order = np.arange(dataset.num_batches or len(dataset))
    for index in order if seed is None else np.random.default_rng(seed).permutation(order):
        yield dataset[int(index)]
