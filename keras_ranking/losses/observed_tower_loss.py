"""The loss of a model with position towers: cross-entropy of the observed tower, plus an in-request ranking loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.losses.in_request_pairwise import check_window, pairwise_loss
from keras_ranking.losses.in_request_softmax import softmax_loss
from keras_ranking.losses.packed import Observed, check_boundaries
from keras_ranking.losses.reduction import PackedLoss, divided, reported


def cross_entropy(observed: Observed, reduction: str = "mean_with_sample_weight") -> Any:
    """Weighted mean of -y log sigmoid(s) - (1 - y) log(1 - sigmoid(s)) over tensors (B, T); 0 if all weights are 0."""
    label, logit, weight = observed.label, observed.logit, observed.weight
    # Two softplus: no difference of large numbers, exact for large logits of both signs.
    loss = label * ops.softplus(-logit) + (1.0 - label) * ops.softplus(logit)
    return divided(ops.sum(weight * loss), ops.sum(weight), reduction)


@keras.saving.register_keras_serializable(package="keras_ranking")
class ObservedTowerLoss(PackedLoss):
    """Cross-entropy of the tower of the observed position, plus weighted in-request losses.

        s_i = y_pred[i, bucket(position_i)]
        L   = sum_i w_i BCE(sigmoid(s_i), y_i) / sum_i w_i  +  pairwise_weight * InRequestPairwise  +  listwise_weight * InRequestSoftmax

    Only the tower of the observed bucket has a label; the gradient of every other tower is exactly zero. The divisor is the
    sum of the weights of the batch, not the number of tokens: padding and history do not reduce the loss, and each target
    counts once. If all weights are 0 the loss and its gradient are 0.

    Source: CADET. The observed tower and the pairwise term are inferred from summaries of the paper; `pairwise_weight`
    and the pair scope are not known, see `InRequestPairwise`. `listwise_weight` is *our addition*.

    A position of 0 (none) belongs to the first tower. Give such a token weight 0 if it should not train that tower.

    Args:
        boundaries: increasing upper bounds of the position buckets, e.g. (1, 4): position 1 / 2 to 4 / 5 and beyond.
            The model has K = len(boundaries) + 1 towers. (): one tower.
        pairwise_weight: factor of the pairwise loss, >= 0.
        listwise_weight: factor of the listwise loss, >= 0.
        same_bucket: pairs only within one position bucket; see `InRequestPairwise`. Our choice: neither value orders better on two logs
            with positions.
        window: tokens that are `window` or more apart form no pair; None: all pairs of a request. See `InRequestPairwise`.
        from_logits: whether `y_pred` are logits; else probabilities, of which ln p - ln(1 - p) is taken, p at least 1e-7 from 0 and 1.
        reduction: 'mean_with_sample_weight', or 'sum': without the divisor.
        name: name of the loss.
        dtype: dtype of the computation. None: `keras.config.floatx()`, at least float32, for logits of any dtype.

    Call arguments:
        y_true: packed targets (B, T, 3) (see `targets`), or labels (B, N) where a row is a request.
        y_pred: logits (B, T, K); (B, T) for K = 1.
        sample_weight: (B, T) or (B,), >= 0; 0 = not a target: its logit and its label are ignored, even if they are NaN.

    Returns:
        Scalar.

    Raises:
        ValueError: boundaries not increasing, a factor negative or not finite, another K, shapes that do not fit, outputs of a sigmoid, a
            label outside [0, 1] or a weight that is negative or not finite, and with an in-request loss plain rows of one item.

    Example:
        >>> loss = kr.losses.ObservedTowerLoss(boundaries=(4,), pairwise_weight=0.1)
        >>> y_true = kr.losses.targets([[1.0, 0.0]], position=[[1, 2]])
        >>> round(float(loss(y_true, [[[0.0, 9.0], [0.0, 9.0]]])), 4)  # 1.1 * log 2; the second tower is not used
        0.7625
        >>> # model.compile("adam", loss={"click": loss}); model.fit(x, {"click": y_true}, sample_weight={"click": weight})

    Reference: CADET, arXiv:2602.11410.
    """

    largest_label = 1.0

    def __init__(
        self,
        boundaries: Sequence[int] = (),
        pairwise_weight: float = 0.0,
        listwise_weight: float = 0.0,
        same_bucket: bool = True,
        window: int | None = None,
        from_logits: bool = True,
        reduction: str = "mean_with_sample_weight",
        name: str = "observed_tower_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, reduction, from_logits)
        self.boundaries = check_boundaries(boundaries)
        for argument, value in (("pairwise_weight", pairwise_weight), ("listwise_weight", listwise_weight)):
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"`{argument}` must be a finite number >= 0. Received: {argument}={value}")
        self.pairwise_weight = float(pairwise_weight)
        self.listwise_weight = float(listwise_weight)
        self.same_bucket = bool(same_bucket)
        self.window = check_window(window)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        lists = self.pairwise_weight > 0 or self.listwise_weight > 0
        observed = self.read(y_true, y_pred, sample_weight, lists)
        loss = cross_entropy(observed, self.reduction)
        if self.pairwise_weight > 0:
            same_bucket = self.same_bucket and bool(self.boundaries)
            loss = loss + self.pairwise_weight * pairwise_loss(observed, same_bucket, self.window, self.reduction)
        if self.listwise_weight > 0:
            loss = loss + self.listwise_weight * softmax_loss(observed, self.reduction)
        return reported(loss, observed)

    def get_config(self) -> dict[str, Any]:
        return {
            "boundaries": list(self.boundaries),
            "pairwise_weight": self.pairwise_weight,
            "listwise_weight": self.listwise_weight,
            "same_bucket": self.same_bucket,
            "window": self.window,
            "from_logits": self.from_logits,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }
