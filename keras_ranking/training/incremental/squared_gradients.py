"""Sums of squared gradients of single samples, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.ops.backends.per_sample import Step, per_sample_step
from keras_ranking.ops.integers import as_tensor
from keras_ranking.training.incremental.layer_gradients import (
    LayerGradient,
    Recorder,
    dense_squares,
    layer_gradients_of,
    row_squares,
    variable_path,
)

_MEMORY = 2**26  # numbers in the gradients of single samples that are in memory at once: 256 MiB
_MOST = 512
# Largest difference between a layer's gradient and the plain one, relative to its norm: mixed precision rounds differently. For a
# weight that is also used outside its layer the difference is larger.
_TOLERANCE = 0.05
_ROUNDING = 1e-4  # relative to the largest gradient's norm


def loss_function(model: Any, loss: Any) -> Callable[[Any, Any, Any], Any]:
    """A function (y, y_pred, sample_weight) -> loss: the compiled loss, or a given loss (or a dict of losses by output)."""
    if loss is None:
        compiled = model._compile_loss
        if compiled is None:
            raise ValueError("`loss` must be given for a model that is not compiled with a loss. Received: loss=None")

        def own(y: Any, y_pred: Any, weight: Any) -> Any:
            auxiliary = getattr(model, "auxiliary_loss", None)  # of a RankingModel, whose further outputs have no separate loss
            outputs = y_pred if auxiliary is None else model.of_tasks(y_pred)
            if auxiliary is not None:
                model.check_targets(y)
            if not compiled.built:
                compiled.build(y, outputs)
            total = compiled(y, outputs, weight)
            return total if auxiliary is None else total + auxiliary(y, y_pred, weight)

        return own
    if isinstance(loss, dict):
        parts = {name: loss_function(model, part) for name, part in loss.items()}

        def summed(y: Any, y_pred: Any, weight: Any) -> Any:
            weights = weight if isinstance(weight, dict) else dict.fromkeys(parts, weight)
            return sum(part(y[name], y_pred[name], weights.get(name)) for name, part in parts.items())

        return summed
    found = keras.losses.get(loss)
    if isinstance(found, keras.losses.Loss):
        return lambda y, y_pred, weight: found(y, y_pred, weight)

    def mean(y: Any, y_pred: Any, weight: Any) -> Any:
        value = found(y, y_pred)
        return ops.mean(
            value if weight is None else value * ops.reshape(ops.cast(weight, value.dtype), (-1,) + (1,) * (len(value.shape) - 1))
        )

    return mean


class Measurement:
    """Adds up (d loss_n / d w)^2 over samples n for all trainable variables, in float64 by path.

    Args:
        model: built.
        loss: see `loss_function`.
        training: of the model's call.
        at_once: samples differentiated at once; None: as many as fit in 256 MiB of gradients, at most 512.
    """

    def __init__(self, model: Any, loss: Any, training: bool, at_once: int | None) -> None:
        self.model, self.training, self.at_once = model, training, at_once
        self.loss = loss_function(model, loss)
        self.variables = list(model.trainable_variables)
        self.paths = {id(variable): variable_path(model, variable) for variable in self.variables}
        self.sums = {self.paths[id(variable)]: np.zeros(tuple(variable.shape)) for variable in self.variables}
        self.samples = 0
        self._layer_gradients: list[LayerGradient] | None = None
        self._vectorized = True
        self._plans: dict[Any, _Plan] = {}

    def add(self, x: Any, y: Any, weight: Any, limit: int | None = None) -> None:
        """Add the samples of a batch with a weight other than zero, at most the first `limit` of them."""
        structure = [x, y, weight]
        flat = [None if leaf is None else _array(leaf) for leaf in keras.tree.flatten(structure)]
        count = len(next(leaf for leaf in flat if leaf is not None))
        counted = np.zeros(count, bool) if weight is not None else np.ones(count, bool)
        for leaf in keras.tree.flatten(weight) if weight is not None else []:
            counted |= True if leaf is None else _array(leaf).reshape(count, -1).any(axis=1)
        chosen = np.flatnonzero(counted)[:limit]
        if not len(chosen):
            return
        if self._layer_gradients is None:
            self._choose(structure, flat, chosen[:1])
        plan = self._plan(structure, flat, self._layer_gradients or [])
        for start in range(0, len(chosen), plan.at_once):
            self._collect(plan, plan.run(flat, chosen[start : start + plan.at_once]))
        self.samples += len(chosen)

    def _collect(self, plan: _Plan, found: tuple[list[Any], list[list[Any]], list[Any]]) -> None:
        squares, dense, rows = found
        for variable, square in zip(plan.values, squares, strict=True):
            self.sums[self.paths[id(variable)]] += ops.convert_to_numpy(square)
        for gradient, parts in zip(plan.dense, dense, strict=True):
            for variable, square in zip(gradient.variables, parts, strict=True):
                self.sums[self.paths[id(variable)]] += ops.convert_to_numpy(square)
        for gradient, (ids, grads) in zip(plan.tables, rows, strict=True):
            table = gradient.variables[0]
            found_rows, square = row_squares(ops.convert_to_numpy(ids), ops.convert_to_numpy(grads), table.shape[0])
            self.sums[self.paths[id(table)]][found_rows] += square

    def _plan(self, structure: Any, flat: list[Any], layer_gradients: list[LayerGradient]) -> _Plan:
        signature = tuple(None if leaf is None else (leaf.shape[1:], leaf.dtype.str) for leaf in flat)
        if signature not in self._plans:
            self._plans[signature] = _Plan(self, structure, flat, layer_gradients, self._vectorized)
        return self._plans[signature]

    def _choose(self, structure: Any, flat: list[Any], first: np.ndarray) -> None:
        """Choose the fastest method whose gradient of the first sample equals that of plain differentiation."""
        plain = _Plan(self, structure, flat, [], vectorized=False)
        squares, _, _ = plain.run(flat, first)  # raises an error if data or loss are invalid
        plain_gradients = {
            self.paths[id(variable)]: np.sqrt(ops.convert_to_numpy(part)) for variable, part in zip(plain.values, squares, strict=True)
        }
        largest = max(float(np.linalg.norm(part)) for part in plain_gradients.values())
        layer_gradients, reasons = layer_gradients_of(self.model), []
        for use_layers, vectorized in ((True, True), (True, False), (False, True), (False, False)):
            self._vectorized, self._plans = vectorized, {}
            kept_layers = layer_gradients if use_layers else []
            while True:
                empty = {path: np.zeros_like(value) for path, value in self.sums.items()}
                try:
                    plan = self._plan(structure, flat, kept_layers)
                    found = plan.run(flat, first)
                except Exception as error:  # backends raise many kinds of errors for what they cannot vectorise
                    reasons.append(_short(error))
                    break
                kept, self.sums = self.sums, empty
                self._collect(plan, found)
                measured, self.sums = self.sums, kept
                wrong = {path for path, square in measured.items() if _differ(np.sqrt(square), plain_gradients[path], largest)}
                wrong_layers = [
                    gradient for gradient in kept_layers if any(self.paths[id(variable)] in wrong for variable in gradient.variables)
                ]
                if wrong and not wrong_layers:
                    reasons.append(f"different gradients of {sorted(wrong)}")
                    break
                if not wrong:
                    if reasons:
                        way = "vectorised" if vectorized else "one sample at a time"
                        warnings.warn(f"per-sample gradients are computed {way}, which is slower: {reasons[0]}", stacklevel=4)
                    self._layer_gradients = kept_layers
                    return
                # For example a table that is also used in a product elsewhere: it gets plain differentiation.
                kept_layers, self._plans = [gradient for gradient in kept_layers if gradient not in wrong_layers], {}
        raise RuntimeError(f"per-sample gradients disagree with plain ones: {'; '.join(reasons)}")


def _differ(found: np.ndarray, expected: np.ndarray, largest: float) -> bool:
    # A gradient that cancels to almost 0, such as that of a query with one key, is rounding error alone.
    return bool(np.linalg.norm(found - expected) > _TOLERANCE * np.linalg.norm(expected) + _ROUNDING * largest)


def _short(error: Exception) -> str:
    """An error of a backend, which may have many lines, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("in user code", "File ", "Exception encountered"))]
    return f"{type(error).__name__}: {telling[0] if telling else ''}"[:200]


def _array(leaf: Any) -> np.ndarray:
    array = ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


class _Plan:
    """The compiled step for samples of one shape."""

    def __init__(self, owner: Measurement, structure: Any, flat: list[Any], layer_gradients: list[LayerGradient], vectorized: bool) -> None:
        model, training, loss = owner.model, owner.training, owner.loss
        of_layers = {id(variable) for gradient in layer_gradients for variable in gradient.variables}
        self.values = [variable for variable in owner.variables if id(variable) not in of_layers]
        self.fixed = [variable for gradient in layer_gradients for variable in gradient.variables] + list(model.non_trainable_variables)
        self.given = [leaf is not None for leaf in flat]
        recorder = Recorder(layer_gradients)

        def run_model(values: list[Any], offsets: list[Any] | None, fixed: list[Any], samples: list[Any]) -> Any:
            parts = iter(samples)
            x, y, weight = keras.tree.pack_sequence_as(structure, [next(parts) if given else None for given in self.given])
            mapping = list(zip([*self.values, *self.fixed], [*values, *fixed], strict=True))
            with keras.StatelessScope(state_mapping=mapping), recorder.active(offsets):
                y_pred = model(x, training=training) if model._call_has_training_arg else model(x)
                return loss(y, y_pred, weight)

        def one(values: list[Any], offsets: list[Any], fixed: list[Any], sample: list[Any]) -> tuple[Any, list[Any]]:
            value = run_model(values, offsets, fixed, [ops.expand_dims(part, 0) for part in sample])
            return ops.sum(ops.cast(value, "float32")), [inputs for _, inputs, _ in recorder.calls]

        # One plain call records the order and shapes of the calls, and builds what is built on first use.
        first = [as_tensor(leaf[:1]) for leaf in flat if leaf is not None]
        run_model([v.value for v in self.values], None, [v.value for v in self.fixed], first)
        calls = recorder.calls
        self.offsets = [ops.zeros(shape, dtype="float32") for _, _, shape in calls]
        used = [gradient for gradient in layer_gradients if any(call[0] is gradient for call in calls)]
        self.tables = [gradient for gradient in used if gradient.embedding]
        self.dense = [gradient for gradient in used if not gradient.embedding]
        places = {id(gradient): [i for i, call in enumerate(calls) if call[0] is gradient] for gradient in used}

        def reduce(by_value: list[Any], by_offset: list[Any], inputs: list[Any], counted: Any) -> Any:
            def keep(part: Any) -> Any:
                shape = (-1,) + (1,) * (len(part.shape) - 1)
                return ops.where(ops.reshape(counted, shape), part, ops.zeros_like(part))

            squares = [ops.sum(ops.square(keep(part)), axis=0) for part in by_value]
            grads, inputs = [keep(part) for part in by_offset], [keep(part) for part in inputs]
            dense = [
                dense_squares(gradient, [inputs[i] for i in places[id(gradient)]], [grads[i] for i in places[id(gradient)]])
                for gradient in self.dense
            ]
            rows = []
            for gradient in self.tables:
                at, dim = places[id(gradient)], gradient.variables[0].shape[1]
                ids = ops.concatenate([ops.cast(ops.reshape(inputs[i], (inputs[i].shape[0], -1)), "int32") for i in at], axis=1)
                g = ops.concatenate([ops.reshape(grads[i], (grads[i].shape[0], -1, dim)) for i in at], axis=1)
                rows.append((ids, g))
            return squares, dense, rows

        self.step: Step = per_sample_step(one, reduce, vectorized)
        held = sum(int(np.prod(variable.shape)) for variable in self.values) + sum(int(np.prod(offset.shape)) for offset in self.offsets)
        held += sum(int(np.prod(gradient.variables[0].shape)) for gradient in self.dense if _positions(gradient, calls) > 1)
        self.at_once = (owner.at_once or min(_MOST, max(1, _MEMORY // max(held, 1)))) if vectorized else 1

    def run(self, flat: list[Any], chosen: np.ndarray) -> Any:
        """The sums of the chosen samples. They are padded with the first one, which is not counted, so that shapes are constant."""
        index = np.concatenate([chosen, np.full(self.at_once - len(chosen), chosen[0])])
        samples = [as_tensor(leaf[index]) for leaf in flat if leaf is not None]
        counted = as_tensor(np.arange(self.at_once) < len(chosen))
        values, fixed = ([ops.convert_to_tensor(v.value) for v in part] for part in (self.values, self.fixed))
        return self.step(values, self.offsets, fixed, samples, counted)


def _positions(gradient: LayerGradient, calls: list[Any]) -> int:
    return sum(int(np.prod(shape[1:-1], dtype=int)) for found, _, shape in calls if found is gradient)
