"""How the weights of a layer start, are regularised and are held in bounds, as arguments of its constructor."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

KERNELS = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "bias_initializer", "bias_regularizer", "bias_constraint")
TABLES = ("embeddings_initializer", "embeddings_regularizer", "embeddings_constraint")
_KNOWN = {"initializer": keras.initializers, "regularizer": keras.regularizers, "constraint": keras.constraints}


class ForEach(keras.constraints.Constraint):
    """A constraint of each kernel of a stack (M, in, out), as M layers would have it.

    Args:
        constraint: of one kernel, whose axes it names.
    """

    def __init__(self, constraint: Any) -> None:
        self.constraint = constraint

    def get_config(self) -> dict[str, Any]:
        """Keras's hook."""
        return {"constraint": keras.constraints.serialize(self.constraint)}

    def __call__(self, w: Any) -> Any:
        return keras.ops.stack([self.constraint(w[number]) for number in range(w.shape[0])])


class WeightRules:
    """A layer that takes `kernel_initializer`, `kernel_regularizer`, `kernel_constraint` and the like, as `keras.layers.Dense` does.

    The names are in `weight_rules`. Each is an attribute, None or an object of Keras, and stands in the configuration. A layer hands them
    on to its parts: `dense(...)` is a `keras.layers.Dense` with them, `add_kernel` and `add_bias` are weights with them, and
    `rules(kind)` are those that another layer of this package takes. Without an initializer a part starts as it does without this class.
    A constraint is applied by the optimiser after each step, to each kernel by itself, also where several are `stacked` in one weight.
    """

    weight_rules: tuple[str, ...] = KERNELS

    def __init__(self, *args: Any, **settings: Any) -> None:
        given = {name: settings.pop(name, None) for name in self.weight_rules}
        super().__init__(*args, **settings)
        for name, value in given.items():
            setattr(self, name, None if value is None else _known_by(name).get(value))
        self._parts_drawn = 0

    def rules(self, kind: Any, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Arguments for a layer of a class with rules of its own; `only` some of them."""
        takes = kind.weight_rules if only is None else only
        found = {name: getattr(self, name) for name in self.weight_rules if name in takes and getattr(self, name) is not None}
        return {name: self._drawn(value) if name.endswith("initializer") else value for name, value in found.items()}

    def dense(self, units: int, **settings: Any) -> Any:
        """`keras.layers.Dense` with the rules and the dtype policy of this layer; settings that are given are kept."""
        rules = {name: value for name, value in self.rules(None, KERNELS).items() if name not in settings}
        return keras.layers.Dense(units, **{"dtype": self.dtype_policy, **rules, **settings})  # type: ignore[attr-defined]

    def add_kernel(
        self, name: str, shape: Any, initializer: Any = "glorot_uniform", fixed: bool = False, stacked: bool = False, **settings: Any
    ) -> Any:
        """A weight with the rules of kernels; with `fixed`, it starts by this initializer whatever the rule; `stacked`: (M, ...)."""
        rule = None if fixed else getattr(self, "kernel_initializer", None)
        initializer = initializer if rule is None else self._drawn(rule)
        return self._add("kernel", stacked, name=name, shape=shape, initializer=initializer, **settings)

    def add_bias(self, name: str, shape: Any, stacked: bool = False, **settings: Any) -> Any:
        """A weight with the rules of biases."""
        rule = getattr(self, "bias_initializer", None)
        initializer = "zeros" if rule is None else self._drawn(rule)
        return self._add("bias", stacked, name=name, shape=shape, initializer=initializer, **settings)

    def _add(self, kind: str, stacked: bool, **settings: Any) -> Any:
        constraint = getattr(self, f"{kind}_constraint")
        held = ForEach(constraint) if stacked and constraint is not None else constraint
        return self.add_weight(regularizer=getattr(self, f"{kind}_regularizer"), constraint=held, **settings)  # type: ignore[attr-defined]

    def _drawn(self, initializer: Any) -> Any:
        """An initializer for one more part: one object would give every part the same numbers, and so would one seed."""
        if not isinstance(initializer, keras.initializers.Initializer):
            return initializer
        part = self._parts_drawn
        self._parts_drawn = part + 1
        config = initializer.get_config()
        if isinstance(config.get("seed"), int) and part:
            config["seed"] = int(np.random.SeedSequence([config["seed"], part]).generate_state(1)[0] >> 1)
        return type(initializer).from_config(config)

    def get_config(self) -> dict[str, Any]:
        """Keras's hook."""
        own = {name: _written(name, getattr(self, name)) for name in self.weight_rules}
        return {**super().get_config(), **own}  # type: ignore[misc]


def _known_by(name: str) -> Any:
    return _KNOWN[name.rsplit("_", 1)[-1]]


def _written(name: str, value: Any) -> Any:
    return None if value is None else _known_by(name).serialize(value)
