"""Replay: the contribution rate of a new model at the first position, from sessions that were shown in random order. numpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ranking.metrics.checks import binary, by_group_and_score, column, group_codes, starts_of


class ReplayRate(NamedTuple):
    """Result of `replay_contribution_rate`.

    Attributes:
        rate: contribution rate among the matched requests.
        matched: number of matched requests; a tied request is a fraction.
        requests: number of shuffled requests.

    Example:
        >>> kr.metrics.replay_contribution_rate([1, 0], [0.9, 0.1], ["a", "a"], [1, 2], [1, 1])
        ReplayRate(rate=1.0, matched=1.0, requests=1)
    """

    rate: float
    matched: float
    requests: int


def replay_contribution_rate(label: Any, score: Any, request: Any, position: Any, shuffled: Any) -> ReplayRate:
    """Replay: contributions per impression at position 1 that a model would have, estimated from shuffled sessions.

        m_r  = [the item shown first in r has the top score of r] / number of items that share the top score of r
        rate = sum_r m_r y_r / sum_r m_r        r over the shuffled requests, y_r = label of the item shown first

    A small share of sessions is served with the top N in uniformly random order; a request is matched when the new model ranks
    first the item that was shown first (LiRank, 2402.06859, stated). In these sessions the first item is a
    uniform draw from the list. So the matched requests are a random sample, one in N, of what the model would have shown, and the rate
    is that of the model, for any policy that wrote the log. If the order of the policy was shown, the matched requests are those on
    which model and policy agree, and the rate is not that of the model: such rows are excluded by `shuffled`.

    A request is matched with probability 1 / N, N the length of its list. With lists of different length the rate is therefore a
    mean over requests with weights 1 / N. The paper does not mention ties; *our choice*: an item that shares the top score with
    k - 1 others is 1 / k of a match, the expected value if ties were broken at random.

    Args:
        label: (n,) of 0 and 1, 1 = a contribution.
        score: (n,), any monotone scale, for the same position for all items (not from the tower of the position shown); infinite
            allowed, NaN an error. All items of a request must be given, else the top item is not that of the model.
        request: (n,), rows of a request may be anywhere.
        position: (n,) whole numbers, 1 = shown first, 0 = unknown. A request without a 1 is never matched.
        shuffled: (n,) of 0 and 1, the same for all rows of a request: whether its session was shuffled.

    Returns:
        `ReplayRate(rate, matched, requests)`: rate, NaN without a match; `matched`, sum of m_r, an integer if there are no ties;
        number of shuffled requests. Standard error without ties: sqrt(rate (1 - rate) / matched).

    Raises:
        ValueError: no rows, lengths differ, a label or `shuffled` other than 0 or 1, a NaN score, a position that is not a
            whole number >= 0, two first positions or two values of `shuffled` in one request.

    Example:
        >>> requests, shown = ["a", "a", "b", "b", "c", "c"], [1, 2, 1, 2, 1, 2]
        >>> kr.metrics.replay_contribution_rate([1, 0, 0, 0, 1, 0], [0.9, 0.1, 0.8, 0.3, 0.2, 0.7], requests, shown, [1] * 6)
        ReplayRate(rate=0.5, matched=2.0, requests=3)
    """
    positive = binary(label)
    rows = positive.size
    values = column("score", score, rows)
    place = column("position", position, rows, least=0.0)
    flag = column("shuffled", shuffled, rows)
    for name, array, wrong in (
        ("position", place, place != np.floor(place)),
        ("shuffled", flag, (flag != 0) & (flag != 1)),
    ):
        if wrong.any():
            stated = "hold whole numbers" if name == "position" else "be 0 or 1"
            raise ValueError(f"`{name}` must {stated}. Received: {array[wrong.argmax()]} at row {int(wrong.argmax())}")
    codes = group_codes(request, rows)
    order = by_group_and_score(codes, values)
    code, value = codes[order], values[order]
    group = starts_of(code)
    size = np.diff(np.r_[group, rows])
    first = place[order] == 1
    mixed = np.maximum.reduceat(flag[order], group) != np.minimum.reduceat(flag[order], group)
    again = np.add.reduceat(first.astype(np.int64), group) > 1
    if mixed.any():
        rows_of = np.flatnonzero(codes == code[group[mixed.argmax()]])
        row = rows_of[flag[rows_of] != flag[rows_of[0]]][0]
        raise ValueError(f"`shuffled` must be the same in all rows of a request. Received: {flag[row]} at row {row}")
    if again.any():
        row = np.flatnonzero((codes == code[group[again.argmax()]]) & (place == 1))[1]
        raise ValueError(f"`position` must be 1 once in a request. Received: another 1 at row {row}")
    top = value == np.repeat(value[group + size - 1], size)
    share = top / np.repeat(np.add.reduceat(top.astype(np.float64), group), size)
    match = np.where(first & (flag[order] == 1), share, 0.0)
    matched = float(match.sum())
    rate = float((match * positive[order]).sum()) / matched if matched > 0 else float("nan")
    return ReplayRate(rate, matched, int(flag[order][group].sum()))
