"""Batches of one shard after the other, the next one made ready while the current one is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from keras_ranking.data.epochs import EpochDataset


class ShardedDataset(EpochDataset):
    """The batches of a dataset for each shard, shuffled by shard and then by row, as a `PyDataset` for all backends.

    The batches depend on seed, epoch and number alone: a run that is resumed in the middle of a shard reads the same ones. Memory is that
    of two shards, one in use and one that a thread makes ready.

    Args:
        batches: number of batches of each shard; one of 0 is not opened.
        open: makes the dataset of a shard (number, epoch), with its own order of rows.
        shuffle: a new order of the shards each epoch.
        seed: of the order of shards.
        epoch: number of the first epoch.
        settings: `workers` and `max_queue_size`, as `PackedDataset`.

    Raises:
        ValueError: no batches.

    Example:
        >>> log = kr.data.simulate(members=40, days=2, seed=0)
        >>> shards = kr.data.prepare(log, "runs/shards", shards=2)
        >>> def opened(number, epoch):
        ...     rows = kr.data.pack(shards.sequences(number), row_length=64)
        ...     return kr.data.PackedDataset(rows, batch_size=8, seed=number, epoch=epoch)
        >>> dataset = kr.data.ShardedDataset([len(opened(0, 0)), len(opened(1, 0))], opened)
        >>> dataset[0][0]["time"].shape
        (8, 64)
    """

    def __init__(
        self,
        batches: Sequence[int],
        open: Callable[[int, int], EpochDataset],
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.batches = [int(count) for count in batches]
        if not sum(self.batches):
            raise ValueError("`batches` must hold at least one batch. Received: none; is there any target event?")
        self.open, self.shuffle, self.seed, self.epoch = open, shuffle, seed, epoch
        self._held: dict[int, Future[EpochDataset]] = {}  # by place in the order
        self._ahead: ThreadPoolExecutor | None = None
        self._hold = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        there = np.flatnonzero(self.batches)
        # Not the numbers of an order of rows, which have the seed (seed, epoch).
        self._order = np.random.default_rng((self.seed, self.epoch, 3)).permutation(there) if self.shuffle else there
        self._ends = np.cumsum([self.batches[number] for number in self._order])
        with self._hold:
            for held in self._held.values():
                held.cancel()
            self._held = {}

    def __len__(self) -> int:
        return sum(self.batches)

    @property
    def batch_size(self) -> int:
        """Rows of a batch, as the dataset of the first shard has them."""
        return int(self._opened(0).batch_size)

    def make(self, batch: int) -> Any:
        place = int(np.searchsorted(self._ends, batch, side="right"))
        dataset = self._opened(place)
        dataset._in_epoch = self._in_epoch
        return dataset.make(batch - (int(self._ends[place - 1]) if place else 0))

    def _opened(self, place: int) -> EpochDataset:
        with self._hold:
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, thread_name_prefix="shards")
            wanted = [place, place + 1] if self._in_epoch and place + 1 < len(self._order) else [place]
            # The one before stays while other threads make its last batches.
            for number in [number for number in self._held if number not in (*wanted, place - 1 if self.threads > 1 else place)]:
                self._held.pop(number).cancel()
            for number in wanted:
                if number not in self._held:
                    self._held[number] = self._ahead.submit(self.open, int(self._order[number]), self.epoch)
            found = self._held[place]
        return found.result()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("_held", "_ahead", "_hold")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._held, self._ahead, self._hold = {}, None, threading.Lock()
