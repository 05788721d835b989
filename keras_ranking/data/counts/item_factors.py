"""Item vectors from who took what: a truncated SVD of members and items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers
from keras_ranking.data.log_columns import require_column, require_frame
from keras_ranking.values import numbers_of, raise_first

_VERSION = 1


class ItemFactors:
    """A vector for each item, and the scale of members' vectors that are made of them. `item_factors` makes it.

    A member who took items with vectors f_j has, by component,

        u = sum_j f_j / sqrt(n + shrink) / scale

    Args:
        item: column of the items.
        keys: the items, in order of the vectors.
        vectors: (items, dim).
        scale: (dim,), standard deviation of the members' vectors at fitting.
        shrink: see the formula.

    Example:
        >>> factors = kr.data.ItemFactors("item", ["a", "b"], np.array([[1.0], [-1.0]]), np.ones(1), shrink=3.0)
        >>> factors.member(sums=np.array([[1.0]]), counts=np.array([1.0])).tolist()
        [[0.5]]
    """

    def __init__(self, item: str, keys: Sequence[Any], vectors: np.ndarray, scale: np.ndarray, shrink: float) -> None:
        self.item, self.shrink = item, float(shrink)
        self.vectors, self.scale = np.asarray(vectors, dtype=np.float64), np.asarray(scale, dtype=np.float64)
        self.numbers = KeyNumbers((item,), keys)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    @property
    def digest(self) -> str:
        """A short digest of items and vectors, to tell whether two are the same."""
        content = json.dumps(self.numbers.as_json()).encode() + self.vectors.astype("<f8").tobytes() + self.scale.astype("<f8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def of_rows(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """The vector of each row's item (n, dim), 0 where it has none, and whether it has one (n,)."""
        codes = self.numbers.of_rows(rows, add=False)
        known = codes >= 0
        return np.where(known[:, None], np.append(self.vectors, np.zeros((1, self.dim)), axis=0)[codes], 0.0), known

    def member(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Members' vectors (n, dim) of the sums (n, dim) of the vectors of what they took, and how much it was (n,)."""
        return np.asarray(sums / np.sqrt(counts + self.shrink)[:, None] / self.scale, dtype=np.float64)

    def table(self, feature: Any, deviation: float = 0.1, seed: int = 0, dim: int | None = None) -> np.ndarray:
        """First values of the embedding table of an `Id`, `Category` or `Ids`: rows of items with a vector hold it, others are drawn.

        Args:
            feature: the column of the schema; items that share a row share the mean of their vectors.
            deviation: standard deviation of the table's numbers. Our choice: 0.1.
            seed: of the rows without an item, which are normal with a tenth of the deviation.
            dim: width of the table; further columns are drawn. None: that of the vectors.

        Returns:
            float32 (rows, dim); row 0, of missing ids, is zero.

        Raises:
            ValueError: a table narrower than the vectors, or a column without one table.
        """
        width, rows = self.dim if dim is None else int(dim), feature.rows
        if rows is None or width < self.dim:
            raise ValueError(f"the table of '{feature.name}' must have at least {self.dim} columns. Received: rows={rows}, dim={width}")
        out = np.random.default_rng(seed).normal(0.0, 0.1 * deviation, (rows, width))
        place = getattr(feature, "one", feature).encode(pd.Series(self.numbers.as_json()))
        sums, count = np.zeros((rows, self.dim)), np.bincount(place, minlength=rows)
        np.add.at(sums, place, self.vectors * (deviation / _size(self.vectors)))
        out[count > 0, : self.dim] = sums[count > 0] / count[count > 0, None]
        out[0] = 0.0
        return out.astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write the vectors to a file, by convention `*.npz`."""
        about = {"version": _VERSION, "kind": "ItemFactors", "item": self.item, "shrink": self.shrink, "keys": self.numbers.as_json()}
        with Path(path).open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), vectors=self.vectors, scale=self.scale)

    @classmethod
    def load(cls, path: str | Path) -> ItemFactors:
        """Read what `save` wrote.

        Raises:
            ValueError: a file of something else, or of a later version.
        """
        with np.load(path) as file:
            about = json.loads(str(file["about"])) if "about" in file.files else {}
            if about.get("version") != _VERSION or about.get("kind") != "ItemFactors":
                raise ValueError(f"'{path}' holds no item factors that this version reads.")
            return cls(about["item"], about["keys"], file["vectors"], file["scale"], about["shrink"])


def item_factors(
    events: pd.DataFrame,
    member: str,
    item: str,
    value: str,
    dim: int = 32,
    kind: str = "taken",
    shrink: float = 5.0,
    seed: int = 0,
) -> ItemFactors:
    """Vectors of items that the same members took, or judged alike.

    With A members x items, members' counts r_m and items' counts c_i over A's entries:

        taken     A_mi = 1 where the value is above 0;   A'_mi = A_mi / sqrt((r_m + shrink) (c_i + shrink)),   first component left out
        residual  A_mi = sum of the values, which are outcomes less what was expected;   A'_mi = A_mi / sqrt(sum_m A_mi^2 + shrink)
        both      half of the dimensions from each

    The vectors are the right singular vectors of A' of the largest singular values (for 'residual' and 'both' times the root of the
    value), by the sparse solver of SciPy. Memory grows with the entries, not with members times items. Fit on rows that are earlier than
    those that train with the vectors, or on training rows: then a model reads its own labels in them, and later rows should say when to
    stop. After Koren, Bell, Volinsky (2009) and the centred co-occurrence of Levy and Goldberg (2014); scaling and shrinking are ours.

    Args:
        events: rows to fit on; those with a missing member, item or value are left out.
        member, item: their columns.
        value: column of what the member did with the item: an outcome, or a residual.
        dim: width of the vectors.
        kind: see the table.
        shrink: added to counts.
        seed: of the solver's first vector.

    Returns:
        `ItemFactors`.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: a missing column, another kind, fewer members or items than `dim` needs, a value that is no finite number.
        ImportError: SciPy is not installed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> log = pd.DataFrame({"member": rng.integers(0, 40, 400), "item": rng.integers(0, 20, 400), "click": 1})
        >>> kr.data.item_factors(log, "member", "item", "click", dim=4).vectors.shape
        (20, 4)
    """
    try:
        from scipy.sparse import coo_matrix
        from scipy.sparse.linalg import svds
    except ImportError as error:
        raise ImportError("item factors need SciPy: pip install 'keras-ranking[data]'") from error
    require_frame(events)
    if kind not in ("taken", "residual", "both"):
        raise ValueError(f"`kind` must be 'taken', 'residual' or 'both'. Received: kind={kind!r}")
    if dim < 1 or (kind == "both" and dim % 2):
        raise ValueError(f"`dim` must be positive, and even with kind='both'. Received: dim={dim}")
    require_column(events, value)
    values, wrong = numbers_of(events[value])
    raise_first(value, events[value], [(wrong | np.isinf(values), "must hold finite numbers")])
    members, items = KeyNumbers((member,)), KeyNumbers((item,))
    rows = events[~np.isnan(values)]
    row, column, values = members.of_rows(rows), items.of_rows(rows), values[~np.isnan(values)]
    used = (row >= 0) & (column >= 0) & ((values > 0) | (kind != "taken"))
    shape = (len(members), len(items))
    needed = (dim if kind != "both" else dim // 2) + 1
    if min(shape) <= needed:
        raise ValueError(f"`dim` needs more than {needed} members and items with a value. Received: dim={dim} for {shape}")
    start = np.random.default_rng(seed).normal(size=min(shape))

    def components(matrix: Any, count: int, skip: int) -> tuple[np.ndarray, np.ndarray]:
        _, found, right = svds(matrix, k=count + skip, v0=start)
        order = np.argsort(-found)[skip:]
        vectors = right[order].T
        return vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)]), found[order]

    summed = coo_matrix((values[used], (row[used], column[used])), shape=shape).tocsr()
    parts = []
    if kind in ("taken", "both"):
        at = used & (values > 0)
        taken = coo_matrix((np.ones(int(at.sum())), (row[at], column[at])), shape=shape).tocsr()
        taken.data[:] = 1.0
        by_member, by_item = (np.asarray(taken.sum(axis=axis)).ravel() for axis in (1, 0))
        taken = taken.multiply(1 / np.sqrt(by_member + shrink)[:, None]).multiply(1 / np.sqrt(by_item + shrink)[None, :]).tocsr()
        vectors, roots = components(taken, dim if kind == "taken" else dim // 2, skip=1)
        parts.append(vectors if kind == "taken" else vectors * np.sqrt(roots))
    if kind in ("residual", "both"):
        squares = np.asarray(summed.multiply(summed).sum(axis=0)).ravel()
        vectors, roots = components(
            summed.multiply(1 / np.sqrt(squares + shrink)[None, :]).tocsr(), dim if kind == "residual" else dim // 2, skip=0
        )
        parts.append(vectors * np.sqrt(roots))
    vectors = np.concatenate([part / _size(part) for part in parts], axis=1)
    counts = np.asarray((summed != 0).sum(axis=1)).ravel()
    taken_by = summed if kind != "taken" else (summed != 0).astype(np.float64)
    made = (taken_by @ vectors) / np.sqrt(counts + shrink)[:, None]
    return ItemFactors(item, items.as_json(), vectors, np.maximum(made[counts > 0].std(axis=0), 1e-12), shrink)


def _size(vectors: np.ndarray) -> float:
    """Root of the mean square."""
    return max(float(np.sqrt(np.mean(vectors**2))), 1e-12)
