"""Whole requests packed into rows of candidate slots, for models that are trained on requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_ranking.data.datasets import SLOT, Batch, checked_weights
from keras_ranking.data.epochs import EpochDataset
from keras_ranking.data.histories import Streams, even_order, pack_streams, slots_by_length
from keras_ranking.data.requests import Requests, take_or_zero
from keras_ranking.ops.sequences import SLOTS_BY_LENGTH, STREAMS
from keras_ranking.values import require_kind

_OF_SLOTS = (SLOT, *SLOTS_BY_LENGTH)
_PLACES = (*STREAMS, "stream_begin", "stream_end")


@dataclass(frozen=True)
class RequestSizes:
    """Sizes of the batches of `PackedRequests`, which datasets of several parts of a log share, so that a step is compiled once.

    Attributes:
        row_length: S.
        row_requests: Q.
        history: L.
        tokens: T of shared streams, 0 = none.
        slots: by input of slots by length, their number.
    """

    row_length: int
    row_requests: int
    history: int = 1
    tokens: int = 0
    slots: Mapping[str, int] = field(default_factory=dict)

    def widest(self, other: RequestSizes) -> RequestSizes:
        """Sizes that hold both."""
        slots = {name: max(self.slots.get(name, 1), other.slots.get(name, 1)) for name in {*self.slots, *other.slots}}
        sizes = {name: max(getattr(self, name), getattr(other, name)) for name in ("row_length", "row_requests", "history", "tokens")}
        return RequestSizes(**sizes, slots=slots)


class PackedRequests(EpochDataset):
    """Requests as `(inputs, targets, sample weights)` for `fit`: rows of S candidate slots that hold the lists of several requests.

    | part    | content                                                                                            |
    |---------|----------------------------------------------------------------------------------------------------|
    | inputs  | `request_slot` int32 (B, S): request of the row, from 1 on, that a slot belongs to, 0 = empty       |
    |         | `candidate_*` (B, S[, size])                                                                       |
    |         | `history_*` (B, Q, L[, size]), `history_length` and `request_time` (B, Q): Q requests per row      |
    |         | `slots_whole`, `slots_half`, `slots_quarter` int32 (B, any): the slots, from 1 on, 0 = none, whose  |
    |         | history has at most L, L / 2 and L / 4 events, rounded up, each slot in one; none without a history  |
    |         | or, instead of `history_*`, `stream_*` (B, T[, size]): the events of histories, those that several  |
    |         | requests read once; `stream_prefix` or `stream_window` int32 (B, T): the history, from 1 on, 0 =     |
    |         | none; `stream_begin`, `stream_end` (B, Q): the tokens of each request                              |
    | targets | by task, float32 (B, S, 3): label, position (0 = none), request (counted within the row)           |
    | weights | by task, float32 (B, S): 0 for empty slots, candidates that are no targets, and unknown labels     |

    Lists differ in length. Padding each list to the longest wastes most of a batch, and batches of similar lengths differ in
    everything that correlates with length, which breaks batch normalisation. So requests are packed into rows once, in a random
    order, and rows are shuffled each epoch. Every batch has the same shape; the last one is filled up with empty rows.
    With `stream_prefix`, requests whose histories begin with the same event share its tokens, as a causal encoder can read them; with
    `stream_window`, those with equal histories. Requests that share are in one row, where they fit, and `row_requests` is not read.
    With inputs by length of history, a row has histories of all lengths, as the whole has, so that these inputs hold few empty slots.

    Args:
        requests: from `keras_ranking.data.requests`.
        row_length: S, at least the longest list.
        batch_size: B, rows per batch.
        names: names of the inputs, for example a model's `input_columns`.
        tasks: names of the tasks; None: all of the schema.
        row_requests: Q; None: 1.5 times the mean number in S slots, at most S.
        single: one target event per row, S = Q = 1, and `row_length` is not read: for gradients of single samples, as
            `keras_ranking.training.FisherSnapshot` needs them. Losses that compare items of a request are then 0, and a model that reads
            the list (`list_context`, `choice`) sees lists of one.
        shuffle, seed, epoch, weights: as `PackedDataset`. Without `shuffle`, requests are packed in their order, or,
            with inputs by length of history, in one that depends on the lengths alone.

    Attributes:
        slots: (rows, S) int64, the event in each slot, -1 where there is none.
        efficiency: share of the slots that hold a candidate.

    Raises:
        ValueError: no requests, `row_length` below the longest list, sizes below 1, or an unknown name or task.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> found = kr.data.requests(log.events, log.schema.fit(log.events))
        >>> dataset = kr.data.PackedRequests(found, row_length=64, batch_size=2, names=["request_slot", "candidate_item_id"])
        >>> x, y, weights = dataset[0]
        >>> x["candidate_item_id"].shape, weights["click"].shape
        ((2, 64), (2, 64))
    """

    members: np.ndarray

    def __init__(
        self,
        requests: Requests,
        row_length: int,
        batch_size: int,
        names: Sequence[str],
        tasks: Sequence[str] | None = None,
        row_requests: int | None = None,
        single: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        weights: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        require_kind(requests, Requests, "requests", "`keras_ranking.data.requests(events, schema)` makes them")
        if not len(requests):
            raise ValueError("`requests` must hold at least one request. Received: none; is there any target event?")
        sizes = requests.candidate_end - requests.candidate_begin
        if single:
            row_length = row_requests = 1
        elif row_length < sizes.max():
            raise ValueError(f"`row_length` must be at least the longest list, {int(sizes.max())}. Received: row_length={row_length}")
        if row_requests is None:
            row_requests = min(row_length, math.ceil(1.5 * row_length / sizes.mean()))
        for name, value in (("batch_size", batch_size), ("row_requests", row_requests)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        self.requests, self.row_length, self.batch_size, self.names = requests, row_length, batch_size, list(names)
        self.shuffle, self.seed, self.epoch, self.row_requests = shuffle, seed, epoch, int(row_requests)
        schema = requests.sequences.schema
        self.tasks = [schema.task(task).name for task in (requests.sequences.labels if tasks is None else tasks)]
        self.weights = checked_weights(weights, list(requests.sequences.labels), requests.sequences.num_events)
        self._sides = {
            side: [name for name in self.names if name.startswith("candidate_") == (side == "candidate") and name not in _OF_SLOTS]
            for side in ("candidate", "request")
        }
        self._lengths = [name for name in self.names if name in SLOTS_BY_LENGTH]
        self._stream_columns = [name for name in self._sides["request"] if name.startswith("stream_")]
        self._sides["request"] = [name for name in self._sides["request"] if name not in self._stream_columns]
        self._streams = self._packed_streams(sizes, single) if self._stream_columns else None
        for side in self._sides.values():
            requests.tensors([], side)
        self.history = int((requests.history_end - requests.history_begin).max(initial=1)) or 1
        if single:
            self._spread(sizes)
        else:
            self._pack(sizes)
        self._by_length = self._divided()
        self._begin()

    def _packed_streams(self, sizes: np.ndarray, single: bool) -> Streams:
        kinds = [name for name in STREAMS if name in self._stream_columns]
        self.requests.tensors([], [name.replace("stream_", "history_", 1) for name in self._stream_columns if name not in _PLACES])
        if len(kinds) != 1 or single:
            received = f"single={single}, names={self._stream_columns}"
            raise ValueError(f"streams need one of {tuple(STREAMS)} in `names`, and rows of several requests. Received: {received}")
        rng = np.random.default_rng((self.seed, 2**31)) if self.shuffle else None
        begin, end = self.requests.history_begin, self.requests.history_end
        return pack_streams(begin, end, sizes, self.row_length, STREAMS[kinds[0]], rng)

    def _of_streams(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The tokens of the chosen rows, and which of them each request reads."""
        if self._streams is None:
            return {}
        spare, sequences, made = ((0, self.batch_size - len(chosen)), (0, 0)), self.requests.sequences, {}
        tokens = np.pad(self._streams.tokens[chosen], spare, constant_values=-1)
        for name in self._stream_columns:
            if name in STREAMS:
                made[name] = np.pad(self._streams.stream[chosen], spare)
            elif name in _PLACES:
                place = self._streams.begin if name == "stream_begin" else self._streams.end
                which = self._streams.bounds[chosen, None] + np.arange(self.row_requests)
                there = which < self._streams.bounds[chosen + 1, None]
                made[name] = np.pad(np.where(there, place[np.minimum(which, len(place) - 1)], 0), spare)
            else:
                column = name.removeprefix("stream_")
                held: dict[str, Any] = {"time": sequences.time, "session": sequences.session}
                made[name] = take_or_zero(held[column] if column in held else sequences.columns[column], tokens)
        return made

    def _divided(self) -> dict[str, np.ndarray]:
        """The slots of each row by the length of their history, for the inputs that are made."""
        if not self._lengths:
            return {}
        lengths = take_or_zero(self.requests.history_end - self.requests.history_begin, self.members)
        of_slots = np.take_along_axis(lengths, np.maximum(self._request - 1, 0), axis=1)
        return slots_by_length(np.where(self._request > 0, of_slots, 0), self.history, self._lengths)

    @property
    def sizes(self) -> RequestSizes:
        """Sizes of the batches."""
        tokens = 0 if self._streams is None else int(self._streams.tokens.shape[1])
        slots = {name: int(values.shape[1]) for name, values in self._by_length.items()}
        return RequestSizes(self.row_length, self.row_requests, self.history, tokens, slots)

    def widen(self, sizes: RequestSizes) -> None:
        """Make batches of at least these sizes, with empty places; `row_length` stays."""
        self.row_requests, self.history = max(self.row_requests, sizes.row_requests), max(self.history, sizes.history)
        self.members = _wider(self.members, self.row_requests, -1)
        if self._streams is not None:
            tokens, stream = (
                _wider(values, sizes.tokens, empty) for values, empty in ((self._streams.tokens, -1), (self._streams.stream, 0))
            )
            self._streams = replace(self._streams, tokens=tokens, stream=stream)
        self._by_length = {name: _wider(values, sizes.slots.get(name, 1), 0) for name, values in self._divided().items()}

    def _begin(self) -> None:
        self._order = self._ordered()

    def _spread(self, sizes: np.ndarray) -> None:
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        event, request = np.repeat(self.requests.candidate_begin, sizes) + within, np.repeat(np.arange(len(sizes)), sizes)
        wanted = self.requests.sequences.target[event]
        self.slots, self.members = event[wanted, None], request[wanted, None]
        self._request = np.ones((int(wanted.sum()), 1), dtype=np.int32)
        self.efficiency = 1.0

    def _rows_of(self, sizes: np.ndarray) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        """Requests in the order of the rows, and the places in it at which rows begin."""
        if self._streams is not None:
            self.row_requests = int(np.diff(self._streams.bounds).max())
            return self._streams.order, self._streams.bounds
        count = len(sizes)
        rng = np.random.default_rng((self.seed, 2**31)) if self.shuffle else None
        if self._lengths:
            lengths = self.requests.history_end - self.requests.history_begin
            order = even_order(lengths, math.ceil(sizes.sum() / self.row_length), rng)
        else:
            order = np.arange(count) if rng is None else rng.permutation(count)
        ends = np.cumsum(sizes[order])
        bounds = [0]
        while bounds[-1] < count:
            start = bounds[-1]
            before = ends[start - 1] if start else 0
            full = int(np.searchsorted(ends, before + self.row_length, side="right"))
            bounds.append(min(full, start + self.row_requests))
        return order, bounds

    def _pack(self, sizes: np.ndarray) -> None:
        order, bounds = self._rows_of(sizes)
        count, ends = len(sizes), np.cumsum(sizes[order])
        first, last = np.array(bounds[:-1]), np.array(bounds[1:])
        rows = len(first)
        which = first[:, None] + np.arange(self.row_requests)[None, :]
        # (rows, Q): the requests of each row, -1 beyond them
        self.members = np.where(which < last[:, None], order[np.minimum(which, count - 1)], -1)
        row = np.repeat(np.arange(rows), last - first)
        total = int(ends[-1])
        place = np.repeat(ends - sizes[order] - np.repeat(np.concatenate([[0], ends[last[:-1] - 1]]), last - first), sizes[order])
        within = np.arange(total) - np.repeat(ends - sizes[order], sizes[order])
        at = (np.repeat(row, sizes[order]), place + within)
        self.slots = np.full((rows, self.row_length), -1, dtype=np.int64)
        self.slots[at] = np.repeat(self.requests.candidate_begin[order], sizes[order]) + within
        self._request = np.zeros((rows, self.row_length), dtype=np.int32)
        self._request[at] = np.repeat(np.arange(count) - first[row] + 1, sizes[order])
        self.efficiency = float(total / self.slots.size)

    def scatter(self, values: np.ndarray) -> np.ndarray:
        """Values of all slots, (rows, S, ...), as values of the events, (E, ...); NaN for events in no slot."""
        out = np.full((self.requests.sequences.num_events, *values.shape[2:]), np.nan)
        out[self.slots[self.slots >= 0]] = values[self.slots >= 0]
        return out

    def _ordered(self) -> np.ndarray:
        order = np.arange(len(self.slots))
        return np.random.default_rng((self.seed, self.epoch)).permutation(order) if self.shuffle else order

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def make(self, batch: int) -> Batch:
        chosen = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        spare = ((0, self.batch_size - len(chosen)), (0, 0))
        index = np.pad(self.slots[chosen], spare, constant_values=-1)
        request = np.pad(self._request[chosen], spare)
        members = np.pad(self.members[chosen], spare, constant_values=-1)
        sequences = self.requests.sequences
        x = {name: take_or_zero(sequences.columns[name.removeprefix("candidate_")], index) for name in self._sides["candidate"]}
        tensors = self.requests.tensors(members.reshape(-1), self._sides["request"], history=self.history)
        x |= {name: values.reshape(*members.shape, *values.shape[1:]) for name, values in tensors.items()}
        if SLOT in self.names:
            x[SLOT] = request
        x |= {name: np.pad(slots[chosen], spare) for name, slots in self._by_length.items()}
        x |= self._of_streams(chosen)
        target, y, weights = take_or_zero(sequences.target, index), {}, {}
        for task in self.tasks:
            label = take_or_zero(sequences.labels[task], index)
            weights[task] = (target & ~np.isnan(label)).astype(np.float32)
            if task in self.weights:
                weights[task] *= take_or_zero(self.weights[task], index)
            y[task] = np.stack([np.nan_to_num(label), take_or_zero(sequences.position, index), request], axis=-1).astype(np.float32)
        return x, y, weights


def _wider(values: np.ndarray, width: int, empty: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, max(0, width - values.shape[1]))), constant_values=empty)
