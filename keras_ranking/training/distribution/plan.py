"""What a training asks of its devices: here one process with one device; a subclass for each backend has several."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_ACTIVE: list[Plan] = []


class Plan:
    """How a training is shared out.

    Attributes:
        ranks: number of processes that train together.
        rank: number of this one, from 0 on.
        parts: number of equal parts of a batch.
        own: the parts of this process, from the first to before the last.
    """

    ranks, rank, parts = 1, 0, 1
    own: tuple[int, int] = (0, 1)

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def scope(self) -> Iterator[Plan]:
        """Inside, models are made and trained by this plan, which is `active`."""
        _ACTIVE.append(self)
        try:
            with self.devices():
                yield self
        finally:
            _ACTIVE.remove(self)

    @contextlib.contextmanager
    def devices(self) -> Iterator[None]:
        """Inside, the backend makes variables and steps for these devices."""
        yield

    def describe(self, dataset: Any, ranker: Any) -> str | None:
        """One line: devices, and what each has; None: there is nothing to tell."""
        return None

    def rows(self, dataset: Any) -> str:
        """How a batch is shared out, in words."""
        rows = int(dataset.batch_size)
        each = -(-rows // self.parts)
        empty = f", {each * self.parts - rows} of them empty" if each * self.parts > rows else ""
        return f"batches of {rows:,} rows in {self.parts} parts of {each:,}{empty}"

    def check(self, recipe: Any) -> None:
        """Raise an error for a recipe that does not work on these devices.

        Raises:
            NotImplementedError: such an option, and what to do.
        """

    def start(self, ranker: Any, dataset: Any) -> str | None:
        """Let a dataset read the own parts of its batches alone, and prepare the compiled model; returns `describe`."""
        if self.parts > 1:
            dataset.share_out(self.parts, self.own)
        self.prepare(ranker)
        return self.describe(dataset, ranker)

    def prepare(self, ranker: Any) -> None:
        """What a compiled model needs before its first step."""

    def build(self, ranker: Any, batch: Any, build: Callable[[Any, Any], None]) -> None:
        """Make the states of losses and optimiser by `build`."""
        build(ranker, batch)

    def finished(self, ranker: Any, again: Callable[[], Any], compiled: Callable[[Any], None]) -> Any:
        """The trained model as one of this process alone.

        Args:
            ranker: the model.
            again: makes a model of the same shapes.
            compiled: compiles it.
        """
        return ranker

    # -- scores ----------------------------------------------------------------------------------------------------------

    def by_turns(self) -> Plan:
        """The plan by which models of one process each score: a batch is scored by one of the processes."""
        return self

    def turns(self, batches: int) -> Iterable[int]:
        """Numbers of the batches that this process scores."""
        return range(batches)

    def predict_on_batch(self, ranker: Any, x: Any) -> Any:
        """As that of the model."""
        return ranker.predict_on_batch(x)

    def merged(self, by_task: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Float64 arrays of which each process has some numbers, and NaN elsewhere: those of all processes."""
        return dict(by_task)

    # -- processes -------------------------------------------------------------------------------------------------------

    def gathered(self, array: np.ndarray) -> list[np.ndarray]:
        """The array of each process, all of one shape and type."""
        return [array]

    def wait(self) -> None:
        """Until all processes are here."""
        self.gathered(np.zeros(1, dtype=np.uint8))

    def anywhere(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return any(bool(one[0]) for one in self.gathered(np.array([flag], dtype=np.uint8)))

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Check that all processes train the same.

        Raises:
            ValueError: naming the processes that have another log or other options.
        """
        own = {name: _digest(value) for name, value in settings.items()}
        found = self.gathered(np.stack([own[name] for name in sorted(own)]))
        for rank, other in enumerate(found):
            differ = [name for name, one, two in zip(sorted(own), found[0], other, strict=True) if not np.array_equal(one, two)]
            if differ:
                raise ValueError(f"all processes must train the same: process {rank} differs from process 0 in {differ}")


class ByTurns(Plan):
    """Processes with a whole model each.

    Args:
        rank, ranks: of this process, and their number.
        gathered: as `Plan.gathered`.
    """

    def __init__(self, rank: int, ranks: int, gathered: Callable[[np.ndarray], list[np.ndarray]]) -> None:
        self.rank, self.ranks, self._gathered = rank, ranks, gathered

    def gathered(self, array: np.ndarray) -> list[np.ndarray]:
        return self._gathered(array)

    def turns(self, batches: int) -> Iterable[int]:
        return range(self.rank, batches, self.ranks)

    def merged(self, by_task: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = {}
        for task in sorted(by_task):  # the same order in all processes
            found = self.gathered(np.asarray(by_task[task], dtype=np.float64))
            values = found[0]
            for other in found[1:]:
                values = np.where(np.isnan(values), other, values)
            out[task] = values
        return {task: out[task] for task in by_task}


ONE = Plan()


def active() -> Plan:
    """The plan inside whose `scope` this is; one process with one device outside of all."""
    return _ACTIVE[-1] if _ACTIVE else ONE


def _digest(value: Any) -> np.ndarray:
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype=np.uint8)
