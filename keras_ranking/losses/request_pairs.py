"""The pairs of items of one request, in blocks: work grows with the pairs that there are, not with the longest request."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_ranking.losses.packed import Observed
from keras_ranking.ops.rows import for_own_rows

# Pairs of one step of the loop: eager operations need many to be worth their overhead, and compiled ones few for short batches.
_FEWEST, _MOST, _EAGER = 2**13, 2**14, 2**17
_RUN = 16  # pairs of one item that are read together: what depends on that item alone is read once for them
_LAST = 2**30  # above every request number


class _Slots(NamedTuple):
    """What a pair depends on of each slot, (B, T)."""

    label: Any
    logit: Any
    bucket: Any
    request: Any
    weight: Any


class _Items(NamedTuple):
    """Items (N,) of all rows: the items of a request one after another, those with a larger label first."""

    logit: Any
    weight: Any
    bucket: Any
    place: Any  # in the row
    lower: Any  # the first item of the same request with a smaller label: it and all later ones are a pair with this item
    pairs: Any  # how many these are
    first: Any  # number of the first run of pairs of this item
    end: Any  # number after its last run


def pair_sums(observed: Observed, same_bucket: bool, window: int | None) -> tuple[Any, Any, Any]:
    """Sums over the pairs P of `InRequestPairwise`, and the gradient of the first.

        sum_P w_i w_j softplus(-(s_i - s_j)),   sum_P w_i w_j,   d first / d s

    Items are ordered by request and label. So the pairs of an item are with a range of later items, which is read in runs, and runs can
    be numbered: a loop whose length depends on the batch reads a block of numbers at a time. Shapes are fixed where programs are compiled.
    The work is N log N + sum_r p_r n_r for requests with p_r items above the others.

    Args:
        observed: tensors (B, T).
        same_bucket: pair only items of one bucket.
        window: pair only items less than this number of tokens apart; None: all.

    Returns:
        Two scalars and the gradient (B, T), none of which has a gradient of its own.
    """

    def sums(*own: Any) -> tuple[Any, Any, Any]:
        loss, total, slope = _sums(_Slots(*own), same_bucket, window)
        return loss[None], total[None], slope

    loss, total, slope = for_own_rows(sums, *(ops.stop_gradient(getattr(observed, name)) for name in _Slots._fields))
    return ops.sum(loss), ops.sum(total), slope


def _sums(observed: _Slots, same_bucket: bool, window: int | None) -> tuple[Any, Any, Any]:
    items, order = _ordered(observed)
    count = ops.shape(items.logit)[0]
    block = (min(_MOST, max(_FEWEST, count)) if isinstance(count, int) else _MOST) // _RUN
    if keras.backend.backend() == "torch":  # eager: one step of as many as there are, up to a size that fits a cache
        block = min(_EAGER, max(_FEWEST, int(items.end[-1]) * _RUN)) // _RUN
    # The loop counts blocks: XLA takes a loop of a known number of runs, in steps of a block, for one of no step if a block is larger.
    blocks = (items.end[-1] + (block - 1)) // block
    zero = ops.zeros_like(items.logit[0])

    def more(number: Any, *_: Any) -> Any:
        return number < blocks

    def add(number: Any, loss: Any, total: Any, slope: Any) -> tuple[Any, ...]:
        one, other, keep = _block(items, number * block, block, count)

        def of_one(values: Any) -> Any:
            return ops.take(values, one)[:, None]

        if same_bucket:
            keep = ops.logical_and(keep, ops.equal(of_one(items.bucket), ops.take(items.bucket, other)))
        if window is not None:
            keep = ops.logical_and(keep, ops.abs(of_one(items.place) - ops.take(items.place, other)) < window)
        pair = of_one(items.weight) * ops.take(items.weight, other)
        pair = ops.where(keep, pair, ops.zeros_like(pair))
        margin = of_one(items.logit) - ops.take(items.logit, other)
        margin = ops.where(pair > 0, margin, ops.zeros_like(margin))
        change = pair * ops.sigmoid(-margin)
        of_others = ops.segment_sum(ops.reshape(change, (-1,)), ops.reshape(other, (-1,)), count)
        slope = slope + of_others - ops.segment_sum(ops.sum(change, axis=1), one, count)
        return number + 1, loss + ops.sum(pair * ops.softplus(-margin)), total + ops.sum(pair), slope

    _, loss, total, slope = ops.while_loop(more, add, (ops.zeros_like(blocks), zero, zero, ops.zeros_like(items.logit)))
    slope = ops.take_along_axis(ops.reshape(slope, ops.shape(order)), ops.argsort(order, axis=1), axis=1)
    return loss, total, slope


def _ordered(observed: _Slots) -> tuple[_Items, Any]:
    """The items in their order, those without a weight last in their row and in no pair; and the order (B, T)."""
    label, logit, weight = observed.label, observed.logit, observed.weight
    key = ops.where(weight > 0, observed.request, ops.full_like(observed.request, _LAST))
    by_label = ops.argsort(-label, axis=1)
    by_request = ops.argsort(ops.take_along_axis(key, by_label, axis=1), axis=1)  # stable: keeps the order by label
    order = ops.cast(ops.take_along_axis(by_label, by_request, axis=1), "int32")
    key, label, logit, weight, bucket = (
        ops.take_along_axis(values, order, axis=1) for values in (key, label, logit, weight, observed.bucket)
    )
    new_request = ops.not_equal(key[:, 1:], key[:, :-1])
    new_label = ops.logical_or(new_request, ops.not_equal(label[:, 1:], label[:, :-1]))
    lower = _end_of_run(new_label)
    key, logit, weight, bucket, place = (ops.reshape(values, (-1,)) for values in (key, logit, weight, bucket, order))
    pairs = ops.where(key < _LAST, _end_of_run(new_request) - lower, ops.zeros_like(lower))
    runs = (pairs + (_RUN - 1)) // _RUN
    end = ops.cumsum(runs)
    return _Items(logit, weight, bucket, place, lower, pairs, end - runs, end), order


def _end_of_run(change: Any) -> Any:
    """Whether each token but the first of a row begins a run (B, T - 1) -> the place after the last token of the run, int32 (B * T,)."""
    change = ops.reshape(ops.pad(ops.cast(change, "int32"), [[0, 0], [1, 0]], constant_values=1), (-1,))
    run = ops.cumsum(change) - 1
    return ops.take(ops.cumsum(ops.segment_sum(ops.ones_like(run), run, ops.shape(run)[0])), run)


def _block(items: _Items, start: Any, block: int, count: Any) -> tuple[Any, Any, Any]:
    """The item (R,) of each of the runs `start`, ..., `start + block - 1`, its other items (R, K), and which of these pairs there are."""
    # The item of run r is the number of items whose runs all come before r.
    ended = items.end - start
    within = ops.logical_and(ended > 0, ended < block)
    steps = ops.segment_sum(ops.cast(within, "int32"), ops.where(within, ended, ops.zeros_like(ended)), block)
    one = ops.sum(ops.cast(ended <= 0, "int32")) + ops.cumsum(steps)
    number = start + ops.arange(block, dtype="int32")
    one = ops.cast(ops.minimum(one, count - 1), "int32")  # Keras makes a float of the number where its float type is bfloat16
    at = ((number - ops.take(items.first, one)) * _RUN)[:, None] + ops.arange(_RUN, dtype="int32")[None, :]
    there = ops.logical_and(at < ops.take(items.pairs, one)[:, None], (number < items.end[-1])[:, None])
    return one, ops.where(there, ops.take(items.lower, one)[:, None] + at, 0), there
