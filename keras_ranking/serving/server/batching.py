"""Micro-batching: calls of different lengths share a run of the model, within a bound on wasted padding.

The queue is bounded and drained by worker threads. Nothing waits for company: while the model runs, calls gather, and the
next run takes the oldest and those most like it in length. Cells beyond `history_length` and `candidate_count`
never reach the model: only what counts is copied into a batch, so a run is no wider than its longest call and no garbage can
poison a neighbour.
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
from keras_ranking.serving.server.batch_tensors import Job, join, split
from keras_ranking.serving.server.limits import Limits

log = logging.getLogger("keras_ranking.serving")

Tensors = dict[str, np.ndarray]
_WASTE = 1.3  # a run may hold at most this many times the cells of its calls; our choice


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
        # The most like it first: a run is as wide as its longest call, and what is padded is computed too.
        like = (job for job in self._queue if job.signature.name == first.signature.name)
        taken = set()
        for job in sorted(like, key=lambda job: sum(abs(job.longest[axis] - longest[axis]) for axis in first.longest)):
            wider = {axis: max(longest[axis], job.longest[axis]) for axis in longest}
            padded = (rows + job.rows) * sum(wider.values())
            fits = rows + job.rows <= self._limits.batch and padded <= min(self._limits.batch_cells, _WASTE * (cells + job.cells))
            if not fits:
                continue
            taken.add(id(job))
            if _still_wanted(job):
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
        outputs = self._model.run(signature.name, join(jobs, signature))
        return split(jobs, signature, outputs)


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
