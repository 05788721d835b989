"""What a skew check found, by feature and by score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass
class Difference:
    """What was compared under one name, and how it differed.

    Attributes:
        compared, differ: values, and those that differ (features: in any bit; scores: by more than the bound).
        largest, mean: absolute difference; of integers too.
        worst: where the largest stands: request id, row of the log, and both values.
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
        """Count one list of values; `places` says of each where it stands."""
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
        requests: how many were replayed. left_out: longer than a compiled export takes.
        bound: largest difference of a score that counts as none.
        same_schema: whether version and Keras model have one schema.
        features: column -> encoding by the exported graph against that of the data pipeline.
        scores: "<way> <task>" -> scores against the Keras model's: ways are 'serving_default', 'raw' and 'training'.
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
        """One line: what differs, the features first."""
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
