"""Sums over samples of squared per-sample gradients, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.ops.backends.per_sample import Step, per_sample_step
from keras_ranking.training.incremental.layer_gradients import Recorder, Tap, dense_squares, row_squares, taps_of, variable_path

_MEMORY = 2**26  # numbers in the per-sample gradients that are held at once: 256 MiB
_MOST = 512
# What a tapped gradient may differ from the plain one, of its norm: mixed precision rounds elsewhere. A weight with a second use
# outside its layer, which the tap misses, is further off.
_TRUSTED = 0.05
_ROUNDING = 1e-4  # of the largest gradient's norm


def loss_function(model: Any, loss: Any) -> Callable[[Any, Any, Any], Any]:
    """(y, y_pred, sample_weight) -> loss: what the model was compiled with, or a loss (or a dict of losses by output)."""
    if loss is None:
        compiled = model._compile_loss
        if compiled is None:
            raise ValueError("`loss` must be given for a model that is not compiled with a loss. Received: loss=None")

        def own(y: Any, y_pred: Any, weight: Any) -> Any:
            auxiliary = getattr(model, "auxiliary_loss", None)  # of a RankingModel, whose further outputs have no loss of their own
            outputs = y_pred if auxiliary is None else model.of_tasks(y_pred)
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
        self._taps: list[Tap] | None = None
        self._vectorized = True
        self._plans: dict[Any, _Plan] = {}

    def add(self, x: Any, y: Any, weight: Any, limit: int | None = None) -> None:
        """Add the samples of a batch, at most the first `limit` that count (a weight that is not zero)."""
        structure = [x, y, weight]
        flat = [None if leaf is None else _array(leaf) for leaf in keras.tree.flatten(structure)]
        count = len(next(leaf for leaf in flat if leaf is not None))
        counted = np.zeros(count, bool) if weight is not None else np.ones(count, bool)
        for leaf in keras.tree.flatten(weight) if weight is not None else []:
            counted |= True if leaf is None else _array(leaf).reshape(count, -1).any(axis=1)
        chosen = np.flatnonzero(counted)[:limit]
        if not len(chosen):
            return
        if self._taps is None:
            self._choose(structure, flat, chosen[:1])
        plan = self._plan(structure, flat, self._taps or [])
        for start in range(0, len(chosen), plan.at_once):
            self._collect(plan, plan.run(flat, chosen[start : start + plan.at_once]))
        self.samples += len(chosen)

    def _collect(self, plan: _Plan, found: tuple[list[Any], list[list[Any]], list[Any]]) -> None:
        squares, dense, rows = found
        for variable, square in zip(plan.values, squares, strict=True):
            self.sums[self.paths[id(variable)]] += ops.convert_to_numpy(square)
        for tap, parts in zip(plan.dense, dense, strict=True):
            for variable, square in zip(tap.variables, parts, strict=True):
                self.sums[self.paths[id(variable)]] += ops.convert_to_numpy(square)
        for tap, (ids, grads) in zip(plan.tables, rows, strict=True):
            table = tap.variables[0]
            found_rows, square = row_squares(ops.convert_to_numpy(ids), ops.convert_to_numpy(grads), table.shape[0])
            self.sums[self.paths[id(table)]][found_rows] += square

    def _plan(self, structure: Any, flat: list[Any], taps: list[Tap]) -> _Plan:
        signature = tuple(None if leaf is None else (leaf.shape[1:], leaf.dtype.str) for leaf in flat)
        if signature not in self._plans:
            self._plans[signature] = _Plan(self, structure, flat, taps, self._vectorized)
        return self._plans[signature]

    def _choose(self, structure: Any, flat: list[Any], first: np.ndarray) -> None:
        """The fastest way that gives the first sample's gradient, as plain differentiation of that sample does."""
        plain = _Plan(self, structure, flat, [], vectorized=False)
        squares, _, _ = plain.run(flat, first)  # what is wrong with the data or the loss shows here
        truth = {
            self.paths[id(variable)]: np.sqrt(ops.convert_to_numpy(part)) for variable, part in zip(plain.values, squares, strict=True)
        }
        largest = max(float(np.linalg.norm(part)) for part in truth.values())
        taps, reasons = taps_of(self.model), []
        for use_taps, vectorized in ((True, True), (True, False), (False, True), (False, False)):
            self._vectorized, self._plans = vectorized, {}
            trusted = taps if use_taps else []
            while True:
                empty = {path: np.zeros_like(value) for path, value in self.sums.items()}
                try:
                    plan = self._plan(structure, flat, trusted)
                    found = plan.run(flat, first)
                except Exception as error:  # what a backend cannot vectorise it refuses in many ways
                    reasons.append(_short(error))
                    break
                kept, self.sums = self.sums, empty
                self._collect(plan, found)
                measured, self.sums = self.sums, kept
                wrong = {path for path, square in measured.items() if _apart(np.sqrt(square), truth[path], largest)}
                doubted = [tap for tap in trusted if any(self.paths[id(variable)] in wrong for variable in tap.variables)]
                if wrong and not doubted:
                    reasons.append(f"other gradients of {sorted(wrong)}")
                    break
                if not wrong:
                    if reasons:
                        way = "vectorised" if vectorized else "one sample at a time"
                        warnings.warn(f"per-sample gradients are taken {way}, which is slower: {reasons[0]}", stacklevel=4)
                    self._taps = trusted
                    return
                # Such as a table that is multiplied with somewhere else as well: differentiated like any other weight.
                trusted, self._plans = [tap for tap in trusted if tap not in doubted], {}
        raise RuntimeError(f"per-sample gradients disagree with plain ones: {'; '.join(reasons)}")


def _apart(found: np.ndarray, truth: np.ndarray, largest: float) -> bool:
    # A gradient that cancels to next to nothing, such as a query's where there is one key, is rounding alone.
    return bool(np.linalg.norm(found - truth) > _TRUSTED * np.linalg.norm(truth) + _ROUNDING * largest)


def _short(error: Exception) -> str:
    """What went wrong, in one line of the many that backends write."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("in user code", "File ", "Exception encountered"))]
    return f"{type(error).__name__}: {telling[0] if telling else ''}"[:200]


def _array(leaf: Any) -> np.ndarray:
    array = ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


class _Plan:
    """The compiled step for samples of one shape."""

    def __init__(self, owner: Measurement, structure: Any, flat: list[Any], taps: list[Tap], vectorized: bool) -> None:
        model, training, loss = owner.model, owner.training, owner.loss
        tapped = {id(variable) for tap in taps for variable in tap.variables}
        self.values = [variable for variable in owner.variables if id(variable) not in tapped]
        self.fixed = [variable for tap in taps for variable in tap.variables] + list(model.non_trainable_variables)
        self.given = [leaf is not None for leaf in flat]
        recorder = Recorder(taps)

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

        # Once as it is: to learn the order and shapes of the calls, and to build what is built on first use.
        first = [ops.convert_to_tensor(leaf[:1]) for leaf in flat if leaf is not None]
        run_model([v.value for v in self.values], None, [v.value for v in self.fixed], first)
        calls = recorder.calls
        self.offsets = [ops.zeros(shape, dtype="float32") for _, _, shape in calls]
        used = [tap for tap in taps if any(call[0] is tap for call in calls)]
        self.tables = [tap for tap in used if tap.embedding]
        self.dense = [tap for tap in used if not tap.embedding]
        places = {id(tap): [i for i, call in enumerate(calls) if call[0] is tap] for tap in used}

        def reduce(by_value: list[Any], by_offset: list[Any], inputs: list[Any], counted: Any) -> Any:
            def keep(part: Any) -> Any:
                shape = (-1,) + (1,) * (len(part.shape) - 1)
                return ops.where(ops.reshape(counted, shape), part, ops.zeros_like(part))

            squares = [ops.sum(ops.square(keep(part)), axis=0) for part in by_value]
            grads, inputs = [keep(part) for part in by_offset], [keep(part) for part in inputs]
            dense = [dense_squares(tap, [inputs[i] for i in places[id(tap)]], [grads[i] for i in places[id(tap)]]) for tap in self.dense]
            rows = []
            for tap in self.tables:
                at, dim = places[id(tap)], tap.variables[0].shape[1]
                ids = ops.concatenate([ops.cast(ops.reshape(inputs[i], (inputs[i].shape[0], -1)), "int32") for i in at], axis=1)
                g = ops.concatenate([ops.reshape(grads[i], (grads[i].shape[0], -1, dim)) for i in at], axis=1)
                rows.append((ids, g))
            return squares, dense, rows

        self.step: Step = per_sample_step(one, reduce, vectorized)
        held = sum(int(np.prod(variable.shape)) for variable in self.values) + sum(int(np.prod(offset.shape)) for offset in self.offsets)
        held += sum(int(np.prod(tap.variables[0].shape)) for tap in self.dense if _positions(tap, calls) > 1)
        self.at_once = (owner.at_once or min(_MOST, max(1, _MEMORY // max(held, 1)))) if vectorized else 1

    def run(self, flat: list[Any], chosen: np.ndarray) -> Any:
        """What `reduce` keeps of the chosen samples. Filled up with the first one, which then does not count: one shape."""
        index = np.concatenate([chosen, np.full(self.at_once - len(chosen), chosen[0])])
        samples = [ops.convert_to_tensor(leaf[index]) for leaf in flat if leaf is not None]
        counted = ops.convert_to_tensor(np.arange(self.at_once) < len(chosen))
        values, fixed = ([ops.convert_to_tensor(v.value) for v in part] for part in (self.values, self.fixed))
        return self.step(values, self.offsets, fixed, samples, counted)


def _positions(tap: Tap, calls: list[Any]) -> int:
    return sum(int(np.prod(shape[1:-1], dtype=int)) for found, _, shape in calls if found is tap)
