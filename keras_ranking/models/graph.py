"""Functional models that check what they are given before a step computes with it, and that an error leaves as they were."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import keras
from keras import tree
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.array_data_adapter import can_convert_arrays
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from keras_ranking.ops.integers import as_tensor
from keras_ranking.ops.whole import whole_numbers

# (x, y, sample_weight) -> x, as whole numbers.
Check = Callable[[Any, Any, Any], Any]
_WIDE = ("int64", "uint32", "uint64")


class CheckedModel:
    """A functional model whose batches are checked before a step computes with them, and that an error leaves its weights.

    Integer inputs (times, ids, lengths) are refused as floats, and beyond int32: Keras casts what it is given to the type of the
    input, by which float32 times lose up to 64 seconds and int64 wraps.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self.whole(inputs), *args, **kwargs)  # type: ignore[misc]

    # What JAX's `fit` and `predict` run. By its named arguments Keras knows that the model tells training from inference.
    def call(self, inputs: Any, training: bool | None = None, mask: Any = None, **settings: Any) -> Any:
        return super().call(self.whole(inputs), training=training, mask=mask, **settings)  # type: ignore[misc]

    # Numbers are read here: JAX cuts int64 before a compiled step, and in one of TensorFlow no value can be read.

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; each batch is checked before its step."""
        return self._checked(super().fit, self.check_batch, args, kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; each batch is checked before its step."""
        return self._checked(super().evaluate, self.check_batch, args, kwargs)  # type: ignore[misc]

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; the batch is checked first."""
        return self._checked(super().train_on_batch, self.check_batch, args, kwargs)  # type: ignore[misc]

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`; the batch is checked first."""
        return self._checked(super().test_on_batch, self.check_batch, args, kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`; the inputs of each batch are checked before its step."""
        return self._checked(super().predict, self.check_inputs, args, kwargs)  # type: ignore[misc]

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict_on_batch`; the inputs are checked first."""
        return self._checked(super().predict_on_batch, self.check_inputs, args, kwargs)  # type: ignore[misc]

    def check_inputs(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """The inputs, as int32 where the model declares that."""
        return self.whole(x)

    def check_batch(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """The inputs as `check_inputs` gives them; a subclass also checks targets and weights."""
        return self.whole(x)

    def whole(self, inputs: Any) -> Any:
        """Named inputs, as int32 where the model declares that.

        Raises:
            ValueError: floats there, or a value beyond int32.
        """
        if not isinstance(inputs, Mapping):
            return inputs
        declared = self._whole_names()
        return {name: _whole(name, value) if name in declared else value for name, value in inputs.items()}

    def _whole_names(self) -> set[str]:
        declared = self.input  # type: ignore[attr-defined]
        return {name for name, x in declared.items() if x.dtype == "int32"} if isinstance(declared, Mapping) else set()

    def _checked(self, method: Any, check: Check, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a method of Keras returns for data that is checked."""
        given = inspect.signature(method).bind(*args, **kwargs)
        values: dict[str, Any] = given.arguments
        datasets = []

        def checked(x: Any, y: Any, weight: Any, **settings: Any) -> Any:
            if not CheckedBatches.reads(x, y, weight):
                return check(x, y, weight)
            datasets.append(CheckedBatches(x, check, self._whole_names(), y=y, sample_weight=weight, **settings))
            return datasets[-1]

        if "x" in values and "_use_cached_eval_dataset" not in kwargs:  # with which `fit` evaluates what it was given
            x, y, weight = (values.get(name) for name in ("x", "y", "sample_weight"))
            shuffle = values.get("shuffle", method.__name__ == "fit" and isinstance(x, keras.utils.PyDataset))
            values["x"] = checked(x, y, weight, shuffle=shuffle, class_weight=values.get("class_weight"))
        if values.get("validation_data") is not None:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(values["validation_data"])
            values["validation_data"] = keras.utils.pack_x_y_sample_weight(checked(x, y, weight), y, weight)
        try:
            with self._kept():
                return method(*given.args, **given.kwargs)
        except Exception:
            for error in [data.error for data in datasets if data.error]:
                raise error from None
            raise

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Give back the weights after an error.

        On JAX, Keras takes the arrays out of the variables for the time of the call. After an error `fit` alone puts back what the last
        step returned, which is nothing if the first one fails, for example because of wrong targets.
        """
        optimizer = getattr(self, "optimizer", None)
        variables = [*self.variables, *self.metrics_variables, *(optimizer.variables if optimizer else ())]  # type: ignore[attr-defined]
        held = [(variable, variable._value) for variable in variables if keras.backend.backend() == "jax"]
        try:
            yield
        except BaseException:
            if held:
                self.jax_state_sync()  # type: ignore[attr-defined]
                self._jax_state = None
            for variable, value in held:
                if variable._value is None:
                    variable._value = value
            # TensorFlow would run on in the program whose first trace failed.
            self.train_function = self.test_function = self.predict_function = None
            raise


@keras.saving.register_keras_serializable(package="keras_ranking")
class Graph(CheckedModel, keras.Model):
    """A functional `keras.Model` over layers of a `RankingModel`, such as its `serving_model`."""


def _whole(name: str, value: Any) -> Any:
    labels = "bool" in str(getattr(value, "dtype", ""))  # of earlier events
    return value if labels else whole_numbers(value, name)


class CheckedBatches(DataAdapter):
    """A dataset as Keras reads it, whose batches go through a check in numpy: inside a compiled step no error can be raised.

    Args:
        dataset: `tf.data.Dataset`, generator, `PyDataset`, or loader of another library.
        check: called with the arrays of each batch; raises an error, or returns the inputs.
        whole: names of the inputs that it makes int32.
        settings: of `fit` that change what the dataset yields: `y`, `sample_weight`, `class_weight`, `shuffle`.
    """

    def __init__(self, dataset: Any, check: Check, whole: Collection[str], **settings: Any) -> None:
        self._inner = data_adapters.get_data_adapter(dataset, **settings)
        self._check = check
        self._whole = whole
        self.error: Exception | None = None

    @classmethod
    def reads(cls, x: Any, y: Any, sample_weight: Any) -> bool:
        """Whether `x` is a caller's dataset; those of this package hold numbers that were checked."""
        if x is None or isinstance(x, Mapping | list | tuple | DataAdapter) or can_convert_arrays((x, y, sample_weight)):
            return False
        return not type(x).__module__.startswith("keras_ranking.")

    def get_numpy_iterator(self) -> Iterator[Any]:
        return self._checked(self._inner.get_numpy_iterator())

    def get_jax_iterator(self) -> Iterator[Any]:
        return self._checked(self._inner.get_jax_iterator())

    def get_torch_dataloader(self) -> Any:
        return data_adapter_utils.get_torch_dataloader(_Again(self.get_numpy_iterator))

    def get_tf_dataset(self) -> Any:
        from keras.src.utils.module_utils import tensorflow

        return self._inner.get_tf_dataset().map(tensorflow.autograph.experimental.do_not_convert(self._in_graph))

    def _checked(self, batches: Any) -> Iterator[Any]:
        for batch in batches:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            yield keras.utils.pack_x_y_sample_weight(self._check(x, y, weight), y, weight)

    def _in_graph(self, *batch: Any) -> Any:
        """The check of symbolic tensors: of types now, of values by a call from the graph, in the order of the batches."""
        from keras.src.utils.module_utils import tensorflow

        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch if len(batch) > 1 else batch[0])
        named = x if isinstance(x, dict) else {}
        wide = {name: named[name] for name in self._whole if name in named and named[name].dtype.name in _WIDE}
        if named:
            narrow = {name: tensorflow.cast(values, "int32") for name, values in wide.items()}
            x = {**x, **self._check({name: values for name, values in named.items() if name not in wide}, None, None), **narrow}
        parts = (wide, y, weight)

        def look(*arrays: Any) -> bool:
            values = iter(arrays)
            try:
                self._check(*tree.map_structure(lambda part: None if part is None else next(values), parts))
            except Exception as error:
                self.error = error  # TensorFlow passes on no more than its words
                raise
            return True

        # It has a side effect for TensorFlow, so that it always runs.
        tensorflow.numpy_function(look, [part for part in tree.flatten(parts) if part is not None], "bool")
        return keras.utils.pack_x_y_sample_weight(x, y, weight)

    @property
    def num_batches(self) -> int | None:
        return self._inner.num_batches  # type: ignore[no-any-return]

    @property
    def batch_size(self) -> int | None:
        return self._inner.batch_size  # type: ignore[no-any-return]

    @property
    def has_partial_batch(self) -> Any:
        return self._inner.has_partial_batch

    @property
    def partial_batch_size(self) -> Any:
        return self._inner.partial_batch_size

    def on_epoch_begin(self) -> None:
        self._inner.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._inner.on_epoch_end()


class _Again:
    """An iterable that starts a new iterator each time."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        return self._start()


def picked(tensors: Mapping[str, Any], graph: keras.Model) -> dict[str, Any]:
    """The inputs of a graph from named tensors, as tensors.

    Raises:
        ValueError: a missing one.
    """
    names = list(graph.input)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"the inputs must have {names}. Missing: {missing}")
    # Keras refuses arguments that mix arrays with its own tensors.
    return {name: as_tensor(tensors[name]) for name in names}
