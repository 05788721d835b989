"""Candidate slots by the length of their histories, so that training reads few empty events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_ranking.ops.sequences import SLOTS_BY_LENGTH


def even_order(lengths: np.ndarray, rows: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """An order of requests in which every n / `rows` neighbours have histories of all lengths, as in the whole.

    The requests are divided by length into groups of `rows`; each of `rows` blocks has one of each group, drawn at random.

    Args:
        lengths: (n,) of the histories.
        rows: number of blocks.
        rng: random draws; None: requests keep their order in a group and in a block.
    """
    count, index = len(lengths), np.arange(len(lengths))

    def draw() -> np.ndarray:
        return index.astype(np.float64) if rng is None else rng.random(count)

    group = np.empty(count, dtype=np.int64)
    group[np.lexsort((draw(), lengths))] = index // rows
    within = np.empty(count, dtype=np.int64)  # place in the group
    order = np.lexsort((draw(), group))
    within[order] = index - group[order] * rows
    block = within * rows // np.minimum(rows, np.bincount(group))[group]
    return np.lexsort((draw(), block))


def slots_by_length(lengths: np.ndarray, longest: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The slots of each row whose history is as long as an input of `SLOTS_BY_LENGTH` says: (rows, N) int32, from 1 on, 0 = none.

    N is the largest number of such slots in a row, at least 1. Slots without a history are in no input.

    Args:
        lengths: (rows, S), of the history of each slot.
        longest: L, of which the lengths are parts.
        names: the inputs to make.
    """
    most = {name: -(-longest // divisor) for name, divisor in SLOTS_BY_LENGTH.items()}
    least = dict(zip(most, [*list(most.values())[1:], 0], strict=True))
    made = {}
    for name in names:
        wanted = (lengths > least[name]) & (lengths <= most[name])
        count = wanted.sum(axis=1)
        size = max(1, int(count.max(initial=0)))
        slot = np.argsort(~wanted, axis=1, kind="stable")[:, :size] + 1
        made[name] = np.where(np.arange(size) < count[:, None], slot, 0).astype(np.int32)
    return made
