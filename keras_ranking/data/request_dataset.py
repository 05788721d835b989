"""Batches of requests for a serving model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_ranking.data.epochs import EpochDataset
from keras_ranking.data.requests import Requests
from keras_ranking.values import require_kind

_SHORTEST = 64


class RequestDataset(EpochDataset):
    """Requests as serving tensors, `(inputs,)` in order, for `predict` of a serving model.

    N is the same in every batch, and so are the shapes of scores. The last batch may have fewer requests, so that `predict` returns one
    row per request.

    Members differ in the length of their history, and most of a batch padded to the longest of all would be padding. So L of a batch is
    the smallest of at most four sizes that holds its longest history: the longest of all requests, and a half, a quarter and an eighth of
    it, of at least 64 events. No event is left out, and padding changes no score. A compiled model is compiled once for each size.

    Args:
        requests: from `keras_ranking.data.requests`.
        batch_size: requests per batch.
        names: names of the serving tensors, for example the serving model's inputs.
        history: L to pad every batch to; None: as above.
        candidates: N to pad to; None: the longest list of all requests.

    Attributes:
        history: the largest L.
        sizes: all L, in increasing order.

    Raises:
        ValueError: no requests, `batch_size` below 1, an unknown tensor name, or a size too small for a request.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> found = kr.data.requests(log.events, log.schema.fit(log.events), max_history=20)
        >>> (tensors,) = kr.data.RequestDataset(found, batch_size=8, names=["history_time", "candidate_item_id"])[0]
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
        require_kind(requests, Requests, "requests", "`keras_ranking.data.requests(events, schema)` makes them")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size}")
        if not len(requests):
            raise ValueError("`requests` must hold at least one request. Received: none; is there any event to score?")
        self.requests, self.batch_size, self.names = requests, batch_size, list(names)
        self._lengths: np.ndarray = requests.history_end - requests.history_begin
        self.history = _size(self._lengths, history, "history")
        halves = [-(-self.history // share) for share in (8, 4, 2) if self.history >= _SHORTEST * share]
        self.sizes: tuple[int, ...] = (*(halves if history is None else ()), self.history)
        self.candidates = _size(requests.candidate_end - requests.candidate_begin, candidates, "candidates")
        requests.tensors([], self.names)

    def __len__(self) -> int:
        return math.ceil(len(self.requests) / self.batch_size)

    def make(self, batch: int) -> tuple[dict[str, np.ndarray]]:
        which = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.requests)))
        size = self.length(batch)
        # Before an epoch begins, TensorFlow reads two batches to learn which sizes vary: they must differ.
        if batch == 1 and len(self.sizes) > 1 and not self._in_epoch:
            size = self.history + (self.length(0) == self.history)
        return (self.requests.tensors(which, self.names, history=size, candidates=self.candidates),)

    def length(self, batch: int) -> int:
        """L of a batch."""
        longest = int(self._lengths[batch * self.batch_size : (batch + 1) * self.batch_size].max(initial=0))
        return next(size for size in self.sizes if size >= longest)


def _size(lengths: np.ndarray, size: int | None, name: str) -> int:
    longest = int(lengths.max(initial=1))
    if size is not None and size < longest:
        raise ValueError(f"`{name}` must be at least the longest of all requests, {longest}. Received: {name}={size}")
    return longest if size is None else size
