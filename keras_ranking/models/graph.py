"""Functional models that check their integer inputs before Keras casts them, and that an error in a first step leaves as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_ranking.ops.whole import whole_numbers


class WholeModelInputs:
    """A functional model whose integer inputs (times, ids, lengths) are refused as floats, and beyond int32.

    Keras casts what it is given to the type of the input: float32 times lose up to 64 seconds, and int64 wraps.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._whole(inputs), *args, **kwargs)  # type: ignore[misc]

    # What JAX's `fit` and `predict` run. By its named arguments Keras knows that the model tells training from inference.
    def call(self, inputs: Any, training: bool | None = None, mask: Any = None, **settings: Any) -> Any:
        return super().call(self._whole(inputs), training=training, mask=mask, **settings)  # type: ignore[misc]

    # Arrays are read here: JAX cuts int64 before a compiled step, and in one of TensorFlow no value can be read.

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`."""
        args, kwargs = self._arrays(args, kwargs)
        held = kwargs.get("validation_data")
        if isinstance(held, tuple) and held:
            kwargs["validation_data"] = (self._whole(held[0]), *held[1:])
        return super().fit(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`."""
        args, kwargs = self._arrays(args, kwargs)
        return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`."""
        args, kwargs = self._arrays(args, kwargs)
        return super().predict(*args, **kwargs)  # type: ignore[misc]

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`."""
        args, kwargs = self._arrays(args, kwargs)
        return super().train_on_batch(*args, **kwargs)  # type: ignore[misc]

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`."""
        args, kwargs = self._arrays(args, kwargs)
        return super().test_on_batch(*args, **kwargs)  # type: ignore[misc]

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict_on_batch`."""
        args, kwargs = self._arrays(args, kwargs)
        return super().predict_on_batch(*args, **kwargs)  # type: ignore[misc]

    def _arrays(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a method whose first one is `x`."""
        if args:
            return (self._whole(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "x": self._whole(kwargs["x"])} if "x" in kwargs else kwargs

    def _whole(self, inputs: Any) -> Any:
        if not isinstance(inputs, Mapping):
            return inputs
        declared = self.input  # type: ignore[attr-defined]
        return {name: _checked(name, value, declared) for name, value in inputs.items()}


class KeepsWeights:
    """A model that still has its weights after an error in `fit`, `evaluate` or `predict`.

    On JAX, Keras takes the arrays out of the variables for the time of the call. It puts back what the last step returned, which is
    nothing if the first one fails, for example because of wrong targets.
    """

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`."""
        with self._kept():
            return super().fit(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`."""
        with self._kept():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`."""
        with self._kept():
            return super().predict(*args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        optimizer = getattr(self, "optimizer", None)
        variables = [*self.variables, *(optimizer.variables if optimizer else ())]  # type: ignore[attr-defined]
        held = [(variable, variable._value) for variable in variables if keras.backend.backend() == "jax"]
        try:
            yield
        except BaseException:
            for variable, value in held:
                if variable._value is None:
                    variable._value = value
            # TensorFlow would run on in the program whose first trace failed.
            self.train_function = self.test_function = self.predict_function = None
            raise


@keras.saving.register_keras_serializable(package="keras_ranking")
class Graph(WholeModelInputs, KeepsWeights, keras.Model):
    """A functional `keras.Model` over layers of a `RankingModel`, such as its `serving_model`."""


def _checked(name: str, value: Any, declared: Any) -> Any:
    if not isinstance(declared, Mapping) or name not in declared or declared[name].dtype != "int32":
        return value
    if isinstance(value, np.ndarray) and value.dtype == bool:  # labels of earlier events
        return value
    return whole_numbers(value, name)
