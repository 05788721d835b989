"""Result of a skew check, by feature and by score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass
class Difference:
    """Differences of one feature or score.

    Attributes:
        compared, differ: number of values, and of those that differ (features: in any bit; scores: by more than the bound).
        largest, mean: absolute difference, also of integers.
        worst: request id, row of the log and both values of the largest difference.
    """

    compared: int = 0
    differ: int = 0
    largest: float = 0.0
    total: float = 0.0
    worst: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return self.total / self.compared if self.compared else 0.0

    def add(self, got: np.ndarray, wanted: np.ndarray, differ: np.ndarray, places: list[dict[str, Any]]) -> None:
        """Add one list of values; `places` has the request and row of each."""
        if not len(got):
            return
        with np.errstate(invalid="ignore"):
            gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).reshape(len(got), -1).max(axis=1)
        gap = np.where(np.isnan(gap), np.inf, gap)
        differ = np.any(differ.reshape(len(got), -1), axis=1)
        self.compared += len(got)
        self.differ += int(differ.sum())
        self.total += float(gap.sum())
        at = int(np.where(differ, gap, -1.0).argmax() if differ.any() else gap.argmax())
        if differ[at] and (not self.worst or gap[at] > self.largest):
            self.worst = {**places[at], "exported": got[at].tolist(), "expected": wanted[at].tolist()}
        self.largest = max(self.largest, float(gap.max()))

    def to_json(self) -> dict[str, Any]:
        return {**{key: value for key, value in asdict(self).items() if key != "total"}, "mean": self.mean}


@dataclass
class SkewReport:
    """Result of `check_skew`.

    Attributes:
        requests: number of replayed requests.
        left_out: number of requests that are longer than a compiled export accepts.
        bound: largest difference of a score that is not counted.
        same_schema: whether version and Keras model have the same schema.
        features: column -> encoding by the exported graph compared with that of the data pipeline.
        scores: "<way> <task>" -> scores compared with those of the Keras model; ways are 'serving_default', 'raw' and 'training'.

    Example:
        >>> report = kr.serving.SkewReport(requests=8, left_out=0, bound=1e-5, same_schema=True, features={}, scores={})
        >>> report.found, report.summary()
        (False, '8 requests: no difference')
    """

    requests: int
    left_out: int
    bound: float
    same_schema: bool
    features: dict[str, Difference]
    scores: dict[str, Difference]

    @property
    def found(self) -> bool:
        """Whether anything differs."""
        return any(entry.differ for entry in (*self.features.values(), *self.scores.values()))

    def summary(self) -> str:
        """One line with all names that differ, features first."""
        names = [f"feature '{name}' ({entry.differ} of {entry.compared})" for name, entry in self.features.items() if entry.differ]
        names += [f"score '{name}' (up to {entry.largest:.3g})" for name, entry in self.scores.items() if entry.differ]
        return f"{self.requests} requests: " + ("; ".join(names) if names else "no difference")

    def rows(self) -> list[list[str]]:
        """For a table: kind, name, compared, differ, largest, mean, worst."""
        kinds = (("feature", self.features), ("score", self.scores))
        return [
            [kind, name, str(e.compared), str(e.differ), f"{e.largest:.3g}", f"{e.mean:.3g}", _place(e.worst)]
            for kind, entries in kinds
            for name, e in entries.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything above as plain JSON values."""
        return {
            "found": self.found,
            "requests": self.requests,
            "left_out": self.left_out,
            "bound": self.bound,
            "same_schema": self.same_schema,
            "features": {name: entry.to_json() for name, entry in self.features.items()},
            "scores": {name: entry.to_json() for name, entry in self.scores.items()},
        }


def _place(worst: Mapping[str, Any]) -> str:
    if not worst:
        return ""
    return f"request {worst['request']}, row {worst['row']}: {worst['exported']} for {worst['expected']}"
