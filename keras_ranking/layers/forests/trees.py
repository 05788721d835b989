"""Decision trees as arrays, whatever library fitted them, and their values in float64: the reference of `Forest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# What counts as a missing value at a node; what does not and is NaN counts as 0.
MISSING = ("none", "zero", "nan")
NEAR_ZERO = 1e-35  # LightGBM: what is no further from zero is zero
LINKS = ("identity", "sigmoid", "softmax", "exp", "signed_square")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Tree:
    """One decision tree of I internal nodes and L leaves.

    A row at node i goes to `left[i]` if its value of `feature[i]` is at most `threshold[i]`, or in `categories[i]`; to `right[i]` if not. A
    child below 0 is the leaf ~child. A tree with no internal node is leaf 0.

    Args:
        feature: int (I,), columns of the rows.
        threshold: float32 (I,), see `round_down`.
        left, right: int (I,).
        missing: of `MISSING`, a node each.
        missing_left: bool (I,), where a missing value goes.
        categories: by node, the values of a category that go left: whole numbers from 0 on. Everything else, missing too, goes right.
        values: float64 (L, K), of each leaf.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing: Sequence[str]
    missing_left: np.ndarray
    values: np.ndarray
    categories: dict[int, np.ndarray] = field(default_factory=dict)

    def goes_left(self, node: int, x: np.ndarray) -> np.ndarray:
        """Whether each row (B, F) goes left at a node, (B,)."""
        value = x[:, self.feature[node]]
        unknown = np.isnan(value)
        if node in self.categories:
            whole = np.trunc(np.where(unknown, -1.0, value.astype(np.float64)))
            return np.asarray((value > -1) & np.isin(whole, self.categories[node]))
        kind = self.missing[node]
        value = np.where(unknown & (kind != "nan"), 0.0, value)
        absent = unknown if kind == "nan" else np.abs(value) <= NEAR_ZERO if kind == "zero" else np.zeros_like(unknown)
        return np.asarray(np.where(absent, self.missing_left[node], value <= self.threshold[node]))

    def leaf_of(self, x: np.ndarray) -> np.ndarray:
        """The leaf of each row, float32 (B, F) -> int64 (B,)."""
        at = np.full(len(x), 0 if len(self.feature) else ~0)
        while (inner := at >= 0).any():
            for node in np.unique(at[inner]):
                rows = np.flatnonzero(at == node)
                at[rows] = np.where(self.goes_left(int(node), x[rows]), self.left[node], self.right[node])
        return ~at


@dataclass(frozen=True)
class Trees:
    """A forest: values of the leaves that rows reach, summed over trees, or their mean, and a link.

        raw(x)        = base + scale * sum over trees of values of the leaf of x
        prediction(x) = link(raw(x))

    Args:
        trees: all with the same K.
        features: names of the columns of the rows, in order.
        base: (K,).
        scale: of the sum, 1 / number of trees for a mean.
        link: 'identity'; 'sigmoid' of `slope` * raw; 'softmax' over K; 'exp'; 'signed_square', sign(raw) raw^2.
        slope: of the sigmoid.
    """

    trees: Sequence[Tree]
    features: Sequence[str]
    base: np.ndarray
    scale: float = 1.0
    link: str = "identity"
    slope: float = 1.0

    @property
    def outputs(self) -> int:
        return len(self.base)

    def leaves(self, x: np.ndarray) -> np.ndarray:
        """(B, F) -> the leaf of each tree, int64 (B, T)."""
        return np.stack([tree.leaf_of(np.asarray(x, np.float32)) for tree in self.trees], axis=1)

    def raw(self, x: np.ndarray) -> np.ndarray:
        """(B, F) -> float64 (B, K)."""
        total = np.zeros((len(x), self.outputs))
        for tree, leaf in zip(self.trees, self.leaves(x).T, strict=True):
            total += tree.values[leaf]
        return self.base + self.scale * total

    def prediction(self, x: np.ndarray) -> np.ndarray:
        """(B, F) -> float64 (B, K)."""
        raw = self.raw(x)
        if self.link == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-self.slope * raw)))
        if self.link == "softmax":
            powers = np.exp(raw - raw.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return np.asarray(np.exp(raw) if self.link == "exp" else np.sign(raw) * raw**2 if self.link == "signed_square" else raw)


def round_down(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 that is at most each threshold: of a float32 x, x <= threshold is then the same in float32 and float64.

    A threshold at or beyond float32's largest number is that number: each finite x is at most it, and +inf is not.

    Example:
        >>> float(round_down(np.array([0.1]))[0]) <= 0.1 < float(np.float32(0.1))
        True
    """
    exact = np.minimum(np.asarray(thresholds, np.float64), _FLOAT32_MAX)
    with np.errstate(over="ignore"):
        near = exact.astype(np.float32)
    return np.where(near.astype(np.float64) > exact, np.nextafter(near, np.float32(-np.inf)), near)
