"""Batches of a caller's dataset, each checked in numpy before a step reads it: inside a compiled step no error can be raised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import keras
from keras import tree
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.array_data_adapter import can_convert_arrays
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

# (x, y, sample_weight) -> x, as whole numbers.
Check = Callable[[Any, Any, Any], Any]
_WIDE = ("int64", "uint32", "uint64")


class CheckedBatches(DataAdapter):
    """A dataset as Keras reads it, whose batches go through a check.

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
