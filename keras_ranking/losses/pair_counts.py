"""How many pairs and positives give a gradient in the in-request pairwise loss, counted from labels. numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ranking.losses.packed import check_boundaries


@dataclass(frozen=True)
class PairCounts:
    """Pairs of items of one request with different labels, and those of them that `InRequestPairwise` compares.

        pairs     = #{(i, j): same request, y_i > y_j}
        used      = #{(i, j): same request, y_i > y_j, and the same position bucket where `same_bucket`}
        positives = #{i: y_i > 0},   positives_used = #{i: y_i > 0 and i is the better item of a pair that is used}

    A positive that is in no pair learns from the point-wise loss alone. Items of weight 0 are in no pair. Our choice.

    Attributes:
        pairs, used: numbers of pairs.
        positives, positives_used: numbers of items with a label above 0.

    Example:
        >>> counts = kr.losses.PairCounts.of([1, 0, 0, 1], request=[7, 7, 7, 8], position=[1, 2, 9, 1], boundaries=(4,))
        >>> counts.pairs, counts.used, counts.share, counts.positives_share
        (2, 1, 0.5, 0.5)
    """

    pairs: int = 0
    used: int = 0
    positives: int = 0
    positives_used: int = 0

    @classmethod
    def of(
        cls,
        label: Any,
        request: Any,
        position: Any = None,
        boundaries: Sequence[int] = (),
        same_bucket: bool = True,
        weight: Any = None,
    ) -> PairCounts:
        """Count the pairs of items.

        Args:
            label: (N,) numbers; NaN = unknown, in no pair.
            request: (N,) integers, equal within one request.
            position: (N,) rank shown, 1-based, or the value that the towers go by; read with `boundaries`.
            boundaries: increasing upper bounds of the position buckets, as of the loss.
            same_bucket: whether the loss pairs items of one bucket alone; without boundaries all are of one.
            weight: (N,) of the items; None: all count.

        Raises:
            ValueError: lengths that differ, or boundaries without a position.
        """
        y, group = np.asarray(label, dtype=np.float64), np.asarray(request)
        bounds = check_boundaries(boundaries)
        if bounds and position is None:
            raise ValueError(f"`position` must be given with `boundaries`. Received: position=None, boundaries={bounds}")
        bucket = np.zeros(len(y), dtype=np.int64) if position is None else np.searchsorted(bounds, np.asarray(position), side="left")
        weights = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
        for name, values in (("request", group), ("position", bucket), ("weight", weights)):
            if len(values) != len(y):
                raise ValueError(f"`{name}` must have the length of `label`, {len(y)}. Received: {len(values)}")
        there = (weights > 0) & ~np.isnan(y)
        y, bucket, number = y[there], bucket[there], np.unique(group[there], return_inverse=True)[1].reshape(-1)
        inside = number * (len(bounds) + 1) + bucket if same_bucket else number
        return cls(_pairs(y, number)[0], _pairs(y, inside)[0], int((y > 0).sum()), int((_pairs(y, inside)[1] & (y > 0)).sum()))

    @property
    def share(self) -> float:
        """Share of the pairs that are used; NaN where there are none."""
        return self.used / self.pairs if self.pairs else float("nan")

    @property
    def positives_share(self) -> float:
        """Share of the positives that are in a pair that is used; NaN where there are none."""
        return self.positives_used / self.positives if self.positives else float("nan")

    def __add__(self, other: PairCounts) -> PairCounts:
        parts = ("pairs", "used", "positives", "positives_used")
        return PairCounts(*(getattr(self, name) + getattr(other, name) for name in parts))

    def plain(self) -> dict[str, Any]:
        """For JSON: the numbers and the two shares, None where there is nothing to share."""
        shares = {name: None if np.isnan(value := getattr(self, name)) else value for name in ("share", "positives_share")}
        return {"pairs": self.pairs, "used": self.used, "positives": self.positives, "positives_used": self.positives_used, **shares}


def _pairs(label: np.ndarray, group: np.ndarray) -> tuple[int, np.ndarray]:
    """Pairs of different labels inside groups, and which items are above another of their group."""
    if not len(label):
        return 0, np.zeros(0, dtype=bool)
    grade = np.unique(label, return_inverse=True)[1].reshape(-1)
    lowest = np.full(int(group.max()) + 1, len(label))
    np.minimum.at(lowest, group, grade)
    sizes = np.bincount(group)
    alike = np.unique(group * (int(grade.max()) + 1) + grade, return_counts=True)[1]
    return int(((sizes**2).sum() - (alike**2).sum()) // 2), grade > lowest[group]
