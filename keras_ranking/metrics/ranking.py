"""Metrics of the order of items: AUC over all rows, and AUC, NDCG and MRR within groups (requests). numpy, exact, vectorised.

No result depends on the order of the rows, even with tied scores: a tied pair counts half in an AUC, and NDCG and MRR are expected
values over a random order of the tied items.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ranking.metrics.checks import binary, by_group_and_score, column, group_codes, optional_weights, starts_of


class GroupAUCs(NamedTuple):
    """Result of `per_request_auc`.

    Attributes:
        auc: (G,), AUC of every group that has both classes.
        row: (G,), the first row of each of these groups in the input.

    Example:
        >>> kr.metrics.per_request_auc([1, 0, 1, 0], [0.9, 0.1, 0.2, 0.7], ["a", "a", "b", "b"]).row.tolist()
        [0, 2]
    """

    auc: np.ndarray
    row: np.ndarray


class GroupedValue(NamedTuple):
    """A mean over groups, as `grouped_auc`, `ndcg` and `mrr` return it.

    Attributes:
        value: the mean.
        groups: number of groups in the mean.

    Example:
        >>> kr.metrics.mrr([0, 1], [0.9, 0.8], ["a", "a"])
        GroupedValue(value=0.5, groups=1)
    """

    value: float
    groups: int


def per_request_auc(labels: Any, scores: Any, groups: Any, weights: Any = None) -> GroupAUCs:
    """AUC within every group that has both classes.

        AUC_g = sum_{i positive, j negative in g} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum_i w_i sum_j w_j)

    Args:
        labels: (n,) of 0 and 1.
        scores: (n,), any monotone scale; infinite allowed, NaN an error.
        groups: (n,), the request of every row, integers, text or times; rows of a group may be anywhere. None may be missing.
        weights: (n,) >= 0. A row of weight 0 is ignored. None: all 1.

    Returns:
        `GroupAUCs(auc, row)`, both (G,): `groups[row]` is the group, and `members[row]` its member, for a bootstrap.
        Two calls with the same labels, groups and weights return the same rows in the same order. O(n log n).

    Raises:
        ValueError: no rows, lengths differ, a label other than 0 or 1, a NaN score, a negative weight; a missing group, or groups as floats
            so large that different ones may be equal.

    Example:
        >>> kr.metrics.per_request_auc([1, 0, 1, 0, 0], [0.9, 0.1, 0.2, 0.2, 0.7], ["a", "a", "b", "b", "b"]).auc.tolist()
        [1.0, 0.25]
    """
    positive = binary(labels)
    values = column("scores", scores, positive.size)
    codes = group_codes(groups, positive.size)
    weight = optional_weights(weights, positive.size)
    return aucs_in_order(positive, values, codes, weight, by_group_and_score(codes, values))


def aucs_in_order(positive: np.ndarray, values: np.ndarray, codes: np.ndarray, weight: np.ndarray | None, order: np.ndarray) -> GroupAUCs:
    """`per_request_auc` of checked arrays; `order` are the rows by group, then by ascending score."""
    code, value = codes[order], values[order]
    tie = starts_of(code, value)
    mass = positive[order].astype(np.float64) if weight is None else weight[order] * positive[order]
    above = np.add.reduceat(mass, tie)
    if weight is None:
        below = np.diff(np.r_[tie, order.size]) - above
    else:
        below = np.add.reduceat(weight[order] * ~positive[order], tie)
    group = starts_of(code[tie])
    negatives, positives = np.add.reduceat(below, group), np.add.reduceat(above, group)
    running = np.cumsum(below)
    before = np.repeat(running[group] - below[group], np.diff(np.r_[group, tie.size]))
    wins = np.add.reduceat(above * (running - before - 0.5 * below), group)
    both = (positives > 0) & (negatives > 0)
    first = np.minimum.reduceat(order, tie[group])
    return GroupAUCs(wins[both] / (positives[both] * negatives[both]), first[both])


def grouped_auc(labels: Any, scores: Any, groups: Any, weights: Any = None) -> GroupedValue:
    """Mean over groups (requests) of the exact AUC within the group; each group counts once.

    Groups without a positive or without a negative have no AUC and are ignored.

    Args:
        labels, scores, groups, weights: see `per_request_auc`.

    Returns:
        `GroupedValue(value, groups)`: the mean and the number of groups in it; (NaN, 0) if no group has both classes.

    Raises:
        ValueError: see `per_request_auc`.

    Example:
        >>> kr.metrics.grouped_auc([1, 0, 1, 0, 1], [0.9, 0.1, 0.2, 0.2, 0.7], [1, 1, 2, 2, 3])
        GroupedValue(value=0.75, groups=2)
    """
    each = per_request_auc(labels, scores, groups, weights).auc
    return GroupedValue(float(each.mean()) if each.size else float("nan"), int(each.size))


def auc(labels: Any, scores: Any, weights: Any = None) -> float:
    """AUC over all rows, exact; ties count half.

    Args:
        labels, scores, weights: see `per_request_auc`.

    Returns:
        AUC in [0, 1]; NaN if there is only one class.

    Raises:
        ValueError: see `per_request_auc`.

    Example:
        >>> kr.metrics.auc([1, 0, 0], [0.5, 0.5, 0.1])
        0.75
    """
    each = per_request_auc(labels, scores, np.zeros(np.shape(labels), dtype=np.int64), weights).auc
    return float(each[0]) if each.size else float("nan")


def ndcg(labels: Any, scores: Any, groups: Any, k: int | None = None) -> GroupedValue:
    """Mean over groups of NDCG@k, expected over a random order of tied items.

        DCG@k = sum_{rank <= k} (2^y - 1) / log2(rank + 1),    NDCG@k = DCG@k / (DCG@k of the best order)

    Groups whose labels are all equal are ignored: all 0 has no NDCG (keras-rs counts 0), and any other label has an NDCG of 1 for any
    scores, such as a list of one clicked item. So a log whose requests have one row each has no NDCG.

    Args:
        labels: (n,) grades >= 0.
        scores: (n,), NaN an error.
        groups: (n,).
        k: number of top items that are used; None: all.

    Returns:
        `GroupedValue(value, groups)`; (NaN, 0) if no group has two different labels.

    Raises:
        ValueError: no rows, lengths differ, a negative label, a NaN score, k not positive.

    Example:
        >>> round(kr.metrics.ndcg([0, 1, 0], [0.9, 0.8, 0.1], [7, 7, 7], k=10).value, 4)
        0.6309
    """
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise ValueError(f"`k` must be a positive integer or None. Received: k={k!r}")
    grade = column("labels", labels, least=0.0, most=1000.0).astype(np.float64)
    values = column("scores", scores, grade.size)
    codes = group_codes(groups, grade.size)
    order, best_order = by_group_and_score(codes, -values), by_group_and_score(codes, -grade)
    found, _ = dcg_in_order(grade[order], values[order], codes[order], k)
    best, counted = dcg_in_order(grade[best_order], grade[best_order], codes[best_order], k)
    return mean_ndcg(found, best, counted)


def mean_ndcg(found: np.ndarray, best: np.ndarray, counted: np.ndarray) -> GroupedValue:
    """Mean of DCG over best DCG of the groups that are counted."""
    count = int(counted.sum())
    return GroupedValue(float((found[counted] / best[counted]).mean()) if count else float("nan"), count)


def dcg_in_order(grade: np.ndarray, value: np.ndarray, code: np.ndarray, k: int | None) -> tuple[np.ndarray, np.ndarray]:
    """DCG of each group, and whether it has two different labels, from rows by group, then by descending score."""
    group = starts_of(code)
    size = np.diff(np.r_[group, grade.size])
    table = 1.0 / np.log2(np.arange(2, size.max() + 2, dtype=np.float64))
    if k is not None:
        table[k:] = 0.0
    tie = starts_of(code, value)
    length = np.diff(np.r_[tie, grade.size])
    gain = np.add.reduceat(np.exp2(grade) - 1.0, tie) / length
    discount = np.add.reduceat(table[np.arange(grade.size) - np.repeat(group, size)], tie)
    total: np.ndarray = np.add.reduceat(gain * discount, np.searchsorted(tie, group))
    return total, np.maximum.reduceat(grade, group) > np.minimum.reduceat(grade, group)


def mrr(labels: Any, scores: Any, groups: Any) -> GroupedValue:
    """Mean over groups of 1 / rank of the first positive item, expected over a random order of tied items.

    Groups without a positive are ignored (keras-rs counts them as 0), and groups without a negative, such as a list of one clicked item,
    whose rank is 1 for any scores. So a log whose requests have one row each has no MRR.

    In a block of m tied items, p of them positive, that starts at rank a, the first positive is the k-th of the block with
    probability C(m - k, p - 1) / C(m, p).

    Args:
        labels: (n,) of 0 and 1.
        scores: (n,), NaN an error.
        groups: (n,).

    Returns:
        `GroupedValue(value, groups)`; (NaN, 0) if no group has both labels.

    Raises:
        ValueError: no rows, lengths differ, a label other than 0 or 1, a NaN score.

    Example:
        >>> kr.metrics.mrr([0, 1, 0, 1], [0.9, 0.8, 0.5, 0.5], ["a", "a", "b", "b"])
        GroupedValue(value=0.625, groups=2)
    """
    positive = binary(labels)
    values = column("scores", scores, positive.size)
    codes = group_codes(groups, positive.size)
    order = by_group_and_score(codes, -values)
    each = reciprocal_ranks(positive[order], values[order], codes[order])
    return GroupedValue(float(each.mean()) if each.size else float("nan"), int(each.size))


def reciprocal_ranks(positive: np.ndarray, value: np.ndarray, code: np.ndarray) -> np.ndarray:
    """What `mrr` is the mean of, from rows by group, then by descending score."""
    tie = starts_of(code, value)
    size = np.diff(np.r_[tie, positive.size])
    hits = np.add.reduceat(positive.astype(np.int64), tie)
    # The first tied block with a positive, for each group that has one.
    block = np.flatnonzero(hits > 0)
    if block.size == 0:
        return np.zeros(0)
    block = block[starts_of(code[tie[block]])]
    group = starts_of(code)
    place = np.searchsorted(group, tie[block], side="right") - 1
    ranked = np.minimum.reduceat(positive, group)[place] == 0
    block, start = block[ranked], group[place[ranked]]
    rank = (tie[block] - start + 1).astype(np.float64)
    left, positives = size[block].astype(np.float64), hits[block].astype(np.float64)
    total, chance = np.zeros(block.size), np.ones(block.size)
    active = np.arange(block.size)
    while active.size:  # one iteration for every place in the longest tied block
        here = chance[active] * positives[active] / left[active]
        total[active] += here / rank[active]
        chance[active] -= here
        rank[active] += 1
        left[active] -= 1
        active = active[left[active] >= positives[active]]
    return total
