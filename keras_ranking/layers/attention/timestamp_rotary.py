"""Rotary embedding of Unix times with integer periods."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.layers.base import PassesMask, WholeInputs
from keras_ranking.ops import rotary_periods, rotate


@keras.saving.register_keras_serializable(package="keras_ranking")
class TimestampRotaryEmbedding(WholeInputs, PassesMask, keras.layers.Layer):
    """Rotates the pairs of each head by `angle = 2 pi (t mod P_k) / P_k`, with integer periods P_k from `shortest` to `longest`.

    Attention scores then depend on time differences only, to float rounding, for any date. The modulo is exact in int32, so no
    float64 is needed, and cached keys stay valid for later requests. RoPE on timestamps "from seconds to months" is stated by
    CADET (2602.11410); the integer periods and the values of `shortest` and `longest` are our choice (the paper does not give them).

    Args:
        shortest: time difference over which the fastest pair turns an eighth of a circle, in ticks (seconds where times are
            seconds), at least 1; its period is eight times that. See `rotary_periods`.
        longest: span over which the slowest pair turns half a circle, in ticks, at most 2**30 - 1; its period is twice that.

    Call arguments:
        inputs: (B, T, H, D), D even.
        times: int32 (B, T).

    Output:
        (B, T, H, D).

    Example:
        >>> layer = kr.layers.TimestampRotaryEmbedding(shortest=8, longest=15_552_000)
        >>> layer(np.ones((1, 3, 2, 8), "float32"), times=np.array([[0, 5, 9]], "int32")).shape
        (1, 3, 2, 8)
    """

    whole = ("times",)

    def __init__(self, shortest: float = 8.0, longest: float = 15_552_000.0, **settings: Any) -> None:
        super().__init__(**settings)
        if not 1 <= shortest < longest < 2**30:
            received = f"shortest={shortest}, longest={longest}"
            raise ValueError(f"`shortest` must be at least 1 and below `longest`, and `longest` below 2**30. Received: {received}")
        self.shortest, self.longest = float(shortest), float(longest)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.periods = rotary_periods(int(input_shape[-1] or 0), self.shortest, self.longest)
        self.built = True

    def call(self, inputs: Any, times: Any) -> Any:
        return rotate(inputs, times, self.periods)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shortest": self.shortest, "longest": self.longest}
