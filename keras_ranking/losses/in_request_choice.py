"""Likelihood of what was chosen of a request, or that nothing was."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.losses.packed import request_segments
from keras_ranking.losses.reduction import PackedLoss, divided, reported
from keras_ranking.losses.values import is_host, known
from keras_ranking.ops.rows import for_own_rows

SEVERAL = ("refuse", "split")
_LEAST = 1e-6  # float32 does not hold 1 - sum P to more
_MORE_THAN_ONE = 1.0 + 1e-5  # sums of labels that are parts of one


@keras.saving.register_keras_serializable(package="keras_ranking")
class InRequestChoice(PackedLoss):
    """Negative log-likelihood of the one item chosen of a request, or of none, by the probabilities of `ChoiceProbability`.

        P_i = sigmoid(y_pred_i)                                 log-odds as `ChoiceProbability(logits=True)` gives them
        m_r = sum_{i in r} y_i                                  r: items of a request with weight > 0
        L_r = - sum_{i in r} w_i y_i ln P_i - (1 - m_r) w_r ln(1 - sum_{i in r} P_i),       w_r = mean of w_i, i in r
        L   = sum_r L_r / sum_i w_i

    Items of weight 0, such as those with an unknown label, are left out of r but not of the softmax of the model: a request
    without a positive then says that none of the *others* was chosen. A binary cross-entropy of the same P also has its minimum at the
    right probabilities, and a model may be trained by it (`ObservedTowerLoss`); it takes the items of a request for independent. This
    is the likelihood of the outcome, which loses nothing, and so the default of models with `choice`. *Our choice:* the divisor is
    the number of items, so that the value has the size of a binary cross-entropy next to it in a weighted sum. 1 - sum P below 1e-6 counts
    as 1e-6.

    Labels may be parts of one, such as 0.3 and 0.2: with 0.5 nothing was chosen. The tokens of a request must be contiguous in their row.

    Args:
        several: what becomes of a request with m_r > 1. 'refuse': an error where the numbers are known, else the loss is NaN. 'split':
            its labels are divided by m_r, as the mean over which of its positives was the one; probabilities then sum to at most 1
            where the mean number of positives is higher.
        from_logits: whether `y_pred` are log-odds; else the probabilities P, at least 1e-7 from 0 and 1.
        reduction: 'mean_with_sample_weight', or 'sum': without the divisor.
        name: name of the loss.
        dtype: dtype of the computation. None: `keras.config.floatx()`, at least float32, for logits of any dtype.

    Call arguments:
        y_true: packed targets (B, T, 3) (see `targets`), or labels (B, N) where a row is a request.
        y_pred: log-odds of P (B, T, 1) or (B, T).
        sample_weight: (B, T) or (B,), >= 0.

    Returns:
        Scalar.

    Raises:
        ValueError: an unknown `several`, shapes that do not fit, plain rows of one item, outputs of a sigmoid, labels outside [0, 1],
            weights that are negative or not finite, and requests with several positives.

    Example:
        >>> odds = kr.layers.ChoiceProbability(logits=True)(np.zeros((2, 3), "float32"), slot=np.ones((2, 3), "int32"))
        >>> loss = kr.losses.InRequestChoice()
        >>> round(float(loss([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], odds)), 4)  # 2 log(4) / 6
        0.4621
    """

    largest_label = 1.0
    boundaries = ()

    def __init__(
        self,
        several: str = "refuse",
        from_logits: bool = True,
        reduction: str = "mean_with_sample_weight",
        name: str = "in_request_choice",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, reduction, from_logits)
        if several not in SEVERAL:
            raise ValueError(f"`several` must be one of {SEVERAL}. Received: several={several!r}")
        self.several = several

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        look = self.several == "refuse" and not self._looked
        observed = self.read(y_true, y_pred, sample_weight, lists=True)
        top, total, most = for_own_rows(_sums, observed.request, observed.label, observed.logit, observed.weight)
        wrong = ops.max(most) > _MORE_THAN_ONE
        value = divided(ops.sum(top), ops.sum(total), self.reduction)
        if self.several == "refuse":
            if is_host(y_true) or (look and known(wrong)):
                plain = [part if part is None or is_host(part) else ops.convert_to_numpy(part) for part in (y_true, sample_weight)]
                self.check(*plain)
            observed = observed._replace(wrong_label=ops.logical_or(observed.wrong_label, wrong))
        return reported(value, observed)

    def check(self, y_true: Any, sample_weight: Any) -> None:
        """As `PackedLoss.check`; also that no request has several positives.

        Raises:
            ValueError: how many do, and the first.
        """
        super().check(y_true, sample_weight)
        if self.several != "refuse":
            return
        packed: np.ndarray = np.asarray(y_true)
        if packed.ndim < 2:
            return
        label, request = (packed[..., 0], packed[..., 2]) if packed.ndim == 3 else (packed, np.zeros(packed.shape))
        weight = np.ones(label.shape) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        weight = np.broadcast_to(weight.reshape(weight.shape[:2] if weight.ndim > 1 else (*weight.shape, 1)), label.shape)
        check_choices(label, request, weight)

    def get_config(self) -> dict[str, Any]:
        return {
            "several": self.several,
            "from_logits": self.from_logits,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }


def check_choices(label: np.ndarray, request: np.ndarray, weight: np.ndarray) -> None:
    """Raise an error for requests, numbered within rows (B, T), with several positives among their items with a weight.

    Raises:
        ValueError: their number, and the first of them.
    """
    starts = np.ones(request.shape, dtype=bool)
    starts[:, 1:] = request[:, 1:] != request[:, :-1]
    first = np.flatnonzero(starts)
    sums = np.add.reduceat(np.where(weight > 0, label, 0.0).reshape(-1), first) if len(first) else np.zeros(0)
    several = np.flatnonzero(sums > _MORE_THAN_ONE)
    if len(several):
        row, token = (int(index) for index in np.unravel_index(first[several[0]], request.shape))
        raise ValueError(
            f"`y_true` must hold at most one positive for each request. Received: {len(several)} of {len(sums)} requests with more, the "
            f"first with {sums[several[0]]:g}, from item {token} of row {row} on; several='split', of a model choice_several='split', "
            "shares them out"
        )


def _sums(request: Any, *slots: Any) -> tuple[Any, Any, Any]:
    """sum_r L_r, sum_i w_i and the largest m_r, each (1,)."""
    segment, count = request_segments(request)
    label, logit, weight = (ops.reshape(x, (-1,)) for x in slots)
    shown = weight > 0
    zero = ops.zeros_like(logit)
    one = ops.ones_like(logit)

    def summed(values: Any) -> Any:
        return ops.segment_sum(ops.where(shown, values, zero), segment, count)

    positives = summed(label)
    many = ops.maximum(positives, ops.ones_like(positives))
    share = label / ops.take(many, segment, axis=0)
    chosen = ops.sum(ops.where(shown, weight * share * ops.softplus(-logit), zero))
    items = summed(one)
    mean = summed(weight) / ops.maximum(items, ops.ones_like(items))
    left = ops.maximum(1.0 - summed(ops.sigmoid(logit)), _LEAST * ops.ones_like(items))
    none = ops.sum(mean * ops.maximum(1.0 - positives, ops.zeros_like(positives)) * -ops.log(left))
    most = ops.max(ops.where(items > 0, positives, ops.zeros_like(positives)))
    value, total, most = (ops.reshape(part, (1,)) for part in (chosen + none, ops.sum(weight), most))
    return value, total, most
