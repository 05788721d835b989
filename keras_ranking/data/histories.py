"""What packed rows hold of histories: slots by length, or each history once, so that training reads few events twice or in vain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Streams:
    """Requests in rows, with the events of their histories as one row of tokens, in which several requests may read the same ones.

    Attributes:
        order: (requests,) in the order of the rows.
        bounds: (rows + 1,) places in `order` at which a row begins.
        tokens: (rows, T) int64, the event of each token, -1 where there is none.
        stream: (rows, T) int32, the number of the stream that a token is of, from 1 on, 0 = none. Streams do not see each other.
        begin, end: (requests,) int32, in the order of the rows: the tokens of each request's history.
    """

    order: np.ndarray
    bounds: np.ndarray
    tokens: np.ndarray
    stream: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def pack_streams(
    begin: np.ndarray, end: np.ndarray, sizes: np.ndarray, row_length: int, prefixes: bool, rng: np.random.Generator | None
) -> Streams:
    """Rows of requests in which histories with the same first event are tokens once.

    Requests that share a history are placed one after another; such groups are in random order. A row has at most `row_length` slots, and
    at most 1.1 times as many tokens as its slots need on average, or one history.

    Args:
        begin, end: (requests,) first event of each history, and the one after its last.
        sizes: (requests,) slots of each.
        row_length: slots of a row.
        prefixes: whether a history shares the tokens of a longer one that it begins; False: of equal ones alone.
        rng: of the order; None: by first request.
    """
    length = end - begin
    own = -1 - np.arange(len(begin))  # a request without a history shares none
    keys = np.stack([np.where(length > 0, begin, own), np.zeros_like(end) if prefixes else end], axis=1)
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    place = first if rng is None else rng.permutation(len(first))
    order = np.lexsort((np.arange(len(begin)), end, place[group]))
    longest = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(longest, group, length)
    budget = max(int(longest.max()), int(1.1 * row_length * longest.sum() / sizes.sum()), 1)
    bounds, offsets = [0], np.zeros(len(order), dtype=np.int64)
    runs: list[list[int]] = []  # row, first token, first event, tokens
    slots = tokens = 0
    held = -1  # group of the last run of this row
    members, lengths, slots_of = group[order].tolist(), length[order].tolist(), sizes[order].tolist()
    for at, (of, events, size) in enumerate(zip(members, lengths, slots_of, strict=True)):
        more = max(events - runs[-1][3], 0) if of == held else events
        if slots + size > row_length or tokens + more > budget:
            bounds.append(at)
            slots = tokens = 0
            held, more = -1, events
        if of == held:
            runs[-1][3] += more
        else:
            runs.append([len(bounds) - 1, tokens, int(begin[order[at]]), events])
            held = of
        offsets[at] = runs[-1][1]
        slots, tokens = slots + size, tokens + more
    bounds.append(len(order))
    row, offset, event, count = np.array(runs, dtype=np.int64).reshape(-1, 4).T
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    width = max(int((offset + count).max()), 1)
    held_in = (np.repeat(row, count), np.repeat(offset, count) + within)
    found, stream = np.full((len(bounds) - 1, width), -1, dtype=np.int64), np.zeros((len(bounds) - 1, width), dtype=np.int32)
    found[held_in] = np.repeat(event, count) + within
    stream[held_in] = np.repeat(np.arange(len(row)) - np.searchsorted(row, row) + 1, count)
    return Streams(order, np.array(bounds), found, stream, offsets.astype(np.int32), (offsets + length[order]).astype(np.int32))
