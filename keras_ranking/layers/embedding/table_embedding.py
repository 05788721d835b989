"""TableEmbedding: `keras.layers.Embedding` whose gradient can be that of the looked-up rows."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import WholeInputs
from keras_ranking.ops.tables import look_up


@keras.saving.register_keras_serializable(package="keras_ranking")
class TableEmbedding(WholeInputs, keras.layers.Embedding):
    """`keras.layers.Embedding`, with gradients by rows for a `kr.training.TableOptimizer`.

        E(id) = W[id],   W (input_dim, output_dim)

    Values, weights and saved weights are those of `keras.layers.Embedding`; with another optimiser gradients are too. With LoRA or
    quantisation it is that layer.

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

    whole = ("inputs",)
    looks_up_rows = True  # its call is `Embedding`'s, for those who watch look-ups

    def call(self, inputs: Any) -> Any:
        if self.lora_enabled or self.quantization_mode is not None:
            return super().call(inputs)
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        rows = look_up(self.embeddings, inputs, half=self.compute_dtype == "float16")
        return ops.cast(rows, self.compute_dtype)
