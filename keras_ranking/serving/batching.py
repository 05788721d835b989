"""Micro-batching: calls of different lengths share a run of the model, within a bound on wasted padding.

The queue is bounded and drained by worker threads. Nothing waits for company: while the model runs, calls gather, and the
next run takes what has gathered and is worth its padding (see `run_cost`). Cells beyond `history_length` and `candidate_count`
never reach the model: only what counts is copied into a batch, so a run is no wider than its longest call and no garbage can
poison a neighbour.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from keras_ranking.serving.errors import ServingError, busy, too_large, unavailable
from keras_ranking.serving.limits import Limits
from keras_ranking.serving.run_cost import RunCost
from keras_ranking.serving.saved_model import SavedModel
from keras_ranking.serving.signature import Signature

log = logging.getLogger("keras_ranking.serving")

Tensors = dict[str, np.ndarray]
_WASTE = 1.5  # cells after padding, as a share of those that count, that are always worth one run less; our choice


@dataclass
class Job:
    """One checked call, waiting."""

    signature: Signature
    inputs: Tensors
    rows: int
    deadline: float
    longest: dict[str, int]
    result: Future[Tensors] = field(default_factory=Future)

    @property
    def cells(self) -> int:
        """Cells of the call by itself: rows x (history + candidates)."""
        return self.rows * max(1, sum(self.longest.values()))


class Batcher:
    """The queue of one loaded version.

    Args:
        model: what to run.
        limits: bounds of the queue and of a batch.
        workers: threads that run the model. Our choice, 2: one copies while the other computes.
        observe: called with the rows of each run, for metrics.
    """

    def __init__(self, model: SavedModel, limits: Limits, workers: int = 2, observe: Callable[[int], None] | None = None) -> None:
        self._model = model
        self._limits = limits
        self._observe = observe
        self._queue: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._costs: dict[str, RunCost] = defaultdict(RunCost)
        self._threads = [threading.Thread(target=self._work, name=f"keras_ranking-batch-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, signature: Signature, inputs: Tensors, rows: int, deadline: float) -> Future[Tensors]:
        """Queue a call whose tensors `Signature.check` has passed.

        Args:
            deadline: in `time.monotonic()` seconds; a call still waiting then is not run any more.

        Raises:
            ServingError: RESOURCE_EXHAUSTED where the queue is full or the call too large, UNAVAILABLE after `close`.
        """
        if rows > self._limits.batch:
            raise too_large(f"a call may hold at most {self._limits.batch} requests. Received: {rows}")
        job = Job(signature, inputs, rows, deadline, signature.longest(inputs) if signature.ragged else {})
        with self._change:
            if self._closed:
                raise unavailable("the server is shutting down")
            if len(self._queue) >= self._limits.queue:
                raise busy(f"{self._limits.queue} calls are waiting already, which is the limit; try again later")
            self._queue.append(job)
            self._change.notify()
        return job.result

    def close(self) -> None:
        """Take no more, finish what waits, end the threads."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._queue and not self._closed:
                    self._change.wait()
                if not self._queue:
                    return
                jobs = self._gather()
            if jobs:
                self._finish(jobs)

    def _gather(self) -> list[Job]:
        """The oldest call that is still wanted, and others that fit with it; called with the lock held."""
        first = next((job for job in iter(self._pop, None) if _still_wanted(job)), None)
        if first is None:
            return []
        jobs, rows, cells, longest = [first], first.rows, first.cells, dict(first.longest)
        if not first.signature.ragged:
            return jobs
        kept: deque[Job] = deque()
        free = self._costs[first.signature.name].free
        while self._queue and rows < self._limits.batch:
            job = self._queue.popleft()
            wider = {axis: max(longest[axis], job.longest.get(axis, 0)) for axis in longest}
            padded = (rows + job.rows) * sum(wider.values())
            worth = _WASTE * (cells + job.cells) + free * len(jobs)
            fits = rows + job.rows <= self._limits.batch and padded <= min(self._limits.batch_cells, worth)
            if job.signature.name != first.signature.name or not fits:
                kept.append(job)
            elif _still_wanted(job):
                jobs.append(job)
                rows, cells, longest = rows + job.rows, cells + job.cells, wider
        self._queue.extendleft(reversed(kept))
        return jobs

    def _pop(self) -> Job | None:
        return self._queue.popleft() if self._queue else None

    def _finish(self, jobs: list[Job]) -> None:
        try:
            results = self._run(jobs)
        except Exception as error:
            if len(jobs) > 1:  # one call must not fail its neighbours
                for job in jobs:
                    self._finish([job])
                return
            jobs[0].result.set_exception(_as_serving_error(error))
            return
        for job, result in zip(jobs, results, strict=True):
            job.result.set_result(result)

    def _run(self, jobs: list[Job]) -> list[Tensors]:
        signature = jobs[0].signature
        if self._observe is not None:
            self._observe(sum(job.rows for job in jobs))
        if not signature.ragged:
            return [self._model.run(signature.name, jobs[0].inputs)]
        batch = join(jobs, signature)
        begin = time.perf_counter()
        outputs = self._model.run(signature.name, batch)
        seconds = time.perf_counter() - begin
        longest = {axis: max(job.longest[axis] for job in jobs) for axis in jobs[0].longest}
        with self._change:
            self._costs[signature.name].observe(sum(job.rows for job in jobs) * sum(longest.values()), seconds)
        return split(jobs, signature, outputs)


def join(jobs: list[Job], signature: Signature) -> Tensors:
    """One batch of all calls' rows: what counts is copied, the rest is zero (and the empty text)."""
    longest = {axis: max(job.longest[axis] for job in jobs) for axis in jobs[0].longest}
    counts = [signature.counts(job.inputs) for job in jobs]
    masks = {axis: ~np.concatenate([_resized(count[axis], 1, longest[axis]) for count in counts]) for axis in counts[0] if axis is not None}
    beyond = {axis: mask if mask.any() else None for axis, mask in masks.items()}
    batch: Tensors = {}
    for name, tensor in signature.inputs.items():
        parts = [job.inputs[name] for job in jobs]
        if tensor.dimension is None:
            batch[name] = np.concatenate(parts)
        elif tensor.axis is None:
            batch[name] = _stack(parts, tensor.dimension, max(part.shape[tensor.dimension] for part in parts))
        else:
            width = longest[tensor.axis]
            out = _stack([part[:, :width] for part in parts], 1, width)
            if beyond[tensor.axis] is not None:
                out[beyond[tensor.axis]] = b"" if out.dtype.kind == "O" else 0
            batch[name] = out
    return batch


def split(jobs: list[Job], signature: Signature, outputs: Tensors) -> list[Tensors]:
    """Each call's rows at the width of its own tensors, 0 beyond what counts, as an unbatched run gives them."""
    longest = {axis: max(job.longest[axis] for job in jobs) for axis in jobs[0].longest}
    widest = [signature.widest(job.inputs) for job in jobs]
    results: list[Tensors] = []
    row = 0
    for job, own in zip(jobs, widest, strict=True):
        result = {}
        for name, values in outputs.items():
            part = values[row : row + job.rows]
            tensor = signature.outputs[name]
            if tensor.axis is not None and tensor.grows is not None:
                # A cache may be a multiple of the history: two tokens an event.
                times = max(1, part.shape[tensor.grows] // longest[tensor.axis])
                part = _resized(part, tensor.grows, times * own[tensor.axis][1])
            result[name] = part
        results.append(result)
        row += job.rows
    return results


def _stack(parts: list[np.ndarray], dimension: int, size: int) -> np.ndarray:
    """All rows in one array, each part at the beginning of `dimension`, zero beyond it."""
    if all(part.shape[dimension] == size for part in parts):
        return np.concatenate(parts)
    shape = list(parts[0].shape)
    shape[0], shape[dimension] = sum(len(part) for part in parts), size
    out: np.ndarray = np.full(shape, b"", dtype=object) if parts[0].dtype.kind == "O" else np.zeros(shape, dtype=parts[0].dtype)
    row = 0
    for part in parts:
        place = [slice(None)] * part.ndim
        place[0], place[dimension] = slice(row, row + len(part)), slice(0, part.shape[dimension])
        out[tuple(place)] = part
        row += len(part)
    return out


def _resized(values: np.ndarray, dimension: int, size: int) -> np.ndarray:
    """Cut, or filled with zeros, to `size` along `dimension`."""
    have = values.shape[dimension]
    if have > size:
        return values.take(range(size), axis=dimension) if dimension != 1 else values[:, :size]
    if have == size:
        return values
    return np.pad(values, [(0, size - have if axis == dimension else 0) for axis in range(values.ndim)])


def _still_wanted(job: Job) -> bool:
    if not job.result.set_running_or_notify_cancel():
        return False
    if time.monotonic() > job.deadline:
        job.result.set_exception(ServingError("DEADLINE_EXCEEDED", "the deadline passed while the call waited for the model"))
        return False
    return True


def _as_serving_error(error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    message = " ".join(str(error).split())[:500]
    if isinstance(error, tf.errors.InvalidArgumentError):
        return ServingError("INVALID_ARGUMENT", f"the model refused the input: {message}")
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return busy(f"not enough memory for the call: {message}")
    log.error("the model failed", exc_info=error)
    return ServingError("INTERNAL", f"the model failed: {message}")
