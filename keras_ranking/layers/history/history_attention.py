"""HistoryAttention: a mean of what was done with items like the candidate."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import WeightRules
from keras_ranking.layers.history.of_the_past import OfThePast, check_sizes


@keras.saving.register_keras_serializable(package="keras_ranking")
class HistoryAttention(WeightRules, OfThePast):
    """Attention of a candidate over a member's past, for a mean of what was done with similar items.

        w_ij  = exp(q_i . k_j / sqrt(key_dim) - decay ln(1 + gap_ij / unit)) / (exp(e_i) + the same over all events that i sees)
        e_i   = the empty slot, a number a head
        out_i = [sum_j w_ij v_j ; sum_j w_ij numbers_j ; sum_j w_ij]          for each head

    q, k are one linear map of item vectors (`tied`), or two; v is a linear map of `value`. Of the query nothing but its item vector is
    read, so the weights say which items are alike. The numbers, such as outcomes and residuals, are averaged as they are: with residuals
    a head gives a similarity-weighted mean of them, the form of item-based collaborative filtering. Without events like the candidate the
    empty slot takes the weight and the output is near 0. After DIN (1706.06978); empty slot, decay, and what is read are our choice.

    Args:
        num_heads, key_dim, value_dim: sizes of the heads.
        decay: whether weights fall with the time gap, by a learned exponent a head.
        tied: whether queries and keys share their map.
        unit: seconds, see the formula.
        causal: without `start` and `end`, whether a candidate sees the events that are older than itself, key_times < times, or all. Events
            of the same second are hidden: they may be its own.
        kernel_initializer, kernel_regularizer, kernel_constraint: of the three maps.

    Call arguments:
        inputs: (B, N, D), item vectors of the candidates.
        key: (B, L, D), item vectors of the events.
        value: (B, L, V), what else is read of an event.
        numbers: (B, L, M), averaged as they are.
        start, end: int32 (B, N): a candidate sees the events start, ..., end - 1. None: see `causal`.
        times: int32 (B, N), seconds; key_times: int32 (B, L). None: with `start`, `end` and decay=False.
        window: W, where no candidate sees more events: work and memory are then of B N W pairs, not of B N L. The same output. Needs
            `start` and `end`.
        key_mask: boolean (B, L), the real events, next to the Keras masks of `key`, `value` and `numbers`: others are read by none.
        attention_mask: boolean (B, N, L), as in `keras.layers.MultiHeadAttention`: pairs that may be seen, of those that are seen.
        return_attention_scores: also return w, computed for all pairs, also with a `window`.

    Output:
        (B, N, num_heads * (value_dim + M + 1)); with `return_attention_scores` a tuple of this and float32 (B, H, N, L), which sum to 1
        minus the weight of the empty slot.

    Raises:
        ValueError: a size below 1, a `unit` that is not positive, or call arguments that do not go together.

    Example:
        >>> layer = kr.layers.HistoryAttention(num_heads=2, key_dim=4, value_dim=3)
        >>> item, past = np.ones((1, 1, 8), "float32"), np.ones((1, 5, 8), "float32")
        >>> seen = {"start": np.array([[0]], "int32"), "end": np.array([[5]], "int32")}
        >>> when = {"times": np.array([[90]], "int32"), "key_times": np.arange(5, dtype="int32")[None]}
        >>> layer(item, key=past, value=past, numbers=np.ones((1, 5, 1), "float32"), **seen, **when).shape
        (1, 1, 10)
    """

    weight_rules = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")

    def __init__(
        self,
        num_heads: int = 4,
        key_dim: int = 16,
        value_dim: int = 16,
        decay: bool = True,
        tied: bool = True,
        unit: float = 3600.0,
        causal: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(unit=unit, causal=causal, **settings)
        check_sizes(num_heads=num_heads, key_dim=key_dim, value_dim=value_dim)
        self.num_heads, self.key_dim, self.value_dim = int(num_heads), int(key_dim), int(value_dim)
        self.decay, self.tied = bool(decay), bool(tied)

    def build(self, inputs_shape: Any, value_shape: Any = None) -> None:
        width = int(inputs_shape[-1])
        heads = (width, self.num_heads, self.key_dim)
        self.query_map = self.add_kernel("query_map", heads)
        self.key_map = self.query_map if self.tied else self.add_kernel("key_map", heads)
        values = (int((value_shape or inputs_shape)[-1]), self.num_heads, self.value_dim)
        self.value_map = self.add_kernel("value_map", values)
        self.empty = self.add_weight(shape=(self.num_heads,), initializer="zeros", name="empty", dtype="float32")
        if self.decay:
            # softplus(-2) = 0.13: a gap of a year halves a weight twice
            start = keras.initializers.Constant(-2.0)
            self.rate = self.add_weight(shape=(self.num_heads,), initializer=start, name="decay", dtype="float32")
        self.built = True

    def call(
        self,
        inputs: Any,
        key: Any,
        value: Any,
        numbers: Any,
        start: Any = None,
        end: Any = None,
        times: Any = None,
        key_times: Any = None,
        window: int | None = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
    ) -> Any:
        self._check_seen(start, end, times, key_times, window, self.decay)
        dense = return_attention_scores or attention_mask is not None
        window = None if dense else self._window(key, window)
        real, key, value, numbers = self._real_events(key_mask, key, value, numbers)
        pairs = None if attention_mask is None else ops.cast(attention_mask, "bool")
        query = ops.einsum("bnd,dhk->bhnk", inputs, ops.cast(self.query_map, self.compute_dtype)) / math.sqrt(self.key_dim)
        keys = ops.einsum("bld,dhk->bhlk", key, ops.cast(self.key_map, self.compute_dtype))
        read = self._read(value, numbers)
        score = ops.cast(self._scores(query, keys, start, window), "float32")
        if self.decay:
            rate = ops.softplus(ops.cast(self.rate, "float32"))
            score = score - rate[None, :, None, None] * self._log_gap(times, key_times, start, window)[:, None]
        seen = self._visible(start, end, key, window, times, key_times, real, pairs)
        hidden = ops.where(seen[:, None], score, -1e30)
        empty = ops.cast(self.empty, "float32")[None, :, None, None] + ops.zeros_like(score[..., :1])
        scores = ops.softmax(ops.concatenate([hidden, empty], axis=-1), axis=-1)[..., :-1]
        weight = ops.cast(scores, self.compute_dtype)
        if window is None:
            out = ops.einsum("bhnl,bhle->bnhe", weight, read)
        else:
            out = ops.einsum("bhnw,bnwhe->bnhe", weight, self._of_windows(ops.transpose(read, (0, 2, 1, 3)), start, window))
        out = ops.reshape(out, (*ops.shape(out)[:2], self.num_heads * out.shape[-1]))
        return (out, scores) if return_attention_scores else out

    def _read(self, value: Any, numbers: Any) -> Any:
        """What the weights average, (B, H, L, value_dim + M + 1)."""
        values = ops.einsum("blv,vhe->bhle", value, ops.cast(self.value_map, self.compute_dtype))
        numbers = ops.expand_dims(ops.cast(numbers, self.compute_dtype), 1) + ops.zeros_like(values[..., :1])
        return ops.concatenate([values, numbers, ops.ones_like(values[..., :1])], axis=-1)

    def compute_output_spec(
        self,
        inputs: Any,
        key: Any,
        value: Any,
        numbers: Any,
        start: Any = None,
        end: Any = None,
        times: Any = None,
        key_times: Any = None,
        window: int | None = None,
        return_attention_scores: bool = False,
        **settings: Any,
    ) -> Any:
        self._check_seen(start, end, times, key_times, window, self.decay)
        width = self.num_heads * (self.value_dim + int(numbers.shape[-1]) + 1)
        out = keras.KerasTensor((*inputs.shape[:2], width), dtype=self.compute_dtype)
        scores = keras.KerasTensor((inputs.shape[0], self.num_heads, inputs.shape[1], key.shape[1]), dtype="float32")
        return (out, scores) if return_attention_scores else out

    def get_config(self) -> dict[str, Any]:
        names = ("num_heads", "key_dim", "value_dim", "decay", "tied")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
