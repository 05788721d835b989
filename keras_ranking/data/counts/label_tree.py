"""A tree of items by recursive spectral bisection of their similarity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers
from keras_ranking.data.log_columns import require_column, require_frame
from keras_ranking.ops.hashing import fingerprint64
from keras_ranking.values import numbers_of, raise_first

_VERSION = 1
_DEEPEST = 29  # nodes are int32
_DENSE = 200  # items up to which all eigenvectors are computed


class LabelTree:
    """A binary tree over items, in which similar items share nodes. `LabelTree.fit` makes it.

    The root is node 1, and the children of node k are 2 k and 2 k + 1: an item's last node tells its whole path, by halving. 0 is no node.

    Args:
        ids: the items.
        nodes: (items,) last node of each.

    Raises:
        ValueError: no ids, ids that occur twice or are missing, or nodes of another number.

    Example:
        >>> similarity = np.kron(np.eye(2), np.ones((2, 2)))
        >>> tree = kr.data.LabelTree.fit(similarity, ["tea", "coffee", "nail", "screw"], depth=1)
        >>> of = dict(zip(tree.ids, tree.nodes(tree.ids).tolist()))
        >>> of["tea"] == of["coffee"], of["tea"] == of["nail"], tree.nodes(["unknown"]).tolist()
        (True, False, [0])
    """

    def __init__(self, ids: Sequence[Any], nodes: Any) -> None:
        rows = pd.DataFrame({"id": pd.Series(list(ids))})
        self._numbers = KeyNumbers(("id",))
        found = self._numbers.of_rows(rows) if len(rows) else np.zeros(0, dtype=np.int64)
        self._nodes = np.asarray(nodes, dtype=np.int32)
        if not len(rows) or (found < 0).any() or len(self._numbers) != len(rows):
            raise ValueError(f"`ids` must be different and not missing. Received: {len(rows)} ids, {len(self._numbers)} different")
        if self._nodes.shape != (len(rows),) or (self._nodes < 0).any():
            raise ValueError(f"`nodes` must be a node from 0 on for each id. Received: shape {self._nodes.shape} for {len(rows)} ids")

    @classmethod
    def fit(cls, similarity: Any, ids: Sequence[Any], depth: int = 8, neighbours: int | None = 30, seed: int = 0) -> LabelTree:
        """Recursive spectral bisection: the items of each node are halved where the least similarity is cut.

        With S the symmetric part of the similarity, of which each item keeps its largest `neighbours`, among the n items of a node:

            d_i = sum_j S_ij + tau,   tau = mean_i sum_j S_ij / 10
            v   = second eigenvector of D^-1/2 (S + tau / n) D^-1/2          the Fiedler vector of the normalised Laplacian
            left: the items with the smaller half of v_i / sqrt(d_i)

        tau gives a place to items without a connection. Source: normalised cuts (Shi and Malik 2000); trees of labels from confusions
        (Bengio, Weston and Grangier, NIPS 2010). S + tau / n is that of regularised spectral clustering (Amini et al. 2013); a tenth, equal
        halves and the number of neighbours are our choice.

        The tree does not depend on the order of `ids`. Where many similarities are equal, as with items that few members met, another
        seed gives another tree: fit a model on several to see what that is worth.

        A tree says again what it was fitted on: fit it on other rows than the model that reads it, such as those of half of the members.

        Args:
            similarity: (items, items), an array or a sparse matrix of SciPy: similarities, or how often a classifier takes one item for
                another. From 0 on; its diagonal is not read.
            ids: the items, in its order.
            depth: most levels below the root; a node with one item is not split.
            neighbours: similarities that each item keeps; None: all.
            seed: of the solver's first vectors, and of what is taken first among equal similarities.

        Returns:
            `LabelTree`.

        Raises:
            ValueError: a matrix that is not square, negative or not finite, without any similarity, or of another size than `ids`; a depth
                outside 1 to 29; fewer than 1 neighbour.
            ImportError: SciPy is not installed.
        """
        try:
            from scipy import sparse
        except ImportError as error:
            raise ImportError("a label tree needs SciPy: pip install 'keras-ranking[data]'") from error
        if not 1 <= depth <= _DEEPEST or (neighbours is not None and neighbours < 1):
            raise ValueError(
                f"`depth` must be from 1 to {_DEEPEST}, `neighbours` at least 1. Received: depth={depth}, neighbours={neighbours}"
            )
        shape, items = tuple(np.shape(similarity)), len(ids)
        if shape != (items, items) or items < 2:
            raise ValueError(
                f"`similarity` must have a row and a column for each of at least 2 ids. Received: shape {shape} for {items} ids"
            )
        found = sparse.coo_matrix(similarity, dtype=np.float64)
        if not np.isfinite(found.data).all() or (found.data < 0).any():
            raise ValueError("`similarity` must hold finite numbers from 0 on.")
        apart = found.row != found.col
        found = sparse.csr_matrix((found.data[apart] / 2, (found.row[apart], found.col[apart])), shape=shape)
        found = (found + found.T).tocsr()
        if not found.nnz or found.max() <= 0:
            raise ValueError("`similarity` has no number above 0 outside its diagonal.")
        tree, rng = cls(ids, np.ones(items)), np.random.default_rng(seed)
        order = np.argsort(fingerprint64([f"{seed}:{key}" for key in tree.ids]), kind="stable")
        similar = _nearest(_ordered(found, order), neighbours)

        def split(members: np.ndarray, node: int) -> None:
            tree._nodes[order[members]] = node
            if node < 2**depth and len(members) > 1:
                ranked = members[np.argsort(_second(similar[members][:, members], rng), kind="stable")]
                for side, part in enumerate(np.array_split(ranked, 2)):
                    split(part, 2 * node + side)

        split(np.arange(items), 1)
        return tree

    @property
    def ids(self) -> list[Any]:
        """The items, in the order of fitting."""
        return self._numbers.as_json()

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return int(self._nodes.max()).bit_length() - 1

    def nodes(self, ids: Any) -> np.ndarray:
        """The last node of each id, int32 (n,); 0 for ids that are missing or were not fitted. What `LabelTreeEmbedding` reads."""
        numbers = self._numbers.of_rows(pd.DataFrame({"id": pd.Series(ids)}).reset_index(drop=True), add=False)
        return np.asarray(np.append(self._nodes, np.int32(0))[numbers], dtype=np.int32)

    def paths(self, ids: Any) -> np.ndarray:
        """The nodes from below the root down to the last, int32 (n, depth); 0 where a path has ended. For models that take categories."""
        nodes = self.nodes(ids)[:, None]
        level = np.frexp(nodes.astype(np.float64))[1] - 1  # 2^level <= node
        up = level - np.arange(1, self.depth + 1)
        return np.where((up >= 0) & (nodes > 0), nodes >> np.maximum(up, 0), 0).astype(np.int32)

    def save(self, path: str | Path) -> None:
        """Write ids and nodes as JSON."""
        about = {"version": _VERSION, "kind": "LabelTree", "ids": self.ids, "nodes": self._nodes.tolist()}
        Path(path).write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LabelTree:
        """Read what `save` wrote.

        Raises:
            ValueError: a file of something else, or of a later version.
        """
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(about, dict) or about.get("version") != _VERSION or about.get("kind") != "LabelTree":
            raise ValueError(f"'{path}' holds no label tree that this version reads.")
        return cls(about["ids"], about["nodes"])


def item_agreement(events: pd.DataFrame, member: str, item: str, outcome: str, shrink: float = 10.0) -> tuple[Any, list[Any]]:
    """How alike items are to the members: who met both and gave both the same outcome.

        S_ij = agreed_ij / (sqrt(n_i n_j) + shrink)

    with agreed_ij the pairs of member and outcome that both items have, n_i those of item i. For `LabelTree.fit`. Our choice; the cosine
    of binary vectors, shrunk.

    Args:
        events: rows; those with a missing member, item or outcome are left out.
        member, item: their columns.
        outcome: column of what the member did with the item, such as 0 and 1, or stars.
        shrink: added to the denominator.

    Returns:
        S as a sparse (items, items) matrix of SciPy with an empty diagonal, and the items.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: a missing column, an outcome that is no number, a negative `shrink`, no rows.
        ImportError: SciPy is not installed.

    Example:
        >>> log = pd.DataFrame({"member": [1, 1, 2, 2], "item": ["a", "b", "a", "c"], "like": [1, 1, 1, 0]})
        >>> similarity, items = kr.data.item_agreement(log, "member", "item", "like", shrink=0.0)
        >>> items, similarity.toarray().round(2).tolist()
        (['a', 'b', 'c'], [[0.0, 0.71, 0.0], [0.71, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """
    try:
        from scipy import sparse
    except ImportError as error:
        raise ImportError("similarities of items need SciPy: pip install 'keras-ranking[data]'") from error
    require_frame(events)
    require_column(events, outcome)
    values, wrong = numbers_of(events[outcome])
    raise_first(outcome, events[outcome], [(wrong | np.isinf(values), "must hold finite numbers")])
    if not shrink >= 0:
        raise ValueError(f"`shrink` must be at least 0. Received: shrink={shrink}")
    members, items = KeyNumbers((member,)), KeyNumbers((item,))
    rows = events[~np.isnan(values)]
    who, what, values = members.of_rows(rows), items.of_rows(rows), values[~np.isnan(values)]
    used = (who >= 0) & (what >= 0)
    if not used.any():
        raise ValueError(f"no row has a member, an item and an outcome. Received: {len(events)} rows")
    kinds, kind = np.unique(values[used], return_inverse=True)
    shape = (len(members) * len(kinds), len(items))
    marks = sparse.csr_matrix((np.ones(len(kind)), (who[used] * len(kinds) + kind, what[used])), shape=shape)
    marks.data[:] = 1.0
    agreed = (marks.T @ marks).tocoo()
    count, apart = np.asarray(marks.sum(axis=0)).ravel(), agreed.row != agreed.col
    row, column, size = agreed.row[apart], agreed.col[apart], agreed.data[apart]
    return sparse.csr_matrix((size / (np.sqrt(count[row] * count[column]) + shrink), (row, column)), shape=agreed.shape), items.as_json()


def _ordered(similar: Any, order: np.ndarray) -> Any:
    """Rows and columns in another order; sums over a row go from left to right, whatever the order before."""
    found = similar[order][:, order].tocsr()
    found.sort_indices()
    return found


def _nearest(similar: Any, neighbours: int | None) -> Any:
    """The largest similarities of each item, symmetric again."""
    if neighbours is None:
        return similar
    found = similar.tocoo()
    order = np.lexsort((-found.data, found.row))
    rank = np.arange(len(order)) - np.searchsorted(found.row[order], found.row[order])
    near = order[rank < neighbours]
    kept = type(similar)((found.data[near], (found.row[near], found.col[near])), shape=similar.shape)
    return kept.maximum(kept.T).tocsr()


def _second(similar: Any, rng: np.random.Generator) -> np.ndarray:
    """The second eigenvector, scaled back to items; its largest component is positive."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = similar.shape[0]
    degree = np.asarray(similar.sum(axis=1)).ravel()
    tau = 0.1 * degree.mean() + 1e-9
    root = np.sqrt(degree + tau)
    first = root / np.linalg.norm(root)

    def product(x: np.ndarray) -> np.ndarray:
        inner = x.ravel() / root
        # The first eigenvector, whose value is 1, is moved to -1, below all others.
        return np.asarray((similar @ inner + tau / n * inner.sum()) / root - 2.0 * first * (first @ x.ravel()))

    if n <= _DENSE:
        vector = np.linalg.eigh((similar.toarray() + tau / n) / np.outer(root, root) - 2.0 * np.outer(first, first))[1][:, -1]
    else:
        operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
        vector = eigsh(operator, k=1, which="LA", v0=rng.normal(size=n), tol=1e-4, maxiter=5000)[1][:, 0]
    return np.asarray(vector / root * np.sign(vector[np.abs(vector).argmax()]))
