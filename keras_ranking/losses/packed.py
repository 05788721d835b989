"""Packed targets: label, position and request in one tensor, and how losses and metrics read them.

Keras gives a loss only `y_true`, `y_pred` and `sample_weight`. A ranking loss also needs the position of an item and its request, so
these are stored with the label in the last axis of `y_true`:

| index | value | meaning |
|---|---|---|
| 0 | label | 0 or 1 (or a grade >= 0; for `ObservedValueLoss` any finite number) |
| 1 | position | rank shown, 1-based; 0 = none |
| 2 | request | an integer, equal within one request of one row; the tokens of a request are contiguous |

`y_pred` holds LOGITS (..., T, K), one per position tower. `sample_weight` (..., T) is 0 for a token that is not a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_ranking.losses.provenance import is_probability
from keras_ranking.losses.values import check_labels, is_host, known, out_of_range
from keras_ranking.ops.masks import mask_of

# float32 is exact for all integers up to this one; a larger request number could become equal to the next.
_LARGEST_EXACT = 2**24


class Observed(NamedTuple):
    """The inputs of a loss or metric: tensors of one shape (B, T), and two scalars of the whole batch."""

    label: Any
    logit: Any
    bucket: Any
    request: Any
    weight: Any
    wrong_label: Any
    wrong_weight: Any


class Reading(NamedTuple):
    """What a loss or metric demands of its inputs.

    Attributes:
        largest_label, smallest_label: labels that count are from one to the other; infinite ones are not among them.
        lists: whether items of one request are compared, so that rows of one item hold nothing.
        logits: whether predictions of a sigmoid are an error.
        values: whether to look at the numbers even where that waits for a device.
    """

    largest_label: float = 1.0
    lists: bool = False
    logits: bool = True
    values: bool = True
    smallest_label: float = 0.0


def check_boundaries(boundaries: Sequence[int]) -> tuple[int, ...]:
    """`boundaries` as a tuple of increasing positive integers, or a ValueError that names it."""
    values = tuple(boundaries)
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1 for value in values)
    if not whole or any(later <= earlier for earlier, later in pairwise(values)):
        raise ValueError(f"`boundaries` must be increasing positive integers. Received: boundaries={boundaries!r}")
    return tuple(int(value) for value in values)


def targets(label: Any, position: Any = None, request: Any = None) -> np.ndarray:
    """Label, position and request of every token -> packed targets float32 (..., T, 3). numpy.

    Args:
        label: (..., T) numbers >= 0. NaN (unknown) is kept: give such a token weight 0.
        position: (..., T) whole numbers >= 0, 1-based rank shown. None: 0 everywhere (no position).
        request: (..., T) whole numbers from 0 to 2^24, numbered within the row. None: 0 everywhere (a row is one request).

    Returns:
        float32 array (..., T, 3).

    Raises:
        ValueError: shapes differ, a label is negative or infinite, or a position or request is not a whole number in its range.

    Example:
        >>> kr.losses.targets([[1, 0, 0]], position=[[1, 2, 3]]).shape
        (1, 3, 3)
    """
    labels = np.asarray(label, dtype=np.float32)
    wrong = (labels < 0) | np.isinf(labels)
    if wrong.any():
        where = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(f"`label` must hold finite numbers >= 0, and NaN where it is unknown. Received: {labels[where]} at {where}")
    columns = [labels]
    for name, values in (("position", position), ("request", request)):
        column = np.zeros(labels.shape) if values is None else np.asarray(values, dtype=np.float64)
        if column.shape != labels.shape:
            raise ValueError(f"`{name}` must have the shape of `label`. Received: {name} {column.shape}, label {labels.shape}")
        bad = ~((column >= 0) & (column <= _LARGEST_EXACT) & (column == np.floor(column)))
        if bad.any():
            where = tuple(int(index) for index in np.argwhere(bad)[0])
            raise ValueError(f"`{name}` must hold whole numbers from 0 to {_LARGEST_EXACT}. Received: {column[where]} at {where}")
        columns.append(column.astype(np.float32))
    return np.stack(columns, axis=-1)


def largest_request(y_true: Any, sample_weight: Any = None) -> int:
    """The `window` with which in-request pairs are exact: the largest number of tokens that a request spans in a row. numpy.

    Args:
        y_true: packed targets (B, T, 3).
        sample_weight: (B, T). Tokens of weight 0 form no pair and are ignored. None: all are used.

    Returns:
        max over requests of (last token - first token + 1) among its tokens with a weight; 0 if there are none.

    Example:
        >>> kr.losses.largest_request(kr.losses.targets([[1, 0, 0]], request=[[1, 1, 2]]))
        2
    """
    packed = np.asarray(y_true)
    if packed.ndim != 3 or packed.shape[-1] != 3:
        raise ValueError(f"`y_true` must be packed targets (B, T, 3). Received: shape {packed.shape}")
    kept = np.ones(packed.shape[:2], dtype=bool) if sample_weight is None else np.asarray(sample_weight) > 0
    row, token = np.nonzero(kept)
    if row.size == 0:
        return 0
    request = packed[row, token, 2]
    order = np.lexsort((token, request, row))
    row, token, request = row[order], token[order], request[order]
    starts = np.flatnonzero(np.r_[True, (row[1:] != row[:-1]) | (request[1:] != request[:-1])])
    ends = np.r_[starts[1:], row.size] - 1
    return int((token[ends] - token[starts] + 1).max())


def position_bucket(position: Any, boundaries: Sequence[int] = ()) -> Any:
    """Tower of a position: the number of upper bounds that it exceeds.

        bucket(p) = sum_b [p > b]          boundaries (1, 4):  1 -> 0,  2..4 -> 1,  5 and beyond -> 2

    Position 0 (none) is in bucket 0.

    Args:
        position: a tensor of any shape, 1-based rank shown.
        boundaries: increasing upper bounds of the position buckets.

    Returns:
        int32 of the shape of `position`.

    Example:
        >>> keras.ops.convert_to_numpy(kr.losses.position_bucket(np.array([1, 2, 4, 5]), boundaries=(1, 4))).tolist()
        [0, 1, 1, 2]
    """
    position = ops.convert_to_tensor(position)
    bucket = ops.zeros_like(position, dtype="int32")
    for bound in boundaries:
        bucket = bucket + ops.cast(position > ops.cast(bound, position.dtype), "int32")
    return bucket


def observed_tower(y_true: Any, y_pred: Any, boundaries: Sequence[int] = ()) -> tuple[Any, Any, Any, Any]:
    """Label, and the logit of the tower of the position where the item was shown.

        bucket = sum_b [position > b],    logit = y_pred[..., bucket]

    The other towers are masked out, not multiplied by 0: their gradient is exactly zero, even if their logits overflow.

    Args:
        y_true: packed targets (..., T, 3).
        y_pred: logits (..., T, K), K = len(boundaries) + 1.
        boundaries: increasing upper bounds of the position buckets. (): one tower.

    Returns:
        `(label, logit, bucket, request)`, each (..., T); label and logit in the dtype of `y_pred`, the others int32.

    Raises:
        ValueError: the last axis of `y_true` is not 3, or K is not len(boundaries) + 1.

    Example:
        >>> y_true = kr.losses.targets([[1.0, 0.0]], position=[[1, 7]])
        >>> label, logit, bucket, request = kr.losses.observed_tower(y_true, [[[0.1, 0.2], [0.3, 0.4]]], boundaries=(4,))
        >>> [round(float(value), 1) for value in logit[0]]
        [0.1, 0.4]
    """
    bounds = check_boundaries(boundaries)
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    towers = len(bounds) + 1
    if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] not in (3, None):
        raise ValueError(
            "`y_true` must be packed targets (..., T, 3) and `y_pred` logits (..., T, K). "
            f"Received: y_true {tuple(y_true.shape)}, y_pred {tuple(y_pred.shape)}"
        )
    if y_pred.shape[-1] not in (towers, None):
        raise ValueError(
            f"`y_pred` must have one logit per position tower, K = len(boundaries) + 1 = {towers}. "
            f"Received: K={y_pred.shape[-1]}, boundaries={bounds}"
        )
    _check_same(y_true.shape[:-1], y_pred.shape[:-1])
    # Integers are read from the float tensor before any cast: in bfloat16, requests 256 and 257 are equal.
    position, request = ops.cast(y_true[..., 1], "int32"), ops.cast(y_true[..., 2], "int32")
    bucket = position_bucket(position, bounds)
    chosen = ops.equal(ops.expand_dims(bucket, -1), ops.arange(towers, dtype="int32"))
    logit = ops.sum(ops.where(chosen, y_pred, ops.zeros_like(y_pred)), axis=-1)
    return ops.cast(y_true[..., 0], y_pred.dtype), logit, bucket, request


def is_packed(y_true: Any, y_pred: Any) -> bool:
    """Whether `y_true` is packed targets: (B, T, 3) with logits (B, T, K) or, for one tower, (B, T)."""
    rank = len(y_true.shape)
    return rank == 3 and y_true.shape[-1] in (3, None) and len(y_pred.shape) in (2, 3)


def unpack(y_true: Any, y_pred: Any, sample_weight: Any, boundaries: Sequence[int], dtype: str, reading: Reading | None = None) -> Observed:
    """Targets, logits and weights as tensors (B, T), from packed or from plain input.

    Packed: `y_true` (B, T, 3), `y_pred` (B, T, K), or (B, T) for K = 1. Plain: `y_true` (B, N) or (B,), `y_pred` (B, N),
    (B, N, 1) or (B,): every row is one request, without position. `sample_weight`: None, (B,), (B, T) or (B, T, 1).

    Tokens of weight 0 get label 0 and logit 0, without gradient: values of padding, even NaN, change neither value nor
    gradient.

    Raises:
        ValueError: shapes that do not fit, or what `reading` excludes, where it is known.
    """
    reading = Reading() if reading is None else reading
    mask, given = mask_of(y_pred), (y_true, sample_weight)
    if reading.logits and is_probability(y_pred):
        raise ValueError(
            "`y_pred` must be logits, to which a sigmoid is applied here. Received: the output of a sigmoid or softmax; "
            "leave out the activation of the last layer, or give a loss from_logits=False"
        )
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.cast(ops.convert_to_tensor(y_pred), dtype)
    if is_packed(y_true, y_pred):
        if len(y_pred.shape) == 2:
            y_pred = ops.expand_dims(y_pred, -1)
        label, logit, bucket, request = observed_tower(y_true, y_pred, boundaries)
    else:
        label, logit = _plain(y_true, y_pred, boundaries, dtype)
        bucket = request = ops.zeros_like(label, dtype="int32")
        if reading.lists and 1 in (label.shape[1], logit.shape[1]):
            raise ValueError(
                "`y_true` must hold the items of a request in a row, (B, N) with N > 1, or be packed targets (B, T, 3) that name the "
                f"request of each item (`keras_ranking.losses.targets`). Received: {tuple(y_true.shape)}, where each row is a "
                "request of one item and nothing can be compared"
            )
    weight = _weights(sample_weight, label)
    if mask is not None and len(mask.shape) == len(weight.shape):
        weight = weight * ops.cast(mask, weight.dtype)
    wrong_label, wrong_weight = out_of_range(label, weight, reading.largest_label, reading.smallest_label)
    if all(part is None or is_host(part) for part in given) and mask is None:
        check_arrays(*given, reading.largest_label, reading.smallest_label)
    elif reading.values and (known(wrong_label) or known(wrong_weight)):
        check_labels(ops.convert_to_numpy(label), ops.convert_to_numpy(weight), reading.largest_label, reading.smallest_label)
    counted = weight > 0
    nothing = ops.zeros_like(label)
    label, logit = ops.where(counted, label, nothing), ops.where(counted, logit, nothing)
    return Observed(label, logit, bucket, request, weight, wrong_label, wrong_weight)


def check_arrays(y_true: Any, sample_weight: Any, largest: float, smallest: float = 0.0) -> None:
    """Check labels and weights in arrays or lists, packed or plain.

    Raises:
        ValueError: a label that counts outside [`smallest`, `largest`], or a weight that is negative or not finite.
    """
    label: np.ndarray = np.asarray(y_true)
    label = label[..., 0] if label.ndim == 3 else label
    weight = np.ones(label.shape) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == label.ndim + 1:
        weight = weight[..., 0]
    if weight.ndim < label.ndim:
        weight = weight.reshape(weight.shape + (1,) * (label.ndim - weight.ndim))
    labels = np.broadcast_to(label, np.broadcast_shapes(label.shape, weight.shape))
    check_labels(labels, np.broadcast_to(weight, label.shape), largest, smallest)


def request_segments(request: Any) -> tuple[Any, Any]:
    """Requests (B, T) -> (segment of every token, int32 (B*T,); number of segments, B*T).

    A new segment starts at every row and wherever the request changes. B*T is an upper bound that depends only on the shape,
    so that the segment operations can be compiled; segments after the last are empty.
    """
    rows, tokens = ops.shape(request)[0], ops.shape(request)[1]
    changed = ops.cast(ops.not_equal(request[:, 1:], request[:, :-1]), "int32")
    within = ops.cumsum(ops.pad(changed, [[0, 0], [1, 0]]), axis=1)
    first = ops.expand_dims(ops.arange(rows, dtype="int32"), 1) * tokens
    return ops.reshape(ops.cast(within, "int32") + first, (-1,)), rows * tokens


def _plain(y_true: Any, y_pred: Any, boundaries: Sequence[int], dtype: str) -> tuple[Any, Any]:
    if boundaries:
        raise ValueError(
            "`boundaries` need packed targets (B, T, 3), which carry the position. "
            f"Received: y_true {tuple(y_true.shape)}, y_pred {tuple(y_pred.shape)}, boundaries={tuple(boundaries)}"
        )
    shapes = f"Received: y_true {tuple(y_true.shape)}, y_pred {tuple(y_pred.shape)}"
    label, score = ops.cast(y_true, dtype), y_pred
    if len(score.shape) == len(label.shape) + 1 and score.shape[-1] == 1:
        score = ops.squeeze(score, -1)
    if len(label.shape) == 1:
        label = ops.expand_dims(label, -1)
    if len(score.shape) == 1:
        score = ops.expand_dims(score, -1)
    if len(label.shape) == 3 and label.shape[-1] == 1:
        label = ops.squeeze(label, -1)
    if len(score.shape) == 3 and score.shape[-1] == 1:
        score = ops.squeeze(score, -1)
    if len(label.shape) != 2 or len(score.shape) != 2:
        raise ValueError(f"`y_true` must be packed targets (B, T, 3) or labels (B, N) of the shape of `y_pred`. {shapes}")
    _check_same(label.shape, score.shape)
    return label, score


def _weights(sample_weight: Any, like: Any) -> Any:
    if sample_weight is None:
        return ops.ones_like(like)
    weight = ops.cast(ops.convert_to_tensor(sample_weight), like.dtype)
    if len(weight.shape) == 3 and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, -1)
    if len(weight.shape) == 1:
        weight = ops.expand_dims(weight, -1)
    if len(weight.shape) not in (0, 2) or any(
        given not in (1, None) and wanted is not None and given != wanted
        for given, wanted in zip(tuple(weight.shape), tuple(like.shape), strict=False)
    ):
        raise ValueError(f"`sample_weight` must be (B,) or (B, T). Received: {tuple(weight.shape)} for targets {tuple(like.shape)}")
    return ops.ones_like(like) * weight


def _check_same(first: Any, second: Any) -> None:
    if any(a is not None and b is not None and a != b for a, b in zip(tuple(first), tuple(second), strict=True)):
        raise ValueError(f"`y_true` and `y_pred` must have the same tokens. Received: {tuple(first)} and {tuple(second)}")
