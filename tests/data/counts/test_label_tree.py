"""LabelTree: bisection against dense eigenvectors, groups that are found, paths, files, errors; and the agreement of items."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from keras_ranking.data import LabelTree, item_agreement

pytestmark = pytest.mark.one_backend


def blocks(sizes: tuple[int, ...], inside: float = 1.0, between: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy similarity of groups in a random order, and each item's group."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise = rng.random((len(group), len(group))) * 0.1
    return np.where(group[:, None] == group, inside, between) + noise + noise.T, group


@pytest.mark.parametrize("items", [40, 240])
def test_a_half_is_that_of_the_second_eigenvector_of_the_laplacian(items: int) -> None:
    """Small nodes have all eigenvectors, large ones those of the sparse solver; the reference has the Laplacian of all items."""
    similar, _ = blocks((items // 2, items // 2))
    tree = LabelTree.fit(similar, range(items), depth=1, neighbours=None)
    plain = similar - np.diag(similar.diagonal())
    regular = plain + 0.1 * plain.sum(axis=1).mean() / items
    root = np.sqrt(regular.sum(axis=1))
    laplacian = np.eye(items) - regular / np.outer(root, root)
    fiedler = np.linalg.eigh(laplacian)[1][:, 1] / root
    expected = fiedler > np.median(fiedler)
    found = tree.nodes(range(items)) == 3
    assert np.array_equal(found, expected) or np.array_equal(found, ~expected)


def test_the_tree_does_not_depend_on_the_order_of_the_items() -> None:
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"member": rng.integers(0, 120, 900), "item": rng.integers(0, 300, 900), "like": rng.integers(0, 2, 900)})
    found = [item_agreement(rows, "member", "item", "like") for rows in (log, log.sample(frac=1.0, random_state=1))]
    trees = [LabelTree.fit(similar, items, depth=6, neighbours=3) for similar, items in found]
    assert trees[0].ids != trees[1].ids
    np.testing.assert_array_equal(trees[0].nodes(trees[0].ids), trees[1].nodes(trees[0].ids))
    other = LabelTree.fit(*found[0], depth=6, neighbours=3, seed=1)
    assert (other.nodes(other.ids) != trees[0].nodes(other.ids)).mean() > 0.5, "most similarities are equal to others here"


def test_groups_of_groups_are_found_and_not_in_a_shuffled_similarity() -> None:
    near, group = blocks((16, 16, 16, 16))
    wide = group // 2
    similar = near + np.where(wide[:, None] == wide, 0.5, 0.0)
    tree = LabelTree.fit(sparse.csr_matrix(similar), [f"item {number}" for number in range(64)], depth=2)
    paths = tree.paths(tree.ids)
    for level, truth in ((0, wide), (1, group)):
        assert len({(node, of) for node, of in zip(paths[:, level], truth)}) == len(set(truth)), "a node is one group"
    order = np.random.default_rng(1).permutation(64)
    shuffled = LabelTree.fit(similar[order][:, order], tree.ids, depth=2).paths(tree.ids)
    assert len({(node, of) for node, of in zip(shuffled[:, 1], group)}) > 8


def test_paths_end_where_one_item_is_left() -> None:
    similar, _ = blocks((3, 2))
    tree = LabelTree.fit(similar, list("abcde"), depth=8)
    paths, nodes = tree.paths([*"abcde", "new", None]), tree.nodes([*"abcde", "new", None])
    assert tree.depth == 3 and paths.shape == (7, 3) and paths.dtype == nodes.dtype == np.int32
    assert len(set(nodes[:5])) == 5 and not nodes[5:].any() and not paths[5:].any()
    for path, node in zip(paths[:5].tolist(), nodes[:5].tolist()):
        there = [at for at in path if at]
        assert there[0] in (2, 3) and there[-1] == node and path == there + [0] * (3 - len(there))
        assert all(below // 2 == above for above, below in pairwise(there))


def test_items_without_a_connection_have_a_place() -> None:
    similar = np.zeros((6, 6))
    similar[0, 1] = 1.0  # a confusion has a direction
    tree = LabelTree.fit(similar, range(6), depth=1)
    assert sorted(tree.nodes(range(6)).tolist()) == [2, 2, 2, 3, 3, 3]
    assert len(set(tree.nodes([0, 1]).tolist())) == 1


@pytest.mark.parametrize("ids", [[f"i{n}" for n in range(8)], list(range(8))])
def test_a_file_gives_the_tree_back(ids: list[Any], tmp_path: Path) -> None:
    similar, _ = blocks((4, 4))
    tree = LabelTree.fit(similar, ids, depth=3)
    tree.save(tmp_path / "tree.json")
    loaded = LabelTree.load(tmp_path / "tree.json")
    assert loaded.ids == tree.ids == ids
    np.testing.assert_array_equal(loaded.paths(ids[::-1]), tree.paths(ids[::-1]))
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no label tree that this version reads"):
        LabelTree.load(tmp_path / "other.json")


def test_agreement_counts_pairs_of_member_and_outcome() -> None:
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {"member": rng.integers(0, 9, 60), "item": rng.choice(list("abcd"), 60), "stars": rng.integers(1, 4, 60).astype(float)}
    )
    log.loc[3, "stars"] = np.nan
    similar, items = item_agreement(log, "member", "item", "stars", shrink=2.0)
    pairs = {item: {(m, s) for m, i, s in log.dropna().itertuples(index=False) if i == item} for item in items}
    for i, one in enumerate(items):
        for j, other in enumerate(items):
            both = len(pairs[one] & pairs[other]) / (np.sqrt(len(pairs[one]) * len(pairs[other])) + 2.0)
            assert similar[i, j] == pytest.approx(0.0 if i == j else both, abs=1e-12)


@pytest.mark.parametrize(
    ("matrix", "ids", "settings", "message"),
    [
        (np.ones((2, 3)), [1, 2], {}, "`similarity` must have a row and a column for each of at least 2 ids"),
        (np.ones((2, 2)), [1, 2, 3], {}, r"Received: shape \(2, 2\) for 3 ids"),
        (-np.ones((2, 2)), [1, 2], {}, "must hold finite numbers from 0 on"),
        (np.full((2, 2), np.nan), [1, 2], {}, "must hold finite numbers from 0 on"),
        (np.eye(2), [1, 2], {}, "no number above 0 outside its diagonal"),
        (np.ones((2, 2)), [1, 1], {}, "`ids` must be different and not missing"),
        (np.ones((2, 2)), ["a", None], {}, "`ids` must be different and not missing"),
        (np.ones((2, 2)), [1, 2], {"depth": 0}, "`depth` must be from 1 to 29"),
        (np.ones((2, 2)), [1, 2], {"neighbours": 0}, "`neighbours` at least 1"),
    ],
)
def test_errors(matrix: np.ndarray, ids: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTree.fit(matrix, ids, **settings)


def test_errors_of_agreement() -> None:
    log = pd.DataFrame({"member": [1, 2], "item": [1, 1], "like": [1.0, np.inf]})
    with pytest.raises(ValueError, match="must hold finite numbers"):
        item_agreement(log, "member", "item", "like")
    with pytest.raises(ValueError, match="`shrink` must be at least 0"):
        item_agreement(log[:1], "member", "item", "like", shrink=-1.0)
    with pytest.raises(ValueError, match="no row has a member, an item and an outcome"):
        item_agreement(log.assign(like=np.nan), "member", "item", "like")
