"""Micro-batching: calls of different lengths share a run of the model, with a bound on padding.

The queue is bounded and emptied by worker threads. No call waits for others: calls that arrive while the model runs are collected,
and the next run takes the oldest and those of the most similar lengths. Cells beyond `history_length` and `candidate_count` do not
reach the model: only counted cells are copied into a batch. So a run is as wide as its longest call, and invalid padding of one call
cannot change another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import tensorflow as tf

from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.protocol.errors import ServingError, busy, too_large, unavailable
from keras_ranking.serving.protocol.signature import Signature
from keras_ranking.serving.server.batch_tensors import Job, concatenate, split
from keras_ranking.serving.server.limits import Limits

log = logging.getLogger("keras_ranking.serving")

Tensors = dict[str, np.ndarray]
_MOST_PADDING = 1.3  # largest ratio of the cells of a run to those of its calls; our choice


class Batcher:
    """The queue of one loaded version.

    Args:
        model: the loaded version.
        limits: bounds of the queue and of a batch.
        workers: threads that run the model. Our choice: 2, so that one copies while the other computes.
        observe: called with the rows of each run, for metrics.
    """

    def __init__(self, model: SavedModel, limits: Limits, workers: int = 2, observe: Callable[[int], None] | None = None) -> None:
        self._model = model
        self._limits = limits
        self._observe = observe
        self._queue: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"keras_ranking-batch-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, signature: Signature, inputs: Tensors, rows: int, deadline: float) -> Future[Tensors]:
        """Queue a call whose tensors were checked by `Signature.check`.

        Args:
            deadline: in `time.monotonic()` seconds; a call that still waits then is not run.

        Raises:
            ServingError: RESOURCE_EXHAUSTED if the queue is full or the call is too large, UNAVAILABLE after `close`.
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
        """Accept no more calls, finish the waiting ones, end the threads."""
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
        """The oldest call that is not cancelled, and others that fit into its run; called with the lock held."""
        first = next((job for job in iter(self._pop, None) if _is_active(job)), None)
        if first is None:
            return []
        jobs, rows, cells, longest = [first], first.rows, first.cells, dict(first.longest)
        if not first.signature.ragged:
            return jobs
        # Most similar lengths first: a run is as wide as its longest call, and padding is computed too.
        like = (job for job in self._queue if job.signature.name == first.signature.name)
        taken = set()
        for job in sorted(like, key=lambda job: sum(abs(job.longest[axis] - longest[axis]) for axis in first.longest)):
            wider = {axis: max(longest[axis], job.longest[axis]) for axis in longest}
            padded = (rows + job.rows) * sum(wider.values())
            fits = rows + job.rows <= self._limits.batch and padded <= min(self._limits.batch_cells, _MOST_PADDING * (cells + job.cells))
            if not fits:
                continue
            taken.add(id(job))
            if _is_active(job):
                jobs.append(job)
                rows, cells, longest = rows + job.rows, cells + job.cells, wider
            if rows == self._limits.batch:
                break
        self._queue = deque(job for job in self._queue if id(job) not in taken)
        return jobs

    def _pop(self) -> Job | None:
        return self._queue.popleft() if self._queue else None

    def _finish(self, jobs: list[Job]) -> None:
        try:
            results = self._run(jobs)
        except Exception as error:
            if len(jobs) > 1:  # an error of one call must not affect the others
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
        outputs = self._model.run(signature.name, concatenate(jobs, signature))
        return split(jobs, signature, outputs)


def _is_active(job: Job) -> bool:
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
        return ServingError("INVALID_ARGUMENT", f"the model rejected the input: {message}")
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return busy(f"not enough memory for the call: {message}")
    log.error("the model failed", exc_info=error)
    return ServingError("INTERNAL", f"the model failed: {message}")
