"""FoldIn: members' vectors from what they took, items' vectors from who took them, point in time."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from keras_ranking.data.counts.exposure import expected_outcomes
from keras_ranking.data.counts.item_factors import ItemFactors
from keras_ranking.data.counts.keys import KeyNumbers
from keras_ranking.data.counts.running_sums import RunningSums
from keras_ranking.data.counts.state import State, check_delay
from keras_ranking.data.log_columns import require_column
from keras_ranking.values import numbers_of, raise_first


class FoldIn(State):
    """How well a member and an item fit, with vectors for new members and fresh items, and nothing fitted again.

    Items of the past have vectors f (`ItemFactors`). At time t

        u_m(t) = sum of y_j f_j over what m did up to t - own_delay / sqrt(n_m + shrink) / scale         0 without such a past
        S_i(t) = sum of y_j u_j,   R_i(t) = sum of (y_j - expected_j) u_j,   n_i(t) = sum of y_j,
                 each over the rows of item i up to t - delay, u_j being the member's vector at that row
        similarity = u_m . S_i / (n_i + shrink)             is the member like those who took the item?
        affinity   = u_m . R_i / sqrt(n_i + 3)              and unlike those who passed it over?

    So an item has a vector from its first minutes, made of its takers. All numbers are our choice.

    Args:
        factors: vectors of items, fitted on earlier rows.
        member: column of the member.
        outcome: column of what was done, 0 or more; a row with a missing one counts for nobody.
        expected: what an outcome is compared with: 'list_size' (1 / rows of the list), or a column, such as the share of `ChoiceStrengths`.
        request: column of the list, for 'list_size'.
        time: column with whole Unix seconds or datetimes.
        delay: seconds after which others' outcomes are known, a whole number >= 1.
        own_delay: seconds after which the member's own are.
        shrink: see the formula.
        vectors: whether the vectors of member and item (S_i / (n_i + shrink)) are columns too, one for each component.

    Raises:
        ValueError: a delay below 1, 'list_size' without `request`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> past = pd.DataFrame({"member": rng.integers(0, 40, 400), "item": rng.integers(0, 20, 400), "click": 1})
        >>> factors = kr.data.item_factors(past, "member", "item", "click", dim=4)
        >>> today = pd.DataFrame({"member": [1, 1, 2, 2], "item": [3, 99, 3, 99], "time": [0, 10, 20, 900], "click": 1, "rate": 0.5})
        >>> fold = kr.data.FoldIn(factors, "member", expected="rate")
        >>> fold.update(today)["member_item_similarity"].round(3).tolist()
        [0.0, 0.0, 0.0, 0.067]
    """

    settings: ClassVar[tuple[str, ...]] = (
        "member",
        "outcome",
        "expected",
        "request",
        "time",
        "delay",
        "own_delay",
        "shrink",
        "vectors",
    )

    def __init__(
        self,
        factors: ItemFactors,
        member: str,
        outcome: str = "click",
        expected: str = "list_size",
        request: str | None = None,
        time: str = "time",
        delay: int = 600,
        own_delay: int = 1,
        shrink: float = 5.0,
        vectors: bool = False,
    ) -> None:
        super().__init__(time)
        if expected == "list_size" and request is None:
            raise ValueError("expected='list_size' needs `request`, the column of the list. Received: request=None")
        if not 0 < shrink < np.inf:
            raise ValueError(f"`shrink` must be a finite number above 0. Received: shrink={shrink}")
        self.factors, self.member, self.outcome, self.expected, self.request = factors, member, outcome, expected, request
        self.delay, self.own_delay = check_delay("delay", delay), check_delay("own_delay", own_delay)
        self.shrink, self.vectors = float(shrink), bool(vectors)
        self.keys = {"member": KeyNumbers((member,)), "item": KeyNumbers((factors.item,))}
        self.sums = {"member": RunningSums(factors.dim + 1, self.own_delay), "item": RunningSums(2 * factors.dim + 1, self.delay)}

    @property
    def columns(self) -> tuple[str, ...]:
        pair = f"{self.member}_{self.factors.item}"
        names = [f"{pair}_similarity", f"{pair}_affinity"]
        if self.vectors:
            names += [f"{side}_vector_{part}" for side in (self.member, self.factors.item) for part in range(self.factors.dim)]
        return tuple(names)

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        require_column(events, self.outcome)
        outcome, no_number = numbers_of(events[self.outcome])
        wrong = no_number | (outcome < 0) | np.isinf(outcome)
        raise_first(self.outcome, events[self.outcome], [(wrong, "must hold finite numbers, 0 or more")])
        known = ~np.isnan(outcome)
        outcome = np.where(known, outcome, 0.0)
        members, items = self.keys["member"].of_rows(events), self.keys["item"].of_rows(events)
        vectors, has = self.factors.of_rows(events)
        own = np.flatnonzero((members >= 0) & has & (outcome > 0))
        amounts = np.column_stack([vectors[own] * outcome[own, None], outcome[own]])
        self.sums["member"].add(members[own], times[own], amounts, len(self.keys["member"]))
        rows = np.flatnonzero(counted & known & (items >= 0))
        hoped = expected_outcomes(events, self.expected, self.request, counted & known)[rows]
        shown = self._members(members[rows], times[rows])
        amounts = np.column_stack([shown * outcome[rows, None], shown * (outcome[rows] - hoped)[:, None], outcome[rows]])
        self.sums["item"].add(items[rows], times[rows], amounts, len(self.keys["item"]))

    def _members(self, codes: np.ndarray, times: np.ndarray) -> np.ndarray:
        found = self.sums["member"].until(codes, times - self.own_delay)
        return self.factors.member(found[:, :-1], found[:, -1])

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        member = self._members(self.keys["member"].of_rows(rows, add=False), times)
        found = self.sums["item"].until(self.keys["item"].of_rows(rows, add=False), times - self.delay)
        dim, count = self.factors.dim, found[:, -1]
        taken, residual = found[:, :dim] / (count + self.shrink)[:, None], found[:, dim:-1] / np.sqrt(count + 3.0)[:, None]
        out = dict(zip(self.columns, ((member * taken).sum(axis=1), (member * residual).sum(axis=1)), strict=False))
        if self.vectors:
            out |= dict(zip(self.columns[2:], [*member.T, *taken.T], strict=True))
        return out

    def _more(self) -> dict[str, np.ndarray]:
        about = {"item": self.factors.item, "keys": self.factors.numbers.as_json(), "shrink": self.factors.shrink}
        return {"factors": np.array(json.dumps(about)), "factor_vectors": self.factors.vectors, "factor_scale": self.factors.scale}

    @classmethod
    def _made(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> FoldIn:
        kept = json.loads(str(arrays["factors"]))
        factors = ItemFactors(kept["item"], kept["keys"], arrays["factor_vectors"], arrays["factor_scale"], kept["shrink"])
        return cls(factors, **settings)
