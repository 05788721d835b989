"""The utility of candidates, a weighted sum of their scores by task, and the utility that a ranking realises. numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ranking.metrics.checks import by_group_and_score, column, group_codes, starts_of
from keras_ranking.metrics.ranking import GroupedValue


def utility_score(scores: Mapping[str, Any], utility: Mapping[str, float]) -> np.ndarray:
    """One number to rank by: the weighted sum of scores by task.

        score = sum_t weight_t scores_t

    It is the output `score` of a model with this utility. Feed-SR and LiRank rank by such a sum of probabilities (stated; their weights
    are unknown). Give it to `replay_contribution_rate`, `greedy_rerank` or any other metric that takes scores.

    Args:
        scores: by task, (n,): a probability, a share of the highest grade, or a number in its unit. Tasks without a weight are ignored.
        utility: task -> weight, finite.

    Returns:
        (n,) float64. NaN where a score is NaN.

    Raises:
        ValueError: no weight, a weight that is not finite, or a task without scores.

    Example:
        >>> kr.metrics.utility_score({"click": [0.5, 0.25], "like": [0.0, 0.125]}, {"click": 1.0, "like": 4.0}).tolist()
        [0.5, 0.75]
    """
    if not utility:
        raise ValueError("`utility` must have at least one weight. Received: none")
    total: Any = 0.0
    for task, weight in utility.items():
        if task not in scores:
            raise ValueError(f"`utility` must name tasks that have scores, {list(scores)}. Received: {task!r}")
        if not np.isfinite(weight):
            raise ValueError(f"`utility` must have finite numbers as weights. Received: {weight!r} for task '{task}'")
        total = total + float(weight) * np.asarray(scores[task], dtype=np.float64)
    return np.asarray(total)


def realised_utility(utility: Any, scores: Any, groups: Any, k: int) -> GroupedValue:
    """What the first k items of each list were worth, by what happened.

        mean over lists g of  (1 / min(k, n_g)) sum of u_i over the k items of g with the highest scores

    Items of one score share their places: each counts with the share of its tied items that are among the first k.

    Args:
        utility: (n,), u: the weighted sum of the labels of an item, in the units of `utility_score`.
        scores: (n,), what the list is ranked by.
        groups: (n,), the request of every row.
        k: length of the head of the list, at least 1.

    Returns:
        `GroupedValue(value, groups)`.

    Raises:
        ValueError: `k` below 1, NaN, no row, or arrays of different lengths.

    Example:
        >>> kr.metrics.realised_utility([0.0, 5.0, 1.0], [0.9, 0.8, 0.7], ["a", "a", "a"], k=2)
        GroupedValue(value=2.5, groups=1)
    """
    if k < 1:
        raise ValueError(f"`k` must be a positive integer. Received: k={k}")
    value = column("scores", scores)
    worth = column("utility", utility, len(value))
    codes = group_codes(groups, len(value))
    order = by_group_and_score(codes, -value)
    worth, value, codes = worth[order], value[order], codes[order]
    lists = starts_of(codes)
    first = np.repeat(lists, np.diff([*lists, len(codes)]))
    ties = starts_of(codes, value)
    sizes = np.diff([*ties, len(codes)])
    begin = ties - first[ties]  # place of the first of the tied items
    share = np.repeat(np.clip((k - begin) / sizes, 0.0, 1.0), sizes)
    lengths = np.minimum(np.diff([*lists, len(codes)]), k)
    return GroupedValue(float((np.add.reduceat(share * worth, lists) / lengths).mean()), len(lists))
