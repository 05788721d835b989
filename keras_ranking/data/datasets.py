"""Batches for `model.fit` on any backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ranking.data.packing import PackedRows
from keras_ranking.data.requests import Requests, _take

ASKED = ("position", "delay")
Batch = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


class PackedDataset(keras.utils.PyDataset):
    """Packed rows as `(inputs, targets, sample weights)`, shuffled each epoch by seed.

    | part    | content                                                                                          |
    |---------|--------------------------------------------------------------------------------------------------|
    | inputs  | `time`, `segment` (and `session`) int32 (B, T); features and actions by name, (B, T) or (B, T, size) |
    |         | only where `inputs` names them: `position` int32 (B, T), the rank shown, 0 = none known or the serving position; |
    |         | `delay` int32 (B, T), age in seconds from which an event is visible to this one, at least 1      |
    | targets | by task, float32 (B, T, 3): label, position (0 = none), request (counted within the row)         |
    | weights | by task, float32 (B, T): 0 for padding, context, history-only events and unknown labels          |

    Every batch has the same shape: the last one is filled up with empty rows, which weigh nothing, so that a compiled step
    is traced once.

    Args:
        rows: from `pack`.
        batch_size: B, rows a batch.
        inputs: names of the inputs wanted, for example those of a model; None: all the schema allows.
        tasks: names of the tasks wanted, for example those of a model; None: all of the schema.
        shuffle: a new order of rows each epoch.
        seed: of the shuffle; epoch e uses (seed, e), so a run can be repeated. Call `fit(..., shuffle=False)` with it: what
            `fit` shuffles by default is the order of batches, by Python's global random state. A new epoch comes when the last
            one was read to its end.
        epoch: number of the first epoch, for a run that is resumed.

    Raises:
        ValueError: no rows, `batch_size` below 1, or an input that the schema does not allow, or an unknown task.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> rows = kr.data.pack(kr.data.build_sequences(log.events, log.schema.fit(log.events)), row_length=64)
        >>> x, y, weights = PackedDataset(rows, batch_size=8)[0]
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
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size}")
        if not len(rows.index):
            raise ValueError("`rows` must hold at least one row. Received: none; is there any event to learn from?")
        sequences, schema = rows.sequences, rows.sequences.schema
        known = [column.name for column in (*schema.features_known("item", "context"), *schema.actions)]
        known += ["time", "segment"] + (["session"] if sequences.session is not None else [])
        # The position shown is no feature of a score: a model that learns an offset by position asks for it by name.
        named = [*known, *ASKED]
        self.inputs = list(known if inputs is None else inputs)
        for name in self.inputs:
            if name not in named:
                raise ValueError(f"`inputs` must be inputs that the schema allows, {named}. Received: {name!r}")
        self.tasks = [schema.task(task).name for task in (sequences.labels if tasks is None else tasks)]
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.epoch = epoch
        self._order = self._ordered()
        self._read_to_end = False

    def _ordered(self) -> np.ndarray:
        order = np.arange(len(self.rows.index))
        return np.random.default_rng((self.seed, self.epoch)).permutation(order) if self.shuffle else order

    def __len__(self) -> int:
        return math.ceil(len(self.rows.index) / self.batch_size)

    def on_epoch_end(self) -> None:
        # On torch and JAX `fit` reads a batch to build the metrics, and ends an epoch that was none, before it starts.
        if self._read_to_end or self.use_multiprocessing:
            self.epoch += 1
            self._order = self._ordered()
            self._read_to_end = False

    def __getitem__(self, batch: int) -> Batch:
        self._read_to_end |= batch == len(self) - 1
        chosen = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        sequences = self.rows.sequences
        spare = self.batch_size - len(chosen)
        index = np.pad(self.rows.index[chosen], ((0, spare), (0, 0)), constant_values=-1)
        segment = np.pad(self.rows.segment[chosen], ((0, spare), (0, 0)))
        target = np.pad(self.rows.target[chosen], ((0, spare), (0, 0)))
        columns = {"position": sequences.position, **sequences.columns, "time": sequences.time}
        if sequences.session is not None:
            columns["session"] = sequences.session
        x: dict[str, np.ndarray] = {}
        for name in self.inputs:
            if name == "segment":
                x[name] = segment
            elif name == "delay" and name not in columns:
                x[name] = np.full(index.shape, sequences.schema.feedback_delay, dtype=np.int32)
            else:
                x[name] = _take(columns[name], index)
        request = _take(sequences.request, index)
        change = np.ones(index.shape, dtype=bool)
        change[:, 1:] = (request[:, 1:] != request[:, :-1]) | (segment[:, 1:] != segment[:, :-1])
        run = np.cumsum(change, axis=1)
        y, weights = {}, {}
        for task in self.tasks:
            label = _take(sequences.labels[task], index)
            weights[task] = (target & ~np.isnan(label)).astype(np.float32)
            y[task] = np.stack([np.nan_to_num(label), _take(sequences.position, index), run], axis=-1).astype(np.float32)
        return x, y, weights


class RequestDataset(keras.utils.PyDataset):
    """Requests as serving tensors, `(inputs,)` in order, for `predict` of a serving model.

    L and N are the same in every batch; the last batch has fewer requests where `batch_size` does not divide their number, so
    that `predict` returns one row a request.

    Args:
        requests: from `keras_ranking.data.requests`.
        batch_size: requests a batch.
        names: serving tensors wanted: the serving model's input names.
        history, candidates: L and N to pad to; None: the longest of all requests.

    Raises:
        ValueError: no requests, `batch_size` below 1, a name that no tensor has, or a size too small for a request.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> found = kr.data.requests(log.events, log.schema.fit(log.events), max_history=20)
        >>> (tensors,) = RequestDataset(found, batch_size=8, names=["history_time", "candidate_item_id"])[0]
        >>> tensors["history_time"].shape
        (8, 20)
    """

    def __init__(
        self,
        requests: Requests,
        batch_size: int,
        names: Sequence[str],
        history: int | None = None,
        candidates: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size}")
        if not len(requests):
            raise ValueError("`requests` must hold at least one request. Received: none; is there any event to score?")
        self.requests, self.batch_size, self.names = requests, batch_size, list(names)
        # One L and N for all batches: shapes that change would be traced anew, or refused by a tf.data signature.
        self.history = _size(requests.history_end - requests.history_begin, history, "history")
        self.candidates = _size(requests.candidate_end - requests.candidate_begin, candidates, "candidates")
        requests.tensors([], self.names)

    def __len__(self) -> int:
        return math.ceil(len(self.requests) / self.batch_size)

    def __getitem__(self, batch: int) -> tuple[dict[str, np.ndarray]]:
        which = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.requests)))
        return (self.requests.tensors(which, self.names, history=self.history, candidates=self.candidates),)


def _size(lengths: np.ndarray, size: int | None, name: str) -> int:
    longest = int(lengths.max(initial=1))
    if size is not None and size < longest:
        raise ValueError(f"`{name}` must be at least the longest of all requests, {longest}. Received: {name}={size}")
    return longest if size is None else size
