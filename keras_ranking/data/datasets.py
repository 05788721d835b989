"""Batches of packed rows for `model.fit` on any backend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ranking.data.delays import checked_delays, sample_delays
from keras_ranking.data.epochs import EpochDataset
from keras_ranking.data.member_values import MemberSlots
from keras_ranking.data.packing import PackedRows
from keras_ranking.data.requests import take_or_zero
from keras_ranking.data.shuffling import session_order
from keras_ranking.values import require_kind

SLOT = "request_slot"
MEMBER_SLOT = "member_slot"
ON_REQUEST = ("position", "delay", SLOT)
LENGTHS = ("row", "longest", "bucketed")
Batch = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


def checked_weights(weights: Mapping[str, Any] | None, tasks: Sequence[str], events: int) -> dict[str, np.ndarray]:
    """Weights of events by task, float32 (E,); a task without an entry has weight 1."""
    given = dict(weights or {})
    for task, values in given.items():
        if task not in tasks:
            raise ValueError(f"`weights` must be by task, {list(tasks)}. Received: {task!r}")
        array = np.asarray(values)
        if array.shape != (events,) or not (np.isfinite(array).all() and (array >= 0).all()):
            fault = f"shape {array.shape}" if array.shape != (events,) else f"{array[~((array >= 0) & np.isfinite(array))][0]}"
            raise ValueError(f"`weights` of task '{task}' must hold a finite number >= 0 for each of {events} events. Received: {fault}")
        given[task] = array.astype(np.float32)
    return given


class PackedDataset(EpochDataset):
    """Packed rows as `(inputs, targets, sample weights)`, shuffled each epoch by seed.

    | part    | content                                                                                          |
    |---------|--------------------------------------------------------------------------------------------------|
    | inputs  | `time`, `segment` (and `session`) int32 (B, T); features and actions by name, (B, T) or (B, T, size) |
    |         | only if `inputs` names them: `position` int32 (B, T), the rank shown, 0 = unknown, or the serving position;       |
    |         | `delay` int32 (B, T), age in seconds from which an earlier event is visible to this one, at least 1;  |
    |         | `request_slot` int32 (B, T), request of the row, from 1 on, that an event belongs to, 0 = empty      |
    |         | columns known='member': `member_<name>` (B, M[, size]), each value once for the events that have it,  |
    |         | and `member_slot` int32 (B, T), which of them an event has, from 1 on, 0 = empty                    |
    | targets | by task, float32 (B, T, 3): label, position (0 = none), request (counted within the row)         |
    | weights | by task, float32 (B, T): 0 for padding, context, history-only events and unknown labels, else the event's weight |

    Every batch has B rows: the last one is filled up with empty rows, which have weight 0. With `length="row"` all batches have the
    same shape, so that a compiled step is traced once. The other two are for rows of one piece each (`keras_ranking.data.pad`):

    | length     | T of a batch                                                                                |
    |------------|---------------------------------------------------------------------------------------------|
    | 'row'      | the row length                                                                              |
    | 'longest'  | its longest row: ordinary padding. The rows of a batch are random                            |
    | 'bucketed' | its longest row; a batch has rows of similar length, and batches come in random order        |

    Args:
        rows: from `pack`.
        batch_size: B, rows per batch.
        inputs: names of the inputs, for example those of a model; None: all that the schema allows.
        tasks: names of the tasks, for example those of a model; None: all of the schema.
        shuffle: a new order of rows each epoch.
        seed: of the shuffle; epoch e uses (seed, e), so a run can be repeated. Call `fit(..., shuffle=False)` with it: what
            `fit` shuffles by default is the order of batches, by Python's global random state. A new epoch begins after the last
            one was read to its end.
        epoch: number of the first epoch, for a run that is resumed.
        weights: by task, (E,) weight of each event of the streams, >= 0 (`keras_ranking.training.event_weights`). None: 1.
        length: see the table.
        length_multiple: T is rounded up to a multiple of this, for 'longest' and 'bucketed': every new T needs a compilation.
        shuffle_sessions: None; 'fixed' or 'epoch': events of a session in a random order, drawn once or each epoch, see
            `keras_ranking.data.shuffle_sessions`. Context events stay context events.
        delays: what the input `delay` is drawn from, one draw per request and epoch: logged delays or a number, see
            `sample_delays`. None: the schema's `feedback_delay`, always.
        settings: `workers` (threads that make batches) and `max_queue_size`; the batches are the same for any number of workers.

    Raises:
        ValueError: no rows, sizes below 1, an input that the schema does not allow, an unknown task, bad weights, or an option of
            another name.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> rows = kr.data.pack(kr.data.build_sequences(log.events, log.schema.fit(log.events)), row_length=64)
        >>> x, y, weights = kr.data.PackedDataset(rows, batch_size=8)[0]
        >>> x["time"].shape, y["click"].shape, weights["click"].shape
        ((8, 64), (8, 64, 3), (8, 64))
    """

    def __init__(
        self,
        rows: PackedRows,
        batch_size: int,
        inputs: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        tasks: Sequence[str] | None = None,
        weights: Mapping[str, Any] | None = None,
        length: str = "row",
        length_multiple: int = 64,
        shuffle_sessions: str | None = None,
        delays: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        require_kind(rows, PackedRows, "rows", "`keras_ranking.data.pack(sequences, row_length)` makes them")
        for argument, value in (("batch_size", batch_size), ("length_multiple", length_multiple)):
            if value < 1:
                raise ValueError(f"`{argument}` must be a positive integer. Received: {argument}={value}")
        if length not in LENGTHS:
            raise ValueError(f"`length` must be one of {LENGTHS}. Received: length={length!r}")
        if shuffle_sessions not in (None, "fixed", "epoch"):
            raise ValueError(f"`shuffle_sessions` must be None, 'fixed' or 'epoch'. Received: shuffle_sessions={shuffle_sessions!r}")
        if not len(rows.index):
            raise ValueError("`rows` must hold at least one row. Received: none; is there any target event?")
        sequences, schema = rows.sequences, rows.sequences.schema
        known = [column.name for column in (*schema.features_known("item", "context"), *schema.actions)]
        known += ["time", "segment"] + (["session"] if sequences.session is not None else [])
        known += [f"member_{name}" for name in schema.of_member] + ([MEMBER_SLOT] if schema.of_member else [])
        # The position shown is not a feature of a score: only a model with an offset by position names it as an input.
        named = [*known, *ON_REQUEST]
        self.inputs = list(known if inputs is None else inputs)
        for name in self.inputs:
            if name not in named:
                raise ValueError(f"`inputs` must be inputs that the schema allows, {named}. Received: {name!r}")
        self.tasks = [schema.task(task).name for task in (sequences.labels if tasks is None else tasks)]
        self.weights = checked_weights(weights, list(sequences.labels), sequences.num_events)
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.length, self.length_multiple, self.shuffle_sessions = length, length_multiple, shuffle_sessions
        self.epoch = epoch
        self._delays = checked_delays(schema.feedback_delay if delays is None else delays)
        self._sizes = (rows.index >= 0).sum(axis=1)
        self._members = self._member_slots()
        self._begin()

    def _member_slots(self) -> MemberSlots | None:
        """What makes the inputs of the member's columns; None where there are none."""
        sequences = self.rows.sequences
        read = [name for name in sequences.schema.of_member if f"member_{name}" in self.inputs]
        if bool(read) != (MEMBER_SLOT in self.inputs):
            raise ValueError(f"`inputs` with columns known='member' need '{MEMBER_SLOT}', and it needs such. Received: {self.inputs}")
        if not read:
            return None
        moved = sequences.session if self.shuffle_sessions is not None else None
        return MemberSlots({name: sequences.columns[name] for name in read}, sequences.member, self.rows.index, moved)

    @property
    def member_values(self) -> int:
        """M, places in a row for values of the member's columns; 0 without such inputs. It may be set to more, as other shards need."""
        return 0 if self._members is None else self._members.most

    @member_values.setter
    def member_values(self, most: int) -> None:
        if self._members is not None:
            self._members.most = max(self._members.most, int(most))

    def _begin(self) -> None:
        """Draw what differs between epochs: the order of rows, the order inside sessions, the delays."""
        sequences = self.rows.sequences
        self._order = self._ordered()
        self._event: np.ndarray | None = None
        self._time = sequences.time
        if self.shuffle_sessions is not None:
            draw = self.epoch if self.shuffle_sessions == "epoch" else 0
            self._event, self._time = session_order(sequences, (self.seed, draw, 1), self.rows.cuts)
        self._delay: np.ndarray | None = None
        if "delay" in self.inputs and "delay" not in sequences.columns:
            starts = sequences.request_starts
            drawn = sample_delays(self._delays, len(starts) - 1, (self.seed, self.epoch, 2))
            self._delay = np.repeat(drawn, np.diff(starts))

    def _ordered(self) -> np.ndarray:
        order = np.arange(len(self.rows.index))
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shuffle:
            order = rng.permutation(order)
        if self.length == "bucketed":
            order = order[np.argsort(self._sizes[order], kind="stable")]
            if self.shuffle and len(order) > self.batch_size:
                # Only the last batch may be short: it stays last.
                full = len(order) // self.batch_size
                whole = order[: full * self.batch_size].reshape(full, self.batch_size)
                order = np.concatenate([rng.permutation(whole).reshape(-1), order[full * self.batch_size :]])
        return order

    def __len__(self) -> int:
        return math.ceil(len(self.rows.index) / self.batch_size)

    def _width(self, chosen: np.ndarray, batch: int) -> int:
        """T of a batch."""
        full = int(self.rows.index.shape[1])
        if self.length == "row":
            return full
        # Before an epoch begins, TensorFlow reads two batches to learn which sizes vary. One of them is longer than any row, to show
        # that T varies.
        if batch % 2 and not self._in_epoch:
            return full + 1
        longest = int(self._sizes[chosen].max())
        return min(full, math.ceil(longest / self.length_multiple) * self.length_multiple)

    def make(self, batch: int) -> Batch:
        chosen = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        sequences, width = self.rows.sequences, self._width(chosen, batch)
        spare = ((0, self.batch_size - len(chosen)), (0, max(0, width - self.rows.index.shape[1])))
        place = np.pad(self.rows.index[chosen, :width], spare, constant_values=-1)
        segment = np.pad(self.rows.segment[chosen, :width], spare)
        event, target = place, np.pad(self.rows.target[chosen, :width], spare)
        if self._event is not None:
            event = np.where(place < 0, -1, self._event[place])
            target = np.pad(self.rows.own[chosen, :width], spare) & sequences.target[event]
        columns = {"position": sequences.position, **sequences.columns}
        if sequences.session is not None:
            columns["session"] = sequences.session
        of_member = {} if self._members is None else self._members.tensors(event)
        x: dict[str, np.ndarray] = {name: values for name, values in of_member.items() if name in self.inputs}
        for name in self.inputs:
            if name == "segment":
                x[name] = segment
            elif name == "time":
                x[name] = take_or_zero(self._time, place)
            elif name == "delay" and self._delay is not None:
                x[name] = np.maximum(take_or_zero(self._delay, event), 1)
            elif (name != SLOT or name in columns) and name not in of_member:
                x[name] = take_or_zero(columns[name], event)
        request = take_or_zero(sequences.request, event)
        change = np.ones(event.shape, dtype=bool)
        change[:, 1:] = (request[:, 1:] != request[:, :-1]) | (segment[:, 1:] != segment[:, :-1])
        run = np.cumsum(change, axis=1)
        if SLOT in self.inputs and SLOT not in columns:
            x[SLOT] = np.where(segment > 0, run, 0).astype(np.int32)
        position = take_or_zero(sequences.position, event)
        y, weights = {}, {}
        for task in self.tasks:
            label = take_or_zero(sequences.labels[task], event)
            weights[task] = (target & ~np.isnan(label)).astype(np.float32)
            if task in self.weights:
                weights[task] *= take_or_zero(self.weights[task], event)
            y[task] = np.stack([np.nan_to_num(label), position, run], axis=-1).astype(np.float32)
        return x, y, weights
