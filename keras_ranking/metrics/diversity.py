"""Diversity of the items of a list, and a greedy re-ranker that separates similar items. numpy, vectorised.

A list is ordered by its scores, best first; of equal scores the earlier row comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_ranking.metrics.checks import column, group_codes
from keras_ranking.metrics.ranking import GroupedValue
from keras_ranking.ops.keys import distinct_keys


class GapViolations(NamedTuple):
    """Result of `gap_violations`.

    Attributes:
        mean: mean number of violations per list.
        share: share of lists with at least one violation.
        groups: number of lists.

    Example:
        >>> kr.metrics.gap_violations(["x", "x", "y"], [3, 2, 1], ["a"] * 3, gap=1)
        GapViolations(mean=1.0, share=1.0, groups=1)
    """

    mean: float
    share: float
    groups: int


class _Lists(NamedTuple):
    rows: np.ndarray  # (R, N) row of the item at each place of each list, best first; -1 beyond the list
    size: np.ndarray  # (R,)


def _lists(scores: Any, groups: Any, k: int | None) -> tuple[np.ndarray, _Lists]:
    values = column("scores", scores)
    codes = group_codes(groups, values.size)
    if k is not None and (isinstance(k, bool) or int(k) != k or k < 1):
        raise ValueError(f"`k` must be a positive integer or None. Received: k={k}")
    order = np.lexsort((-values, codes))  # stable: equal scores stay in the order of the rows
    starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) != 0])
    size = np.diff(np.r_[starts, order.size])
    longest = int(size.max()) if k is None else min(int(size.max()), int(k))
    place = np.arange(longest)
    inside = place[None, :] < size[:, None]
    rows = np.where(inside, order[np.minimum(starts[:, None] + place, order.size - 1)], -1)
    return values, _Lists(rows, np.minimum(size, longest))


def _codes(name: str, values: Any, rows: int) -> np.ndarray:
    """Integers for values; a missing value (None, NaN, NaT) is different from every other."""
    found = distinct_keys(name, values, missing=True)
    if found.places.size != rows:
        raise ValueError(f"`{name}` must have one value per row, {rows}. Received: shape {found.places.shape}")
    codes, missing = found.places, found.places < 0
    codes[missing] = len(found.values) + np.arange(missing.sum())
    return codes


def intra_list_similarity(vectors: Any, scores: Any, groups: Any, k: int | None = 10) -> GroupedValue:
    """Mean cosine similarity of the pairs among the best k items of a list, averaged over lists.

        ILS_g = 2 / (n (n - 1)) sum_{i < j} cos(x_i, x_j),    n = min(k, size of the list)

    Source: Ziegler et al., WWW 2005, as a mean instead of a sum.

    Args:
        vectors: (n, d), one per item; a zero vector has similarity 0 to all.
        scores: (n,), by which a list is ordered.
        groups: (n,), the request of every row.
        k: number of best items that are compared; None: all.

    Returns:
        `GroupedValue(value, groups)`: the mean over lists with at least two items, and their number; (NaN, 0) if there are none.

    Raises:
        ValueError: lengths differ, a value that is not finite, `k` below 1.

    Example:
        >>> kr.metrics.intra_list_similarity([[1, 0], [1, 0], [0, 1]], [0.9, 0.8, 0.1], ["a"] * 3, k=2)
        GroupedValue(value=1.0, groups=1)
    """
    values, lists = _lists(scores, groups, k)
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2 or len(array) != values.size or not np.isfinite(array).all():
        raise ValueError(f"`vectors` must be finite, one per row, ({values.size}, d). Received: shape {array.shape}")
    length = np.linalg.norm(array, axis=1, keepdims=True)
    unit = np.divide(array, length, out=np.zeros_like(array), where=length > 0)
    enough = lists.size > 1
    if not enough.any():
        return GroupedValue(float("nan"), 0)
    rows, size = lists.rows[enough], lists.size[enough]
    inside = (rows >= 0)[..., None]
    picked = np.where(inside, unit[np.maximum(rows, 0)], 0.0)
    # sum over pairs of x_i . x_j = (|sum x|^2 - sum |x|^2) / 2
    pairs = ((picked.sum(axis=1) ** 2).sum(axis=1) - (picked**2).sum(axis=(1, 2))) / (size * (size - 1))
    return GroupedValue(float(pairs.mean()), int(enough.sum()))


def coverage(values: Any, scores: Any, groups: Any, k: int | None = 10) -> GroupedValue:
    """Number of distinct authors, types or topics among the best k items of a list / number of these items; mean over lists.

        coverage_g = |{v_i : i among the best k}| / min(k, size of the list)

    Args:
        values: (n,), author or type of every row; a missing value is different from all others.
        scores, groups, k: see `intra_list_similarity`.

    Returns:
        `GroupedValue(value, groups)`: the mean, and the number of lists.

    Example:
        >>> kr.metrics.coverage(["x", "x", "y"], [0.9, 0.8, 0.1], ["a"] * 3, k=2)
        GroupedValue(value=0.5, groups=1)
    """
    scored, lists = _lists(scores, groups, k)
    codes = _codes("values", values, scored.size)
    held = np.where(lists.rows >= 0, codes[np.maximum(lists.rows, 0)], -1)
    held.sort(axis=1)
    first = np.ones_like(held, dtype=bool)
    first[:, 1:] = held[:, 1:] != held[:, :-1]
    distinct = (first & (held >= 0)).sum(axis=1)
    return GroupedValue(float((distinct / lists.size).mean()), len(lists.size))


def gap_violations(values: Any, scores: Any, groups: Any, gap: int, k: int | None = None) -> GapViolations:
    """Items that are fewer than `gap` places after an item of the same author or type.

    An item at place p violates the rule if one of the `gap` places before it has the same value: between two items with the same
    value there must be at least `gap` others. A set-wise model can replace such rules (LiGR, 2502.03417; stated second-hand).

    Args:
        values, scores, groups, k: see `coverage`; k=None: whole lists.
        gap: at least 1.

    Returns:
        `GapViolations(mean, share, groups)`.

    Raises:
        ValueError: lengths differ, `gap` or `k` below 1.

    Example:
        >>> kr.metrics.gap_violations(["x", "x", "y", "x"], [4, 3, 2, 1], ["a"] * 4, gap=1)
        GapViolations(mean=1.0, share=1.0, groups=1)
    """
    if isinstance(gap, bool) or int(gap) != gap or gap < 1:
        raise ValueError(f"`gap` must be a positive integer. Received: gap={gap}")
    scored, lists = _lists(scores, groups, k)
    codes = _codes("values", values, scored.size)
    held = np.where(lists.rows >= 0, codes[np.maximum(lists.rows, 0)], -1)
    violates = np.zeros(held.shape, dtype=bool)
    for back in range(1, min(int(gap), held.shape[1] - 1) + 1):
        violates[:, back:] |= (held[:, back:] == held[:, :-back]) & (held[:, back:] >= 0)
    counts = violates.sum(axis=1)
    return GapViolations(float(counts.mean()), float((counts > 0).mean()), len(counts))


def greedy_rerank(scores: Any, groups: Any, values: Mapping[str, Any], gaps: Mapping[str, int]) -> np.ndarray:
    """New places of the items of each list: each place, from the top, gets the item with the best score that violates no gap rule.

    If every remaining item violates a rule, the item with the fewest violations is taken, and of these the one with the best score, so
    all items are kept. It is the baseline for a set-wise model.

    Args:
        scores, groups: (n,), see `intra_list_similarity`.
        values: name -> (n,), such as {'author': ..., 'type': ...}; missing values violate no rule.
        gaps: name -> minimum number of other items between two items with the same value.

    Returns:
        int64 (n,), the place of every row in its list, from 1 on. Work: O(longest list x rows x sum of gaps).

    Raises:
        ValueError: lengths differ, an unknown name, a gap below 1.

    Example:
        >>> kr.metrics.greedy_rerank([4, 3, 2, 1], ["a"] * 4, {"author": ["x", "x", "y", "z"]}, {"author": 1}).tolist()
        [1, 3, 2, 4]
    """
    scored, lists = _lists(scores, groups, None)
    rules = []
    for name, gap in gaps.items():
        if name not in values:
            raise ValueError(f"`gaps` must name columns of `values`, {sorted(values)}. Received: '{name}'")
        if isinstance(gap, bool) or int(gap) != gap or gap < 1:
            raise ValueError(f"`gaps` must be positive integers. Received: '{name}': {gap}")
        codes = _codes(name, values[name], scored.size)
        rules.append((np.where(lists.rows >= 0, codes[np.maximum(lists.rows, 0)], -1), int(gap)))
    count, longest = lists.rows.shape
    free = lists.rows >= 0
    taken = np.full((count, longest), -1)  # by place: index within the list in order of score
    which = np.arange(count)
    for place in range(longest):
        broken = np.zeros((count, longest), dtype=np.int64)
        for codes, gap in rules:
            for back in range(1, min(gap, place) + 1):
                before = taken[:, place - back]
                same = codes == np.take_along_axis(codes, np.maximum(before, 0)[:, None], axis=1)
                broken += same & (before >= 0)[:, None]
        # Columns are in order of score, so the first with the fewest violations is the best.
        best = np.where(free, broken, np.iinfo(np.int64).max).argmin(axis=1)
        some = free[which, best]
        taken[some, place] = best[some]
        free[which[some], best[some]] = False
    places = np.zeros(scored.size, dtype=np.int64)
    at = np.nonzero(taken >= 0)
    places[lists.rows[at[0], taken[at]]] = at[1] + 1
    return places
