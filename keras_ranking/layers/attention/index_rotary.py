"""Rotary embedding of the index in a sequence."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.layers.base import PassesMask, WholeInputs
from keras_ranking.ops.rotary import rotary_frequencies, rotate_index


@keras.saving.register_keras_serializable(package="keras_ranking")
class IndexRotaryEmbedding(WholeInputs, PassesMask, keras.layers.Layer):
    """Rotates the pairs (k, k + D/2) of each head by `angle = p base^(-2k / D)`, p the index of a token.

    Standard RoPE. Feed-SR (2602.12354) rotates queries and keys in every layer (stated); its base is not stated, related public code
    uses 100,000. Attention scores depend on differences of indices only.

    Args:
        base: above 1.

    Call arguments:
        inputs: (B, T, H, D), D even.
        index: int32 (B, T).

    Output:
        (B, T, H, D).

    Raises:
        ValueError: `base` not above 1, or an odd D.

    Example:
        >>> kr.layers.IndexRotaryEmbedding()(np.ones((1, 3, 2, 8), "float32"), index=np.array([[0, 1, 2]], "int32")).shape
        (1, 3, 2, 8)
    """

    whole = ("index",)

    def __init__(self, base: float = 10_000.0, **settings: Any) -> None:
        super().__init__(**settings)
        if not base > 1:
            raise ValueError(f"`base` must be above 1. Received: base={base}")
        self.base = float(base)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.frequencies = rotary_frequencies(int(input_shape[-1] or 0), self.base)
        self.built = True

    def call(self, inputs: Any, index: Any) -> Any:
        return rotate_index(inputs, index, self.frequencies)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "base": self.base}
