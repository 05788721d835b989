"""TableEmbedding: `keras.layers.Embedding` whose gradient can be that of the looked-up rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.name_scope import current_path

from keras_ranking.layers.base import WholeInputs
from keras_ranking.ops.replicas import whole_array
from keras_ranking.ops.tables import fill, look_up, mark_spare_rows, rows_over_devices, rows_without_spare

# Initialisers whose numbers do not depend on the shape of the whole.
_BY_PARTS = (keras.initializers.RandomUniform, keras.initializers.RandomNormal, keras.initializers.TruncatedNormal)


@keras.saving.register_keras_serializable(package="keras_ranking")
class TableEmbedding(WholeInputs, keras.layers.Embedding):
    """`keras.layers.Embedding`, with gradients by rows for a `kr.training.TableOptimizer`.

        E(id) = W[id],   W (input_dim, output_dim)

    Values, weights and saved weights are those of `keras.layers.Embedding`; with another optimiser gradients are too. With LoRA or
    quantisation it is that layer. The first values of a table with more than 2^25 numbers are drawn in parts of 262,144 rows, each with a
    seed made of the initialiser's and the part's number: the table is never held twice. A `keras.distribution` that shares rows out over
    devices has a multiple of them: spare rows, that no id looks up and no file holds, fill the table up.

    Args:
        As those of `keras.layers.Embedding`: `input_dim`, `output_dim`, `embeddings_initializer`, `mask_zero`, ...

    Call arguments:
        inputs: integers (...).

    Output:
        (..., output_dim).

    Raises:
        ValueError: as `keras.layers.Embedding`; ids that are floats.

    Example:
        >>> kr.layers.TableEmbedding(1000, 4)(np.array([[1, 2, 999]], "int32")).shape
        (1, 3, 4)
    """

    input_dim: int  # of Keras
    whole = ("inputs",)
    rows_at_once = 2**18  # drawn at once for a table with more than `most_weights`
    most_weights = 2**25
    looks_up_rows = True  # its call is `Embedding`'s, for those who watch look-ups

    def build(self, input_shape: Any = None) -> None:
        initial: Any = self.embeddings_initializer  # type: ignore[has-type]
        if keras.distribution.distribution() is not None:
            self._build_over_devices(input_shape)
            return
        large = self.input_dim * self.output_dim > self.most_weights
        if self.built or not large or type(initial) not in _BY_PARTS or self.quantization_mode is not None:
            super().build(input_shape)
            return
        # Random numbers of a whole table take three to four times its memory.
        self.embeddings_initializer = keras.initializers.Zeros()
        try:
            super().build(input_shape)
        finally:
            self.embeddings_initializer = initial
        for part, start in enumerate(range(0, self.input_dim, self.rows_at_once)):
            rows = min(self.rows_at_once, self.input_dim - start)
            fill(self._embeddings, start, _of_part(initial, part)((rows, self.output_dim), dtype=self._embeddings.dtype))

    def _build_over_devices(self, input_shape: Any) -> None:
        """With spare rows, if the rows are shared out over devices of which they are no multiple."""
        rows, initial = self.input_dim, self.embeddings_initializer
        whole = rows_over_devices(f"{current_path()}/embeddings", rows, self.output_dim)
        if self.built or whole == rows or self.quantization_mode is not None:
            super().build(input_shape)
            return

        def with_spare(shape: Any, dtype: Any = None) -> Any:
            return ops.pad(initial((rows, self.output_dim), dtype=dtype), [[0, whole - rows], [0, 0]])

        self.input_dim, self.embeddings_initializer = whole, with_spare
        try:
            super().build(input_shape)
        finally:
            self.input_dim, self.embeddings_initializer = rows, initial
        mark_spare_rows(self._embeddings, rows)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.built and rows_without_spare(self._embeddings) is not None:
            store["0"] = whole_array(self._embeddings.value)[: self.input_dim]

    def load_own_variables(self, store: Any) -> None:
        if not self.built or rows_without_spare(self._embeddings) is None:
            super().load_own_variables(store)
            return
        spare = whole_array(self._embeddings.value)[self.input_dim :]
        self._embeddings.assign(np.concatenate([np.asarray(store["0"]), spare]))

    def call(self, inputs: Any) -> Any:
        if self.lora_enabled or self.quantization_mode is not None:
            return super().call(inputs)
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        rows = look_up(self.embeddings, inputs, half=self.compute_dtype == "float16")
        return ops.cast(rows, self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_ranking")
class Embedding(TableEmbedding):
    """`TableEmbedding` in the models: files of models name the tables by the name of their class."""


def _of_part(initial: Any, part: int) -> Any:
    """The initialiser of a part of a table."""
    if not isinstance(initial.seed, int):
        return initial  # a `SeedGenerator`, which gives other numbers in each call
    seed = int(np.random.SeedSequence([initial.seed, part]).generate_state(1)[0] >> 1)
    return type(initial).from_config({**initial.get_config(), "seed": seed})
