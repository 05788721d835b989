"""Columns that describe the member: one value a request, held once for each run of events in which it stays the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Number


@dataclass(frozen=True)
class HeldOnce:
    """A column of events that is read like an array (E, ...), and holds each value once for a run of events.

    Attributes:
        values: (V, ...), one for each run.
        run: (E,) int64, the run of each event: not decreasing, by 1 from one run to the next.

    Example:
        >>> from keras_ranking.data.member_values import HeldOnce
        >>> column = HeldOnce(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 0, 1]))
        >>> column.shape, column[np.array([1, 2])].tolist()
        ((3, 2), [[1.0, 2.0], [3.0, 4.0]])
    """

    values: np.ndarray
    run: np.ndarray

    def __len__(self) -> int:
        return len(self.run)

    @property
    def shape(self) -> tuple[int, ...]:
        """As if each event had a value of its own."""
        return (len(self.run), *self.values.shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.values.ndim

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.values.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        """Values of events, by an index, a mask or a slice of the first axis."""
        return np.asarray(self.values[self.run[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self.values[self.run]
        return np.asarray(whole if dtype is None else whole.astype(dtype))

    def of_events(self, index: np.ndarray) -> HeldOnce:
        """The column of some events, in their order."""
        return joined_runs([self], [self.run[index]])


def in_order(column: Any, index: np.ndarray) -> Any:
    """A column of some events, in their order, held as it was."""
    return column.of_events(index) if isinstance(column, HeldOnce) else column[index]


def held_once(features: Sequence[Any], rows: pd.DataFrame, member: np.ndarray, request: np.ndarray) -> dict[str, HeldOnce]:
    """Columns of the member, encoded from the first row of each request.

    Args:
        features: columns of the schema.
        rows: of the log, in the order of the streams.
        member, request: (E,) of the rows, which are together.
    """
    if not features:
        return {}
    starts = np.flatnonzero((np.diff(member, prepend=-1) != 0) | (np.diff(request, prepend=-1) != 0))
    encoded = {feature.name: feature.encode(rows[feature.name].iloc[starts]) for feature in features}
    change = np.diff(member[starts], prepend=-1) != 0
    for values in encoded.values():
        flat = values.reshape(len(starts), -1)
        change[1:] |= (flat[1:] != flat[:-1]).any(axis=1)
    sizes = np.diff(np.append(starts, len(member)))
    run = np.repeat(np.cumsum(change) - 1, sizes)
    return {name: HeldOnce(values[change], run) for name, values in encoded.items()}


def value_codes(feature: Any, values: pd.Series) -> np.ndarray:
    """int64: equal exactly where values that passed the checks are equal to a model; before means are fitted."""
    if isinstance(feature, Number):
        return np.asarray(pd.factorize(feature.numbers(values))[0])
    flat = np.ascontiguousarray(feature.encode(values)).reshape(len(values), -1)
    return np.asarray(pd.factorize(pd.Series([row.tobytes() for row in flat], dtype=object))[0])


def runs_of(columns: Mapping[str, Any], member: np.ndarray) -> np.ndarray:
    """(E,) int64: the run of each event, in which member and all these columns stay the same."""
    held = list(columns.values())
    if all(isinstance(column, HeldOnce) and column.run is held[0].run for column in held):
        return np.asarray(held[0].run)
    change = np.diff(member, prepend=-1) != 0
    for column in held:
        flat = np.asarray(column).reshape(len(member), -1)
        change[1:] |= (flat[1:] != flat[:-1]).any(axis=1)
    return np.asarray(np.cumsum(change) - 1)


def joined_runs(columns: Sequence[HeldOnce], runs: Sequence[np.ndarray]) -> HeldOnce:
    """Columns one after another; of each, the events with these runs."""
    values, run, count = [], [], 0
    for column, own in zip(columns, runs, strict=True):
        change = np.diff(own, prepend=-1) != 0
        values.append(column.values[own[change]])
        run.append(np.cumsum(change) - 1 + count)
        count += int(change.sum())
    return HeldOnce(np.concatenate(values), np.concatenate(run))


def one_after_another(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Columns of several parts of events as one; a part of one row stands for all its events.

    Args:
        parts: arrays or `HeldOnce`, of as many events as `sizes` say, or of one.
        sizes: events of the parts.
    """
    if not any(isinstance(part, HeldOnce) for part in parts):
        return np.concatenate([np.broadcast_to(part, (size, *part.shape[1:])) for part, size in zip(parts, sizes, strict=True)])
    held = []
    for part, size in zip(parts, sizes, strict=True):
        held.append(part if isinstance(part, HeldOnce) else HeldOnce(part, np.zeros(size, dtype=np.int64)))
    return joined_runs(held, [part.run for part in held])


class MemberSlots:
    """The inputs of the member's columns for packed rows: each value once, and which one an event has.

    Args:
        columns: of events by name.
        member: (E,) of the events.
        index: (R, T), the event of each slot, -1 where there is none.
        session: (E,) of the events, where events change places inside sessions; else None.

    Attributes:
        most: M, places for values in a row.
    """

    def __init__(self, columns: Mapping[str, Any], member: np.ndarray, index: np.ndarray, session: np.ndarray | None = None) -> None:
        self.columns, self.run = columns, runs_of(columns, member)
        self.count = int(self.run.max(initial=-1)) + 1
        self._first = np.searchsorted(self.run, np.arange(self.count))
        rows = self._distinct(index)[0]
        most = np.bincount(rows, minlength=len(index))
        if session is not None and len(session):
            # An event of the same session may come in the place of any: with values that only others of the session have.
            bounds = np.full((2, int(session.max()) + 1), [[self.count], [0]])
            np.minimum.at(bounds[0], session, self.run)
            np.maximum.at(bounds[1], session, self.run)
            more = bounds[1] - bounds[0]
            there = index >= 0
            of_row = np.unique(np.nonzero(there)[0] * len(more) + session[index[there]])
            most = most + np.bincount(of_row // len(more), weights=more[of_row % len(more)], minlength=len(index)).astype(np.int64)
        self.most = max(1, int(most.max(initial=1)))

    def _distinct(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the runs in each row, each once and in order: their rows, the runs, and the place of each event's run among all."""
        there = index >= 0
        keys, place = np.unique(np.nonzero(there)[0] * max(self.count, 1) + self.run[index[there]], return_inverse=True)
        return keys // max(self.count, 1), keys % max(self.count, 1), place.reshape(-1)

    def tensors(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """`member_slot` int32 (B, T), 0 in empty slots, and `member_<name>` (B, M, ...) of the events of a batch."""
        row, run, place = self._distinct(index)
        at = np.arange(len(row)) - np.searchsorted(row, row)
        slot = np.zeros(index.shape, dtype=np.int32)
        slot[index >= 0] = at[place] + 1
        made = {"member_slot": slot}
        for name, column in self.columns.items():
            held = np.zeros((len(index), self.most, *column.shape[1:]), dtype=column.dtype)
            held[row, at] = column[self._first[run]]
            made[f"member_{name}"] = held
        return made
