"""MatchingHistory: sums over the events with the same id as the candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import mask_of_all
from keras_ranking.layers.history.of_the_past import OfThePast


@keras.saving.register_keras_serializable(package="keras_ranking")
class MatchingHistory(OfThePast):
    """Sums over the events of the past with the same id, item or author as the candidate, faded by learned decays.

        sum_d = sum_j [id_i = id_j] (1 + gap_ij / unit)^-decay_d (1, numbers_j)
        out   = sign(sum) ln(1 + |sum|)                                 for each column, decay and number

    A softmax cannot count: two purchases of an item weigh as one. Such sums say how often, how lately and with what outcome. Id 0 is a
    missing one and matches nothing. Our choice.

    Args:
        columns: names of the ids.
        decays: first exponents, at least one; learned.
        unit, causal: as `HistoryAttention`.

    Call arguments:
        inputs: dict of int32 (B, N) by column, ids of the candidates.
        past: dict of int32 (B, L) by column, ids of the events.
        numbers, start, end, times, key_times, window, key_mask: as `HistoryAttention`; `times` are needed.

    Output:
        (B, N, len(columns) * len(decays) * (M + 1)).

    Raises:
        ValueError: no column, or decays that are not positive.

    Example:
        >>> layer = kr.layers.MatchingHistory(["item_id"], decays=[1e-6])
        >>> seen = {"start": np.array([[0]], "int32"), "end": np.array([[3]], "int32")}
        >>> when = {"times": np.array([[90]], "int32"), "key_times": np.array([[1, 2, 3]], "int32")}
        >>> ids = {"inputs": {"item_id": np.array([[7]], "int32")}, "past": {"item_id": np.array([[7, 8, 7]], "int32")}}
        >>> out = layer(**ids, numbers=np.array([[[1.0], [1.0], [0.0]]], "float32"), **seen, **when)
        >>> keras.ops.convert_to_numpy(out).round(2)  # ln(1 + 2 events), ln(1 + 1)
        array([[[1.1 , 0.69]]], dtype=float32)
    """

    def __init__(self, columns: Any, decays: Any = (0.05, 0.5, 2.0), unit: float = 3600.0, causal: bool = True, **settings: Any) -> None:
        super().__init__(unit=unit, causal=causal, **settings)
        self.columns, self.decays = list(columns), [float(decay) for decay in decays]
        if not self.columns or not self.decays or not all(0 < decay < math.inf for decay in self.decays):
            raise ValueError(f"`columns` must not be empty, and `decays` positive. Received: columns={columns}, decays={decays}")

    def _whole(self) -> tuple[str, ...]:
        return (*self.whole, *self.columns)

    def build(self, inputs_shape: Any) -> None:
        first = [decay + math.log(-math.expm1(-decay)) for decay in self.decays]  # softplus of these gives the decays
        size = (len(self.columns), len(self.decays))

        def initial(shape: Any, dtype: Any = None) -> Any:
            return ops.tile(ops.convert_to_tensor([first], dtype=dtype), (len(self.columns), 1))

        self.rate = self.add_weight(shape=size, initializer=initial, name="decay", dtype="float32")
        self.built = True

    def call(
        self,
        inputs: Mapping[str, Any],
        past: Mapping[str, Any],
        numbers: Any,
        start: Any = None,
        end: Any = None,
        times: Any = None,
        key_times: Any = None,
        window: int | None = None,
        key_mask: Any = None,
    ) -> Any:
        self._check_seen(start, end, times, key_times, window)
        window = self._window(key_times, window)
        real, numbers = self._real_events(mask_of_all(*past.values(), mask=key_mask), numbers)
        visible = self._visible(start, end, key_times, window, times, key_times, real)
        gap = self._log_gap(times, key_times, start, window)
        rate = ops.softplus(ops.cast(self.rate, "float32"))
        numbers = ops.cast(numbers, "float32")
        numbers = ops.concatenate([ops.ones_like(numbers[..., :1]), numbers], axis=-1)
        numbers = numbers if window is None else self._of_windows(numbers, start, window)
        sums_over = "bnl,blm->bnm" if window is None else "bnw,bnwm->bnm"
        parts = []
        for place, name in enumerate(self.columns):
            other = past[name][:, None, :] if window is None else self._of_windows(past[name], start, window)
            one = inputs[name][:, :, None]
            same = ops.cast(ops.logical_and(visible, ops.logical_and(ops.equal(one, other), one != 0)), "float32")
            parts += [ops.einsum(sums_over, same * ops.exp(-rate[place, number] * gap), numbers) for number in range(len(self.decays))]
        sums = ops.concatenate(parts, axis=-1)
        return ops.cast(ops.sign(sums) * ops.log1p(ops.abs(sums)), self.compute_dtype)

    def compute_output_spec(
        self,
        inputs: Mapping[str, Any],
        past: Mapping[str, Any],
        numbers: Any,
        start: Any = None,
        end: Any = None,
        times: Any = None,
        key_times: Any = None,
        window: int | None = None,
        key_mask: Any = None,
    ) -> Any:
        self._check_seen(start, end, times, key_times, window)
        width = len(self.columns) * len(self.decays) * (int(numbers.shape[-1]) + 1)
        return keras.KerasTensor((*times.shape[:2], width), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "columns": self.columns, "decays": self.decays}
