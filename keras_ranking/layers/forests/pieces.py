"""Trees cut into pieces of at most 32 exits, so that a row's way through a piece is one int32: what `Forest` computes with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_ranking.layers.forests.trees import Tree, Trees

EXITS = 32  # bits of a word
OUTSIDE = EXITS  # the exit of rows that do not come to the piece
BLOCK = 16  # pieces whose values are summed together: sums of many in one go would lose digits
GROUPS = ("none", "nan_left", "nan_right", "zero_left", "zero_right")  # how a column shows a missing value


@dataclass(frozen=True)
class Piece:
    """A connected part of a tree: its nodes, the exits from left to right, and the nodes above it."""

    tree: int
    exits: list[int]  # leaves as their number, ways into other pieces as -1
    inner: list[tuple[int, int, int]]  # (node, first exit of its left side, exit after the last of it)
    above: list[tuple[int, bool]]  # (node, whether the piece is on its left side)


@dataclass
class Columns:
    """The columns that nodes compare, each a view of a column of the rows: what is missing replaced, or 0 where a category goes left."""

    numbers: dict[str, list[int]] = field(default_factory=lambda: {group: [] for group in GROUPS})
    sets: dict[int, list[bytes]] = field(default_factory=dict)  # by column of the rows, the categories that go left

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Columns:
        found = cls()
        for tree in trees:
            for node, feature in enumerate(tree.feature):
                held, key = found._place(tree, node, int(feature))
                if key not in held:
                    held.append(key)
        return found

    def _place(self, tree: Tree, node: int, feature: int) -> tuple[list[Any], int | bytes]:
        if node in tree.categories:
            return self.sets.setdefault(feature, []), np.sort(tree.categories[node]).astype(np.int64).tobytes()
        kind = tree.missing[node]
        group = kind if kind == "none" else f"{kind}_{'left' if tree.missing_left[node] else 'right'}"
        return self.numbers[group], feature

    def starts(self) -> dict[str | int, int]:
        """The number of the first column of each group, then of each column of categories."""
        held: list[tuple[str | int, list[Any]]] = [*self.numbers.items(), *self.sets.items()]
        ends = np.cumsum([0, *(len(columns) for _, columns in held)])
        return {key: int(end) for (key, _), end in zip(held, ends, strict=False)}

    def index(self, trees: Sequence[Tree]) -> list[np.ndarray]:
        """Of each tree, the column of each node."""
        starts = self.starts()
        held: list[tuple[str | int, list[Any]]] = [*self.numbers.items(), *self.sets.items()]
        at = {(id(columns), key): starts[group] + number for group, columns in held for number, key in enumerate(columns)}
        out = []
        for tree in trees:
            places = [self._place(tree, node, int(feature)) for node, feature in enumerate(tree.feature)]
            out.append(np.array([at[id(columns), key] for columns, key in places], dtype=np.int32))
        return out

    def tables(self) -> dict[int, np.ndarray]:
        """By column of the rows, (1 + values, sets): 0 where value - 1 goes left, else 1; the first row is of unknown values."""
        out = {}
        for feature, sets in self.sets.items():
            values = [np.frombuffer(one, np.int64) for one in sets]
            table = np.ones((2 + max(int(one.max(initial=0)) for one in values), len(values)), np.float32)
            for number, one in enumerate(values):
                table[one + 1, number] = 0.0
            out[feature] = table
        return out


def cut(tree: Tree, number: int) -> list[Piece]:
    """The pieces of a tree: open sides are joined from the leaves up, and the larger closed where there would be more than `EXITS`."""
    if not len(tree.feature):
        return [Piece(number, [0], [], [])]
    order, stack = [], [0]
    while stack:  # parents before children
        node = stack.pop()
        order.append(node)
        stack += [int(child) for child in (tree.left[node], tree.right[node]) if child >= 0]
    width, closed = dict.fromkeys(order, 1), {0}

    def size(child: int) -> int:
        return 1 if child < 0 or child in closed else width[child]

    for node in reversed(order):
        sides = sorted((int(tree.left[node]), int(tree.right[node])), key=size, reverse=True)
        for side in sides:
            if sum(map(size, sides)) > EXITS:
                closed.add(side)
        width[node] = sum(map(size, sides))
    return [_piece(tree, number, root, closed, above) for root, above in _roots(tree, closed)]


def _roots(tree: Tree, closed: set[int]) -> list[tuple[int, list[tuple[int, bool]]]]:
    """Roots of pieces, each with the nodes above it."""
    found, stack = [], [(0, list[tuple[int, bool]]())]
    while stack:
        node, above = stack.pop()
        if node in closed:
            found.append((node, above))
        for child, is_left in ((tree.left[node], True), (tree.right[node], False)):
            if child >= 0:
                stack.append((int(child), [*above, (node, is_left)]))
    return found


def _piece(tree: Tree, number: int, root: int, closed: set[int], above: list[tuple[int, bool]]) -> Piece:
    exits: list[int] = []
    inner: dict[int, list[int]] = {}
    stack: list[tuple[int, bool]] = [(root, False)]  # (node, whether its left side is done)
    while stack:
        node, left_done = stack.pop()
        if node < 0 or (node in closed and node != root):
            exits.append(~node if node < 0 else -1)
        elif left_done:
            inner[node].append(len(exits))
            stack.append((int(tree.right[node]), False))
        else:
            inner[node] = [len(exits)]
            stack += [(node, True), (int(tree.left[node]), False)]
    return Piece(number, exits, [(node, first, after) for node, (first, after) in inner.items()], above)


def bits_without(first: int, after: int) -> int:
    """A word of all bits but those from `first` to before `after`, as a signed int32."""
    word = 0xFFFFFFFF & ~(((1 << (after - first)) - 1) << first)
    return word - (1 << 32) if word >= 1 << 31 else word


def arrays_of(trees: Trees, columns: Columns) -> dict[str, np.ndarray]:
    """What a `Forest` holds: comparisons (E, P) of columns with thresholds and the exits that they leave open, and values of exits.

    Entry e of piece p: `column[e, p]`, `threshold[e, p]`; rows that do not go left keep the exits in `mask[e, p]` alone. The same with
    `right_*` for nodes above a piece that is on their right side: rows that do go left keep none.
    """
    pieces = [piece for number, tree in enumerate(trees.trees) for piece in cut(tree, number)]
    index = columns.index(trees.trees)
    count = len(pieces) if len(pieces) < BLOCK else -(-len(pieces) // BLOCK) * BLOCK
    lefts = [[(node, bits_without(*span)) for node, *span in one.inner] + [(n, 0) for n, left in one.above if left] for one in pieces]
    rights = [[(node, 0) for node, left in one.above if not left] for one in pieces]
    out: dict[str, np.ndarray] = {}
    for prefix, entries in (("", lefts), ("right_", rights)):
        most = max(map(len, entries))
        column, threshold = np.zeros((most, count), np.int32), np.zeros((most, count), np.float32)
        mask = np.full((most, count), -1, np.int32)
        for p, (piece, own) in enumerate(zip(pieces, entries, strict=True)):
            tree = trees.trees[piece.tree]
            for e, (node, word) in enumerate(own):
                column[e, p], mask[e, p] = index[piece.tree][node], word
                threshold[e, p] = 0.5 if node in tree.categories else tree.threshold[node]
        out |= {f"{prefix}column": column, f"{prefix}threshold": threshold, f"{prefix}mask": mask}
    values = np.zeros((count, EXITS + 1, trees.outputs))
    leaf, tree_of = np.zeros((count, EXITS + 1), np.int32), np.full(count, len(trees.trees), np.int32)
    for p, piece in enumerate(pieces):
        tree_of[p] = piece.tree
        for at, number in enumerate(piece.exits):
            if number >= 0:
                values[p, at], leaf[p, at] = trees.scale * trees.trees[piece.tree].values[number], number + 1
    out |= {"value": values.reshape(-1, trees.outputs).astype(np.float32), "leaf": leaf.reshape(-1), "tree": tree_of}
    return out | {"base": trees.base.astype(np.float32)}
