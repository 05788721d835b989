"""From spans to tiles, on the host in numpy: which rectangles of queries and keys an eager backend computes.

| kind     | the tile's queries see                                    | bias |
|----------|-----------------------------------------------------------|------|
| `causal` | keys low..i, where low is the tile's first query          | none |
| `full`   | all of the tile's keys                                    | none |
| `bias`   | anything                                                  | yes  |

Rows that are short share a tile of kind `bias`, since a call for each would cost more than all of their pairs.
In `joined` tiles (candidates of one history) each query also sees its own key, which is added separately.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_QUERIES = 128  # queries per tile with a bias
_SMALL = 48  # parts with fewer queries share a tile: a call costs about as much as 40 x 40 pairs of 4 heads of 64
_GAP = 64  # two key ranges this far apart are read separately
_SHORT = 64 * 64  # rows of at most this many pairs share tiles
_TOGETHER = 1 << 22  # of at most this many pairs
_KEPT = 256  # biases and masks of a tile are stored in the plan up to this many entries per query; larger ones are made when needed

Array = np.ndarray


@dataclass
class Tile:
    """Queries low..high of the rows row..row_end against the key ranges `keys`, in order and disjoint."""

    row: int
    row_end: int
    low: int
    high: int
    keys: tuple[tuple[int, int], ...]
    kind: str
    joined: bool = False
    hollow: Array | None = None  # (rows or 1, queries): queries that see nothing
    spans: tuple[Array, Array, Array] | None = None
    stride: int = 1
    keep: bool = False
    cached: Any = field(default=None, repr=False)
    _hidden: tuple[int, Array] | None = field(default=None, repr=False)

    def hidden(self) -> tuple[int, Array]:
        """Pairs hidden by the bias: the index of the first key that is hidden from some query, and from there to the last such key a
        boolean (rows or 1, queries, keys). A query that sees nothing has no hidden pairs: its output is set to zero afterwards.
        """
        if self._hidden is not None:
            return self._hidden
        if self.spans is None:
            raise ValueError("only a tile of kind 'bias' has hidden pairs.")
        start, end, own = (part[self.low : self.high, None] for part in self.spans)
        index = self.stride * np.arange(self.low, self.high)[:, None]
        keys = np.concatenate([np.arange(low, high) for low, high in self.keys])
        sees = (start < end) | (own <= index)
        # Most keys of a tile are visible to all its queries: these pairs need no test.
        a, b, c, d = start[sees].max(), end[sees].min(), own[sees].max(), index[sees].min()
        varying = np.flatnonzero(((keys < a) | (keys >= b)) & ((keys < c) | (keys > d)))
        at, to = (int(varying[0]), int(varying[-1]) + 1) if len(varying) else (0, 0)
        keys = keys[None, at:to]
        found = at, (((keys < start) | (keys >= end)) & ((keys < own) | (keys > index)) & sees)[None]
        if to - at <= _KEPT:
            self._hidden = found
        return found


@dataclass
class Plan:
    """The tiles of a batch, and the keys that must be set to zero first.

    Args:
        tiles: disjoint in their queries.
        covers: whether every query is in a tile.
        unseen: boolean (B, S), keys that no query sees, or None if all are seen.
        empty: boolean (B, T), queries that see nothing, or None if all see something.
    """

    tiles: list[Tile]
    covers: bool
    unseen: Array | None
    empty: Array | None

    def plain(self, batch: int, queries: int, keys: int) -> str | None:
        """The kind of the tile, if a single tile without a bias covers all queries and keys of all rows."""
        if len(self.tiles) != 1:
            return None
        tile = self.tiles[0]
        whole = (tile.row, tile.row_end, tile.low, tile.high, tile.keys) == (0, batch, 0, queries, ((0, keys),))
        return tile.kind if whole and tile.kind != "bias" and not tile.joined and tile.hollow is None else None


def span_plan(start: Array, end: Array, own: Array, num_keys: int, stride: int = 1) -> Plan:
    """The plan of spans (B, T) over `num_keys` keys; query i has the place of key `stride i`."""
    batch, queries = start.shape
    same = batch > 1 and all(bool((part == part[:1]).all()) for part in (start, end, own))
    if batch > 1 and not same and queries * num_keys <= _SHORT:
        return _short_rows(start, end, own, num_keys, stride)
    rows = [(0, batch)] if same else [(row, row + 1) for row in range(batch)]
    tiles: list[Tile] = []
    unseen = np.zeros((batch, num_keys), dtype=bool)
    empty = np.zeros((batch, queries), dtype=bool)
    for low, high in rows:
        spans = _Row(start[low], end[low], own[low], num_keys, stride)
        unseen[low:high], empty[low:high] = ~spans.seen(), spans.empty
        tiles += spans.tiles(low, high)
    covered = sum((tile.row_end - tile.row) * (tile.high - tile.low) for tile in tiles)
    return Plan(tiles, covered == batch * queries, unseen if unseen.any() else None, empty if empty.any() else None)


def _short_rows(start: Array, end: Array, own: Array, num_keys: int, stride: int) -> Plan:
    """The plan of different rows of few pairs: tiles of many rows, each row with a bias of its own."""
    batch, queries = start.shape
    index = np.broadcast_to(stride * np.arange(queries), start.shape)
    (a, b), (c, d) = _clean(start, end, num_keys), _clean(own, index + 1, num_keys)
    unseen, empty = np.empty((batch, num_keys), dtype=bool), np.empty((batch, queries), dtype=bool)
    tiles, keys = [], np.arange(num_keys)
    step = max(1, _TOGETHER // max(1, queries * num_keys))
    for low in range(0, batch, step):
        part = slice(low, min(low + step, batch))
        first, last, mine, to = (edge[part, :, None] for edge in (a, b, c, d))
        sees = ((keys >= first) & (keys < last)) | ((keys >= mine) & (keys < to))
        unseen[part], empty[part] = ~sees.any(axis=1), ~sees.any(axis=2)
        hollow = empty[part] if empty[part].any() else None
        hidden = ~sees & ~empty[part, :, None]
        whole = ((0, num_keys),) if num_keys else ()
        tiles.append(Tile(low, part.stop, 0, queries, whole, "bias", hollow=hollow, keep=True, _hidden=(0, hidden)))
    return Plan(tiles, True, unseen if unseen.any() else None, empty if empty.any() else None)


def candidate_plan(lengths: Array, queries: int, num_keys: int, joined: bool) -> Plan:
    """The plan of candidates over a cached history of `lengths` (B,) keys, with an own key for each if `joined`."""
    lengths = np.clip(lengths, 0, num_keys)
    tiles = []
    low = 0
    for high in range(1, len(lengths) + 1):
        if high < len(lengths) and lengths[high] == lengths[low]:
            continue
        count = int(lengths[low])
        if count or joined:
            tiles.append(Tile(low, high, 0, queries, ((0, count),) if count else (), "full", joined=joined))
        low = high
    unseen = np.arange(num_keys)[None] >= lengths[:, None]
    empty = np.broadcast_to((lengths == 0)[:, None], (len(lengths), queries)) & (not joined)
    return Plan(tiles, not empty.any(), unseen if unseen.any() else None, empty if empty.any() else None)


class _Row:
    """The spans of one row, cleaned: both intervals inside 0..num_keys, empty ones at (num_keys, 0)."""

    def __init__(self, start: Array, end: Array, own: Array, num_keys: int, stride: int) -> None:
        self.num_keys, self.stride = num_keys, stride
        self.index = stride * np.arange(len(start))  # place of each query among the keys
        self.a, self.b = _clean(start, end, num_keys)
        self.c, self.d = _clean(own, self.index + 1, num_keys)
        has_first, has_own = self.a < self.b, self.c < self.d
        self.low, self.high = np.minimum(self.a, self.c), np.maximum(self.b, self.d)
        self.empty = self.low >= self.high
        touching = (self.a <= self.d) & (self.c <= self.b)
        self.whole = (has_first ^ has_own) | (has_first & has_own & touching)
        self.apart = has_first & has_own & ~touching & (self.c == self.index) & (self.c >= self.b) & (stride == 1)

    def seen(self) -> Array:
        """Boolean (S,): keys that some query sees."""
        opened, closed = np.concatenate([self.a, self.c]), np.concatenate([self.b, self.d])
        used = opened < closed
        places = self.num_keys + 1
        change = np.bincount(opened[used], minlength=places) - np.bincount(closed[used], minlength=places)
        return np.asarray(np.cumsum(change[:-1]) > 0)

    def _parts(self) -> list[tuple[int, int]]:
        """Ranges of queries between places that no span crosses, without queries that see nothing."""
        queries = len(self.index)
        if queries == 0:
            return []
        if queries * self.stride == self.num_keys:
            reach = np.maximum.accumulate(np.maximum(self.high, 0))
            back = np.minimum.accumulate(np.where(self.empty, self.num_keys, self.low)[::-1])[::-1]
            cut = np.flatnonzero((reach[:-1] <= self.index[1:]) & (back[1:] >= self.index[1:])) + 1
        else:
            cut = np.flatnonzero(self.empty[1:] != self.empty[:-1]) + 1
        starts = np.concatenate([[0], cut]).astype(np.int64)
        ends = np.concatenate([cut, [queries]]).astype(np.int64)
        some = ~np.logical_and.reduceat(self.empty, starts)
        return list(zip(starts[some].tolist(), ends[some].tolist(), strict=True))

    def tiles(self, row: int, row_end: int) -> list[Tile]:
        """Tiles without a bias where possible, tiles with a bias for the others; small parts share a tile."""
        out: list[Tile] = []
        pending: list[tuple[int, int]] = []

        def flush() -> None:
            if pending:
                out.extend(self._biased(row, row_end, pending[0][0], pending[-1][1]))
                pending.clear()

        for low, high in self._parts():
            for at, to, kind in self._stretches(low, high):
                if kind != "bias" and to - at >= _SMALL:
                    flush()
                    out.append(self._plain(row, row_end, at, to, kind))
                    continue
                if pending and (pending[-1][1] != at or to - pending[0][0] > _SMALL):
                    flush()
                pending.append((at, to))
        flush()
        self._keep(out)
        return out

    def _stretches(self, low: int, high: int) -> list[tuple[int, int, str]]:
        """Cuts a part where a long enough range of it needs no bias."""
        part = slice(low, high)
        first, last = self.low[part], self.high[part]
        causal = self.whole[part] & (last == self.index[part] + 1) & (self.stride == 1)
        kind = np.where(self.apart[part], 3, np.where(causal, 1, np.where(self.whole[part], 2, 0)))
        last = np.where(kind == 1, -1, np.where(kind == 3, self.b[part], last))
        change = (kind[1:] != kind[:-1]) | (first[1:] != first[:-1]) | (last[1:] != last[:-1]) | (kind[1:] == 0)
        starts = np.concatenate([[0], np.flatnonzero(change) + 1])
        ends = np.concatenate([starts[1:], [high - low]])
        long = (ends - starts >= _SMALL) | (ends - starts == high - low)
        usable = long & (kind[starts] > 0) & ((kind[starts] != 1) | (first[starts] == starts + low))
        out: list[tuple[int, int, str]] = []
        for at, to, which, good in zip((starts + low).tolist(), (ends + low).tolist(), kind[starts].tolist(), usable.tolist(), strict=True):
            name = ("bias", "causal", "full", "joined")[which] if good else "bias"
            if out and name == "bias" and out[-1][2] == "bias":
                out[-1] = (out[-1][0], to, "bias")
            else:
                out.append((at, to, name))
        return out

    def _plain(self, row: int, row_end: int, low: int, high: int, kind: str) -> Tile:
        if kind == "joined":
            return Tile(row, row_end, low, high, ((int(self.a[low]), int(self.b[low])),), "full", joined=True)
        last = high if kind == "causal" else int(self.high[low])
        return Tile(row, row_end, low, high, ((int(self.low[low]), last),), kind)

    def _biased(self, row: int, row_end: int, low: int, high: int) -> list[Tile]:
        out = []
        count = -(-(high - low) // _QUERIES)
        edges = [low + (high - low) * step // count for step in range(count + 1)]
        for at, to in itertools.pairwise(edges):
            keys = self._ranges(slice(at, to))
            if not keys:
                continue
            hollow = self.empty[at:to][None] if self.empty[at:to].any() else None
            spans = (self.a, self.b, self.c)
            out.append(Tile(row, row_end, at, to, keys, "bias", hollow=hollow, spans=spans, stride=self.stride))
        return out

    def _ranges(self, part: slice) -> tuple[tuple[int, int], ...]:
        """The key range of both intervals, as one range or, if they are far apart, as two."""
        a, b, c, d = (int(edge) for edge in (self.a[part].min(), self.b[part].max(), self.c[part].min(), self.d[part].max()))
        found = sorted(pair for pair in ((a, b), (c, d)) if pair[0] < pair[1])
        if len(found) == 2 and found[1][0] - found[0][1] < _GAP:
            found = [(found[0][0], max(found[0][1], found[1][1]))]
        return tuple(found)

    def _keep(self, tiles: list[Tile]) -> None:
        entries = sum((tile.high - tile.low) * sum(high - low for low, high in tile.keys) for tile in tiles if tile.kind == "bias")
        for tile in tiles:
            tile.keep = tile.kind == "bias" and entries <= _KEPT * len(self.index)


def _clean(low: Array, high: Array, num_keys: int) -> tuple[Array, Array]:
    low, high = np.clip(low.astype(np.int64), 0, num_keys), np.clip(high.astype(np.int64), 0, num_keys)
    used = low < high
    return np.where(used, low, num_keys), np.where(used, high, 0)
