"""Streaming replay: contributions at the first position that a model would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.losses.packed import Reading, is_packed, request_segments, unpack
from keras_ranking.losses.values import LARGEST_GRADE
from keras_ranking.metrics.observed_base import ObservedBase, quotient
from keras_ranking.metrics.running_sum import RunningSum
from keras_ranking.ops.masks import mask_of, set_mask


@keras.saving.register_keras_serializable(package="keras_ranking")
class ReplayContributionRate(ObservedBase):
    """Contributions per matched impression at position 1, over sessions that were shown in random order.

        m_r   = w [the item shown first in r has the top logit of r] / number of items that share the top logit of r
        value = sum_r m_r y_r / sum_r m_r        y_r, w = label and weight of the item shown first

    Replay as in LiRank (2402.06859, stated), explained in `replay_contribution_rate`: a request is matched if the model ranks
    first the item that was shown first. **The weight selects the shuffled sessions**: give weight 0 to every token of all other
    sessions (as `build_sequences(..., target=events["is_shuffled"] == 1)` does), else the value is biased towards the policy that
    wrote the log. Every candidate of a shuffled request needs a weight above 0, because a token of weight 0 cannot be the top
    item.

    Items are compared by one tower, that of the score in serving, and not by the towers of the positions at which they were
    shown: the metric needs the item that the model would put first. A request never spans rows, so the value does not depend on the
    batches. NaN until there is a match; a NaN logit of non-zero weight makes the value NaN.

    Args:
        boundaries: upper bounds of the position buckets, K = len(boundaries) + 1.
        tower: index of the tower that ranks, 0 = the first position's. *Our choice*, as `serving_tower` of the models.
        name: name of the metric.
        dtype: dtype of the sums. None: `keras.config.floatx()`, at least float32.

    Call arguments:
        y_true: packed targets (B, T, 3); labels above 0.5 are contributions. The tokens of a request are contiguous.
        y_pred: logits (B, T, K), or (B, T) for K = 1.
        sample_weight: (B, T) or (B,). It is passed only to metrics in `weighted_metrics` of `compile`.

    Raises:
        ValueError: `tower` out of range, targets that are not packed (they carry no position), shapes that do not fit.

    Example:
        >>> y_true = kr.losses.targets([[1, 0, 0, 0, 1, 0]], position=[[1, 2, 1, 2, 1, 2]], request=[[1, 1, 2, 2, 3, 3]])
        >>> metric = kr.metrics.ReplayContributionRate()
        >>> metric.update_state(y_true, [[0.9, 0.1, 0.8, 0.3, 0.2, 0.7]])
        >>> float(metric.result()), float(metric.matched())
        (0.5, 2.0)
    """

    _ranks = True

    def __init__(self, boundaries: Sequence[int] = (), tower: int = 0, name: str = "replay_contribution_rate", dtype: Any = None) -> None:
        super().__init__(boundaries=boundaries, from_logits=True, name=name, dtype=dtype)
        if isinstance(tower, bool) or not isinstance(tower, int) or not 0 <= tower <= len(self.boundaries):
            raise ValueError(f"`tower` must be an integer from 0 to {len(self.boundaries)}. Received: tower={tower!r}")
        self.tower = tower
        self._contributions = RunningSum(self, "contributions")
        self._matched = RunningSum(self, "matched")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        mask, as_given = mask_of(y_pred), y_true
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if not is_packed(y_true, y_pred):
            shapes = f"y_true {tuple(y_true.shape)}, y_pred {tuple(y_pred.shape)}"
            raise ValueError(f"`y_true` must be packed targets (B, T, 3), which carry the position. Received: {shapes}")
        towers = len(self.boundaries) + 1
        given = 1 if len(y_pred.shape) == 2 else y_pred.shape[-1]
        if given not in (towers, None):
            raise ValueError(f"`y_pred` must have one logit per position tower, K = {towers}. Received: K={given}")
        chosen = y_pred if len(y_pred.shape) == 2 else y_pred[..., self.tower]
        if mask is not None:
            set_mask(chosen, mask)
        observed = unpack(as_given, chosen, sample_weight, (), self.dtype, Reading(LARGEST_GRADE, logits=False, values=False))
        self._watch(observed, probabilities=False)
        total, matched = self._matches(ops.equal(ops.cast(y_true[..., 1], "int32"), 1), observed)
        wrong = ops.any(ops.isnan(observed.logit))
        self._contributions.add(ops.where(wrong, ops.full_like(total, float("nan")), total))
        self._matched.add(matched)

    def _matches(self, first: Any, observed: Any) -> tuple[Any, Any]:
        """(weighted contributions, weight) of the matched requests of a batch; `first` (B, T) marks the tokens shown first."""
        counted = observed.weight > 0
        nothing = ops.zeros_like(observed.logit)
        # Not -inf: TensorFlow's maximum of a segment starts at the lowest finite number, and a top of -inf would not be found.
        lowest = nothing + float(np.finfo(self.dtype).min)
        score = ops.reshape(ops.where(counted, ops.maximum(observed.logit, lowest), lowest), (-1,))
        segment, count = request_segments(observed.request)
        best = ops.take(ops.segment_max(score, segment, count), segment, axis=0)
        top = ops.cast(ops.logical_and(ops.equal(score, best), ops.reshape(counted, (-1,))), score.dtype)
        ties = ops.take(ops.segment_sum(top, segment, count), segment, axis=0)
        shown = ops.reshape(ops.where(first, observed.weight, nothing), (-1,))
        match = shown * top / ops.maximum(ties, 1.0)
        label = ops.cast(ops.reshape(observed.label, (-1,)) > 0.5, score.dtype)
        return ops.sum(match * label), ops.sum(match)

    def result(self) -> Any:
        return self._checked(quotient(self._contributions.value, self._matched.value))

    def matched(self) -> Any:
        """Weight of the matched requests: their number if all weights are 1 and there are no ties."""
        return self._matched.value

    def get_config(self) -> dict[str, Any]:
        return {"boundaries": list(self.boundaries), "tower": self.tower, "name": self.name, "dtype": self.dtype}
