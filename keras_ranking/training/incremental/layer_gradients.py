"""Weight gradients of single samples from the gradient at a layer's output, without an array (samples, weights).

Zeros are added to a layer's output. The gradient g of the loss by these zeros and the layer's input a give the gradient by the
weights: for an `Embedding` the sum of g over the positions with the row's id, for a `Dense` a^T g.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

_MISSING = object()


@contextlib.contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of this instance inside a block, without Keras's attribute tracking."""
    before = {name: vars(owner).get(name, _MISSING) for name in attributes}
    vars(owner).update(attributes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _MISSING:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value


def layers_of(model: Any) -> list[Any]:
    """All layers of a model, without repetition."""
    return list({id(layer): layer for layer in model._flatten_layers(include_self=False)}.values())


def variable_path(model: Any, variable: Any) -> str:
    """Path of a variable without the model's name, whose number increases when a model is made again."""
    return str(variable.path).removeprefix(f"{model.name}/")


def embedding_tables(model: Any) -> dict[Any, Any]:
    """The trainable table of each `Embedding` layer.

    A subclass with its own `call` may use its table in another way: it is not included.
    """
    trainable = {id(variable) for variable in model.trainable_variables}
    found = {}
    for layer in layers_of(model):
        plain = type(layer).call is keras.layers.Embedding.call or getattr(layer, "looks_up_rows", False)
        if plain and layer.built and not layer.lora_enabled and id(layer.embeddings) in trainable:
            found[layer] = layer.embeddings
    return found


class LayerGradient:
    """A layer whose weight gradients are computed from the gradient at its output."""

    def __init__(self, layer: Any, variables: list[Any]) -> None:
        self.layer, self.variables = layer, variables
        self.embedding = isinstance(layer, keras.layers.Embedding)


def layer_gradients_of(model: Any) -> list[LayerGradient]:
    """One entry for each embedding, and for each plain `Dense` layer with trainable weights only."""
    layer_gradients = [LayerGradient(layer, [table]) for layer, table in embedding_tables(model).items()]
    trainable = {id(variable) for variable in model.trainable_variables}
    for layer in layers_of(model):
        if type(layer) is keras.layers.Dense and layer.built and not layer.lora_enabled and layer.quantization_mode is None:
            variables = list(layer.weights)
            if all(id(variable) in trainable for variable in variables):
                layer_gradients.append(LayerGradient(layer, variables))
    return layer_gradients


class Recorder:
    """Records inputs and output shapes of these layers, in the order of their calls, while a model runs inside `active`."""

    def __init__(self, layer_gradients: list[LayerGradient]) -> None:
        self.layer_gradients = layer_gradients
        self.offsets: list[Any] | None = None
        self.calls: list[tuple[LayerGradient, Any, tuple[int, ...]]] = []

    @contextlib.contextmanager
    def active(self, offsets: list[Any] | None) -> Iterator[None]:
        """`offsets` are added to the outputs of the calls, in their order; None: nothing is added."""
        self.offsets, self.calls = offsets, []
        with contextlib.ExitStack() as stack:
            for gradient in self.layer_gradients:
                stack.enter_context(self._watched(gradient))
            yield

    def _add(self, outputs: Any) -> Any:
        gradient, inputs, _ = self.calls[-1]
        self.calls[-1] = (gradient, inputs, tuple(outputs.shape))
        return outputs if self.offsets is None else outputs + ops.cast(self.offsets[len(self.calls) - 1], outputs.dtype)

    def _watched(self, gradient: LayerGradient) -> contextlib.AbstractContextManager[None]:
        layer, call = gradient.layer, gradient.layer.call

        def watched(inputs: Any, *args: Any, **settings: Any) -> Any:
            self.calls.append((gradient, inputs, ()))
            outputs = call(inputs, *args, **settings)
            return self._add(outputs) if gradient.embedding else outputs

        if gradient.embedding:
            return replaced(layer, call=watched)
        activation = layer.activation
        # The gradient by the weights needs the gradient before the activation.
        return replaced(layer, call=watched, activation=lambda x: activation(self._add(x)))


def dense_squares(gradient: LayerGradient, inputs: list[Any], grads: list[Any]) -> list[Any]:
    """Sum over samples of the squared gradients of a `Dense` layer's weights, from its inputs and g of all its calls."""
    a = ops.concatenate([ops.reshape(part, (part.shape[0], -1, part.shape[-1])) for part in inputs], axis=1)
    g = ops.concatenate([ops.reshape(part, (part.shape[0], -1, part.shape[-1])) for part in grads], axis=1)
    a, g = ops.cast(a, "float32"), ops.cast(g, "float32")
    if a.shape[1] == 1:  # one position a sample: (a g)^2 = a^2 g^2, and the sum over samples is a product of matrices
        kernel = ops.matmul(ops.transpose(ops.square(a[:, 0])), ops.square(g[:, 0]))
    else:
        kernel = ops.sum(ops.square(ops.matmul(ops.transpose(a, (0, 2, 1)), g)), axis=0)
    return [kernel, ops.sum(ops.square(ops.sum(g, axis=1)), axis=0)][: len(gradient.variables)]


def row_squares(ids: np.ndarray, grads: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared gradients of a table's rows, summed over samples.

    A row's gradient in a sample is the sum over the positions that look it up; it is squared after that sum.

    Args:
        ids: (N, T) integers; negative ones count from the end, as in `keras.ops.take`.
        grads: (N, T, D) of the looked-up vectors.
        rows: of the table.

    Returns:
        (U,) rows, each once, and float64 (U, D).

    Raises:
        ValueError: an id outside the table.
    """
    samples, positions = ids.shape
    row = np.where(ids < 0, ids + rows, ids).reshape(-1).astype(np.int64)
    grads = grads.reshape(len(row), -1)
    used = grads.any(axis=1)  # neither padding nor samples with weight 0
    row, grads, sample = row[used], grads[used], np.repeat(np.arange(samples), positions)[used]
    if not len(row):
        return row, np.zeros((0, grads.shape[1]))
    if row.min() < 0 or row.max() >= rows:
        raise ValueError(f"ids must be below the number of rows of the table, {rows}. Received: {row.min()} to {row.max()}")
    order = np.lexsort((sample, row))
    row, sample, grads = row[order], sample[order], grads[order].astype(np.float64)
    new_row = np.r_[True, row[1:] != row[:-1]]
    pair = np.flatnonzero(new_row | np.r_[True, sample[1:] != sample[:-1]])
    squared = np.square(np.add.reduceat(grads, pair, axis=0))
    first = np.flatnonzero(new_row[pair])
    return row[pair][first], np.add.reduceat(squared, first, axis=0)
