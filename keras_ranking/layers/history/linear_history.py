"""LinearHistory: sums of numbers times similarity, without a softmax."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import WeightRules
from keras_ranking.layers.history.of_the_past import OfThePast, check_sizes


@keras.saving.register_keras_serializable(package="keras_ranking")
class LinearHistory(WeightRules, OfThePast):
    """Sums over a member's past of numbers times similarity, without a softmax: they grow with how much there is.

        out_i = sum_j numbers_j (q_i . k_j) (1 + gap_ij / unit)^-decay / sqrt(n_i + shrink)          for each number and head

    n_i is the number of events that i sees. With residuals as numbers and item factors as vectors it is the score of a factor model whose
    member vector is the sum of the items of the past. Our choice.

    Args:
        num_heads, key_dim: sizes of the heads.
        shrink: see the formula.
        decay, unit, causal: as `HistoryAttention`; the exponent starts near 0.
        kernel_initializer, kernel_regularizer, kernel_constraint: of the map of items.

    Call arguments:
        inputs, key, numbers, start, end, times, key_times, window, key_mask: as `HistoryAttention`.

    Output:
        (B, N, num_heads * M).

    Raises:
        ValueError: a size below 1, a `shrink` that is not positive.

    Example:
        >>> layer = kr.layers.LinearHistory(num_heads=2, key_dim=4)
        >>> item, past = np.ones((1, 1, 8), "float32"), np.ones((1, 5, 8), "float32")
        >>> seen = {"start": np.array([[0]], "int32"), "end": np.array([[5]], "int32")}
        >>> when = {"times": np.array([[90]], "int32"), "key_times": np.arange(5, dtype="int32")[None]}
        >>> layer(item, key=past, numbers=np.ones((1, 5, 3), "float32"), **seen, **when).shape
        (1, 1, 6)
    """

    weight_rules = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")

    def __init__(
        self,
        num_heads: int = 1,
        key_dim: int = 16,
        shrink: float = 4.0,
        decay: bool = True,
        unit: float = 3600.0,
        causal: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(unit=unit, causal=causal, **settings)
        check_sizes(num_heads=num_heads, key_dim=key_dim)
        if not 0 < shrink < math.inf:
            raise ValueError(f"`shrink` must be a positive number. Received: shrink={shrink}")
        self.num_heads, self.key_dim, self.shrink, self.decay = int(num_heads), int(key_dim), float(shrink), bool(decay)

    def build(self, inputs_shape: Any) -> None:
        heads = (int(inputs_shape[-1]), self.num_heads, self.key_dim)
        self.item_map = self.add_kernel("item_map", heads)
        if self.decay:
            start = keras.initializers.Constant(-4.0)
            self.rate = self.add_weight(shape=(self.num_heads,), initializer=start, name="decay", dtype="float32")
        self.built = True

    def call(
        self,
        inputs: Any,
        key: Any,
        numbers: Any,
        start: Any = None,
        end: Any = None,
        times: Any = None,
        key_times: Any = None,
        window: int | None = None,
        key_mask: Any = None,
    ) -> Any:
        self._check_seen(start, end, times, key_times, window, self.decay)
        window = self._window(key, window)
        real, key, numbers = self._real_events(key_mask, key, numbers)
        kernel = ops.cast(self.item_map, self.compute_dtype)
        query, keys = ops.einsum("bnd,dhk->bhnk", inputs, kernel), ops.einsum("bld,dhk->bhlk", key, kernel)
        weight = ops.cast(self._scores(query / math.sqrt(self.key_dim), keys, start, window), "float32")
        seen = self._visible(start, end, key, window, times, key_times, real)
        weight = ops.where(seen[:, None], weight, 0.0)
        if self.decay:
            rate = ops.softplus(ops.cast(self.rate, "float32"))
            weight = weight * ops.exp(-rate[None, :, None, None] * self._log_gap(times, key_times, start, window)[:, None])
        numbers = ops.cast(numbers, "float32")
        if window is None:
            sums = ops.einsum("bhnl,blm->bnhm", weight, numbers)
        else:
            sums = ops.einsum("bhnw,bnwm->bnhm", weight, self._of_windows(numbers, start, window))
        if start is not None and real is None:
            count = ops.cast(ops.maximum(end - start, ops.zeros_like(end)), "float32")
        else:
            count = ops.sum(ops.cast(seen, "float32"), axis=-1)
        out = sums / ops.sqrt(count + self.shrink)[:, :, None, None]
        return ops.cast(ops.reshape(out, (*ops.shape(out)[:2], self.num_heads * out.shape[-1])), self.compute_dtype)

    def compute_output_spec(
        self,
        inputs: Any,
        key: Any,
        numbers: Any,
        start: Any = None,
        end: Any = None,
        times: Any = None,
        key_times: Any = None,
        window: int | None = None,
        key_mask: Any = None,
    ) -> Any:
        self._check_seen(start, end, times, key_times, window, self.decay)
        return keras.KerasTensor((*inputs.shape[:2], self.num_heads * int(numbers.shape[-1])), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in ("num_heads", "key_dim", "shrink", "decay")}}
