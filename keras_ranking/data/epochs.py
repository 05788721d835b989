"""Batches that depend on seed, epoch and number alone, whatever the backend, the number of workers and what `fit` reads ahead."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np


class EpochDataset(keras.utils.PyDataset):
    """A `PyDataset` with an order for each epoch and with its own workers.

    Keras's workers are not used: they hand batches that were read to learn shapes, or for the epoch before, to the next epoch, which then
    has batches of two orders. Here `workers` threads make the next batches of the order in which `fit` reads; processes are not
    started, since batches are gathered from arrays in memory, which each process would copy.

    A new epoch begins when `fit` has ended one that was read to its end. What `fit` reads before the first epoch is none.

    Args:
        workers: number of threads that make batches; 0 or 1: none.
        use_multiprocessing: taken for the sake of Keras's arguments; threads are used.
        max_queue_size: largest number of batches that are made ahead.
    """

    _made: dict[int, Future[Any]]  # by number, batches that are made ahead
    _pool: ThreadPoolExecutor | None

    def __init__(self, workers: int = 1, use_multiprocessing: bool = False, max_queue_size: int = 10) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=max_queue_size)
        for name, value, least in (("workers", workers, 0), ("max_queue_size", max_queue_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")
        self.threads, self.ahead = workers, max_queue_size
        self.epoch = 0
        self._read_to_end = self._in_epoch = False
        self._lock, self._pool, self._made = threading.Lock(), None, {}
        self._parts, self._own = 1, (0, 1)

    def share_out(self, parts: int, own: tuple[int, int]) -> None:
        """From now on a batch is one of `parts` equal parts, of which this process reads those from `own[0]` to before `own[1]`.

        Rows are filled up to a multiple of the parts with empty ones, which have weight 0.
        """
        if not 0 <= own[0] < own[1] <= parts:
            raise ValueError(f"`own` must be a range of the parts, 0 to {parts}. Received: own={own}")
        self._parts, self._own = parts, own

    def _made_whole(self, batch: int) -> Any:
        made = self.make(batch)
        return made if self._parts == 1 else shared_out(made, self._parts, self._own)

    def make(self, batch: int) -> Any:
        """The batch of this number in the current epoch."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Draw what differs between epochs."""

    def next_epoch(self) -> None:
        """Draw the order of the next epoch."""
        self._forget()
        self.epoch += 1
        self._begin()
        self._read_to_end = self._in_epoch = False

    def on_epoch_begin(self) -> None:
        self._in_epoch = True
        self._forget()  # what was made before the epoch may have other shapes

    def on_epoch_end(self) -> None:
        self._in_epoch = False
        if self._read_to_end and not _before_the_first_epoch():
            self.next_epoch()
        else:
            self._forget()

    def __getitem__(self, batch: int) -> Any:
        self._read_to_end |= batch == len(self) - 1
        if self.threads < 2:
            return self._made_whole(batch)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
            wanted = range(batch, min(batch + min(self.threads + 1, self.ahead), len(self)))
            for number in [number for number in self._made if number not in wanted]:
                self._made.pop(number).cancel()
            for number in wanted:
                if number not in self._made:
                    self._made[number] = self._pool.submit(self._made_whole, number)
            found = self._made.pop(batch)
        return found.result()

    def _forget(self) -> None:
        """Drop batches that were made ahead, once those in the making are done with the old order."""
        with self._lock:
            for found in self._made.values():
                if not found.cancel():
                    found.exception()
            self._made.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_made", "_lock", "_pool")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._pool, self._made = threading.Lock(), None, {}


def shared_out(made: Any, parts: int, own: tuple[int, int]) -> Any:
    """The own parts of a batch, arrays in mappings and tuples, with empty rows at its end up to a multiple of `parts`."""
    if isinstance(made, Mapping):
        return {name: shared_out(value, parts, own) for name, value in made.items()}
    if isinstance(made, tuple):
        return tuple(shared_out(value, parts, own) for value in made)
    size = math.ceil(len(made) / parts)
    mine = made[own[0] * size : own[1] * size]
    return np.pad(mine, [(0, (own[1] - own[0]) * size - len(mine)), *[(0, 0)] * (made.ndim - 1)])


def _before_the_first_epoch() -> bool:
    """Whether Keras resets its iterator, as it does once before the epochs of `fit`: for a single batch, the same calls as an epoch."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame.f_code.co_name == "reset" and frame.f_code.co_filename.endswith("epoch_iterator.py"):
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
