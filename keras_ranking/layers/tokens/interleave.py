"""Item and action tokens in one alternating sequence, and the item tokens of it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import RefusesMask


@keras.saving.register_keras_serializable(package="keras_ranking")
class Interleave(RefusesMask, keras.layers.Layer):
    """`[x_1, a_1, x_2, a_2, ...]` from item tokens x and action tokens a: each action follows its item.

    The layout of Feed-SR (2602.12354, stated); CADET's is unknown, and this is our default for it.

    Call arguments:
        inputs: item tokens (B, T, D).
        actions: action tokens (B, T, D).

    Output:
        (B, 2T, D).

    Example:
        >>> items, actions = np.zeros((1, 2, 4), "float32"), np.ones((1, 2, 4), "float32")
        >>> keras.ops.convert_to_numpy(kr.layers.Interleave()(items, actions=actions))[0, :, 0]
        array([0., 1., 0., 1.], dtype=float32)
    """

    def build(self, inputs_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, actions: Any) -> Any:
        shape = ops.shape(inputs)
        return ops.reshape(ops.stack([inputs, ops.cast(actions, inputs.dtype)], axis=2), (shape[0], 2 * shape[1], inputs.shape[-1]))

    def compute_output_shape(self, inputs_shape: Any, actions_shape: Any = None) -> tuple[int | None, ...]:
        length = inputs_shape[1]
        return (inputs_shape[0], None if length is None else 2 * length, inputs_shape[2])

    def compute_output_spec(self, inputs: Any, actions: Any) -> Any:
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_ranking")
class ItemTokens(RefusesMask, keras.layers.Layer):
    """The tokens of a row from which scores are computed, one per event; see `TokenSpans` for the layouts.

    Args:
        layout: 'interleaved': the item tokens, every second token from the first (as in Feed-SR, stated); 'fused': the queries, the second
            half.

    Call arguments:
        inputs: (B, 2T, D). `DecoderBlock` with `stride=2` computes the item tokens only, so that this layer is not needed.

    Output:
        (B, T, D).

    Raises:
        ValueError: another layout.

    Example:
        >>> kr.layers.ItemTokens()(np.zeros((1, 6, 4), "float32")).shape
        (1, 3, 4)
    """

    def __init__(self, layout: str = "interleaved", **settings: Any) -> None:
        super().__init__(**settings)
        if layout not in ("interleaved", "fused"):
            raise ValueError(f"`layout` must be 'interleaved' or 'fused'. Received: layout={layout!r}")
        self.layout = layout

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any) -> Any:
        return inputs[:, ::2] if self.layout == "interleaved" else inputs[:, ops.shape(inputs)[1] // 2 :]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        length = input_shape[1]
        return (input_shape[0], None if length is None else (length + 1) // 2, input_shape[2])

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layout": self.layout}
