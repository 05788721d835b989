"""Streams packed into rows of one length, several members in a row and no request cut; or one piece in each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ranking.configuration import is_integer
from keras_ranking.data.sequences import Sequences, require_sequences

_Place = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # lengths of pieces, row length -> row and first slot of each


@dataclass(frozen=True)
class PackedRows:
    """R rows of T slots; each slot holds one event of `sequences` or nothing.

    Attributes:
        sequences: the streams the slots point into.
        index: (R, T) int64, event of each slot, -1 = padding.
        segment: (R, T) int32, 1, 2, ... the members' pieces of a row in order, 0 = padding.
        own: (R, T) bool: the event belongs to this piece and is more than its context.
        target: (R, T) bool: the event counts in the loss here. Each target event counts in exactly one slot.
        cuts: (P,) int64, where each member's pieces begin in the streams, those left out included. No event belongs to two pieces:
            if events are shuffled between two cuts, each still counts once.
        skipped: pieces without a target that were left out: they cost time and give no gradient.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> rows = kr.data.pack(kr.data.build_sequences(log.events, log.schema.fit(log.events)), row_length=64)
        >>> rows.index.shape[1], rows.efficiency > 0.5
        (64, True)
    """

    sequences: Sequences
    index: np.ndarray
    segment: np.ndarray
    own: np.ndarray
    target: np.ndarray
    cuts: np.ndarray
    skipped: int

    @property
    def efficiency(self) -> float:
        """Share of slots that hold an event."""
        return float((self.index >= 0).mean()) if self.index.size else 0.0

    @property
    def max_request(self) -> int:
        """Impressions of the largest request; a pairwise loss with a window of this size misses no pair."""
        return int(np.diff(self.sequences.request_starts).max(initial=1))

    def scatter(self, values: Any, fill: float = np.nan) -> np.ndarray:
        """(R, T, ...) values of slots -> (E, ...) values of events, taken where the slot is the event's target slot.

        Raises:
            ValueError: values of another number of rows or slots, or a `fill` that their type cannot hold (NaN for integers).
        """
        values = np.asarray(values)
        if values.shape[:2] != self.index.shape:
            raise ValueError(f"`values` must begin with shape {self.index.shape}. Received: shape {values.shape}")
        if values.dtype.kind != "f" and not np.can_cast(np.min_scalar_type(fill), values.dtype):
            raise ValueError(f"`fill` must be a value of the type of `values`. Received: fill={fill} for {values.dtype}")
        out = np.full((self.sequences.num_events, *values.shape[2:]), fill, dtype=values.dtype)
        out[self.index[self.target]] = values[self.target]
        return out


def pack(sequences: Sequences, row_length: int, context: int | None = None, skip_targetless: bool = True) -> PackedRows:
    """Pack streams into rows of `row_length` events.

    A member with more events than a row holds is cut at request boundaries into pieces. Every piece but the first begins
    with the `context` events before it. Their loss is masked: they are read as history, and are targets in the piece before.
    Pieces are placed by best fit, longest first.

    Args:
        sequences: from `build_sequences`.
        row_length: T, events a row.
        context: events of context at the head of a later piece; None: half a row. Our choice (the papers do not say).
        skip_targetless: leave out pieces without any target, counted in `PackedRows.skipped`.

    Returns:
        `PackedRows`.

    Raises:
        ValueError: `context` does not fit, or a request is larger than the space that a row leaves for it.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> rows = kr.data.pack(sequences, row_length=64)
        >>> int(rows.target.sum()) == len(log.events)
        True
    """
    return _placed(sequences, row_length, context, skip_targetless, _best_fit)


def pad(sequences: Sequences, row_length: int, context: int | None = None, skip_targetless: bool = True) -> PackedRows:
    """The pieces of `pack`, each in its own row: for batches padded to their longest row (`PackedDataset(length=...)`).

    Args:
        sequences, row_length, context, skip_targetless: as `pack`.

    Returns:
        `PackedRows` with one piece in each row.

    Raises:
        ValueError: as `pack`.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> rows = kr.data.pad(sequences, row_length=64)
        >>> int(rows.segment.max()), rows.efficiency < kr.data.pack(sequences, row_length=64).efficiency
        (1, True)
    """
    return _placed(
        sequences,
        row_length,
        context,
        skip_targetless,
        lambda lengths, _: (np.arange(len(lengths)), np.zeros(len(lengths), dtype=np.int64)),
    )


def _placed(sequences: Sequences, row_length: int, context: int | None, skip_targetless: bool, place: _Place) -> PackedRows:
    require_sequences(sequences)
    if not is_integer(row_length) or row_length < 1:
        raise ValueError(f"`row_length` must be a positive integer. Received: row_length={row_length!r}")
    context = row_length // 2 if context is None else context
    if not is_integer(context) or not 0 <= context < row_length:
        raise ValueError(f"`context` must be at least 0 and below `row_length`. Received: context={context}, row_length={row_length}")
    begin, first, end = _pieces(sequences, row_length, context)
    cuts = np.sort(first)
    skipped = 0
    if skip_targetless:
        seen = np.concatenate([[0], np.cumsum(sequences.target)])
        keep = seen[end] > seen[first]
        skipped = int((~keep).sum())
        begin, first, end = begin[keep], first[keep], end[keep]
    row, slot = place(end - begin, row_length)
    num_rows = int(row.max(initial=-1)) + 1
    # One entry for each event of a piece: its target slot and its place in the streams.
    lengths = end - begin
    piece = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    to_row, to_slot, event = row[piece], slot[piece] + within, begin[piece] + within
    index = np.full((num_rows, row_length), -1, dtype=np.int64)
    index[to_row, to_slot] = event
    starts = np.zeros((num_rows, row_length), dtype=np.int32)
    starts[row, slot] = 1
    segment = np.where(index >= 0, np.cumsum(starts, axis=1), 0).astype(np.int32)
    own = np.zeros((num_rows, row_length), dtype=bool)
    own[to_row, to_slot] = event >= first[piece]
    return PackedRows(sequences, index, segment, own, own & sequences.target[index], cuts, skipped)


def _pieces(sequences: Sequences, row_length: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each piece as events `begin:end`, of which those from `first` on are its own and the ones before are context."""
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    long = ends - starts > row_length
    begin, first, end = [starts[~long]], [starts[~long]], [ends[~long]]
    cuts = sequences.request_starts
    for start, stop in zip(starts[long], ends[long], strict=True):
        at = start
        while at < stop:
            head = max(start, at - context)
            reach = head + row_length
            cut = stop if reach >= stop else cuts[np.searchsorted(cuts, reach, side="right") - 1]
            if cut <= at:
                size = cuts[np.searchsorted(cuts, at, side="right")] - at
                raise ValueError(
                    f"`row_length` must leave space for the largest request after its context. Received: row_length={row_length}, "
                    f"context={context}, a request of {size} impressions (row {int(sequences.rows[at])} of the log)"
                )
            begin.append(np.array([head]))
            first.append(np.array([at]))
            end.append(np.array([cut]))
            at = cut
    return np.concatenate(begin), np.concatenate(first), np.concatenate(end)


def _best_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing over lengths, not pieces: row and first slot of each piece.

    Rows with the same space left are interchangeable, so all pieces of one length are placed at once. The loop runs over
    distinct (length, space) pairs, which `row_length` bounds, not over millions of members.
    """
    row = np.zeros(len(lengths), dtype=np.int64)
    slot = np.zeros(len(lengths), dtype=np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}
    num_rows = 0
    order = np.argsort(-lengths, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else []:
        length = int(lengths[group[0]])
        while len(group):
            room = min((space for space in open_rows if space >= length), default=None)
            if room is None:
                count = -(-len(group) // (row_length // length))
                open_rows[row_length] = [np.arange(num_rows, num_rows + count)]
                num_rows += count
                room = row_length
            free = np.concatenate(open_rows.pop(room))
            used, rest = free[: len(group)], free[len(group) :]
            row[group[: len(used)]] = used
            slot[group[: len(used)]] = row_length - room
            group = group[len(used) :]
            if len(rest):
                open_rows[room] = [rest]
            if room > length:
                open_rows.setdefault(room - length, []).append(used)
    return row, slot
