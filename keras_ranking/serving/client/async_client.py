"""AsyncClient: the client for asyncio, over gRPC."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.serving.client.client import make_target
from keras_ranking.serving.client.encoding import (
    Encoder,
    LogRows,
    as_requests,
    checked_inputs,
    chosen,
    ids_of,
    in_groups,
    positive,
    task_of,
    weighted_name,
)
from keras_ranking.serving.client.grpc_transport import ClientTls, GrpcParts, Tensors
from keras_ranking.serving.client.retry import Budget, Retry
from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.model_folder import SIGNATURE
from keras_ranking.serving.protocol.requests import Request
from keras_ranking.serving.protocol.signature import Signature


class AsyncClient:
    """`Client` with coroutines as methods; make and use it in one event loop of one process.

    Args:
        address, schema, model, timeout, tasks, signature, version, label, token, tls, retry: as `Client`; the protocol is gRPC.

    Raises:
        ValueError: as `Client`.
        RuntimeError: a call in a process that was forked since.

    Example:
        >>> import asyncio
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> rows = log.events[log.events["request_id"] == 0]
        >>> async def score(port):
        ...     async with kr.serving.AsyncClient(f"127.0.0.1:{port}", schema, model="feed") as client:
        ...         return await client.score(None, rows, request_time=int(rows["time"].iloc[0]))
        >>> with kr.serving.serve("saved_models/feed", rest_port=0, grpc_port=0) as server:
        ...     scores = asyncio.run(score(server.grpc_port))
        >>> scores.columns.tolist(), len(scores) == len(rows)
        (['click', 'like'], True)
    """

    def __init__(
        self,
        address: str,
        schema: Schema | str | Path,
        model: str,
        timeout: float = 10.0,
        tasks: Sequence[str] | None = None,
        signature: str = SIGNATURE,
        *,
        version: int | None = None,
        label: str | None = None,
        token: str | None = None,
        tls: bool | ClientTls = False,
        retry: Retry | None = None,
    ) -> None:
        target = make_target(address, model, version, label, timeout, token, tls, retry)
        self.schema = schema if isinstance(schema, Schema) else Schema.load(schema)
        self._encoder = Encoder(self.schema, None if tasks is None else [task_of(self.schema, task) for task in tasks])
        self._signature, self._timeout = signature, timeout
        self._parts = GrpcParts(target)
        self._budget = Budget(target.retry)
        self._channel = self._parts.channel(self._parts.grpc.aio)
        self._predict, self._metadata = self._parts.calls(self._channel)
        self._signatures: dict[str, Signature] | None = None
        self._process = os.getpid()

    async def score(
        self,
        history: pd.DataFrame | None,
        candidates: pd.DataFrame,
        request_time: Any,
        timeout: float | None = None,
        session: Any = None,
        utility: Mapping[str, float] | None = None,
        request_id: Any = None,
        member_values: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Scores of one request, as `Client.score`."""
        request = Request(history, candidates, request_time, session, utility, request_id, member_values)
        return (await self.score_many([request], timeout=timeout))[0]

    async def score_many(
        self, requests: Sequence[Request | tuple[Any, Any, Any]], batch: int = 32, timeout: float | None = None, *, parallel: int = 4
    ) -> list[pd.DataFrame]:
        """Scores of several requests, in their order, as `Client.score_many`, with `parallel` concurrent calls."""
        positive(batch=batch, parallel=parallel)
        wanted = as_requests(requests)
        frames: dict[int, pd.DataFrame] = {}
        for own, places in in_groups(wanted):
            name = weighted_name(self._signature) if own else self._signature
            signature = chosen(await self.signatures(), name)
            try:
                frames |= await self._score(wanted, places, signature, batch, timeout, parallel)
            except ServingError as error:
                # A new version with other inputs may have been loaded since the signatures were read.
                if error.code != "INVALID_ARGUMENT" or (await self.signatures(refresh=True)).get(name) == signature:
                    raise
                frames |= await self._score(wanted, places, chosen(await self.signatures(), name), batch, timeout, parallel)
        return [frames[place] for place in range(len(wanted))]

    async def _score(
        self, requests: list[Request], places: list[int], signature: Signature, batch: int, timeout: float | None, parallel: int
    ) -> dict[int, pd.DataFrame]:
        batches = self._encoder.batches(requests, places, signature, batch)
        replies = await self._all(
            signature, ((tensors, ids_of(requests[place] for place in part)) for tensors, part in batches), timeout, parallel
        )
        frames: dict[int, pd.DataFrame] = {}
        for outputs, (_, part) in zip(replies, batches, strict=True):
            frames |= {place: self._encoder.frame(outputs, row, requests[place].candidates, place) for row, place in enumerate(part)}
        return frames

    async def _all(self, signature: Signature, calls: Iterable[tuple[Tensors, str]], timeout: float | None, parallel: int) -> list[Tensors]:
        """Outputs of several calls, in their order, at most `parallel` at once: a server refuses more calls than it has threads."""
        places = asyncio.Semaphore(parallel)

        async def one(tensors: Tensors, ids: str) -> Tensors:
            try:
                return await self._send(signature, tensors, timeout, ids)
            finally:
                places.release()

        tasks: list[asyncio.Task[Tensors]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for tensors, ids in calls:
                    await places.acquire()
                    tasks.append(group.create_task(one(tensors, ids)))
        except BaseExceptionGroup as errors:  # raise the first error; the group has cancelled the other calls
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def score_frame(
        self,
        events: pd.DataFrame,
        *,
        target: Any = None,
        max_history: int | None = None,
        delay: int | None = None,
        batch: int = 32,
        parallel: int = 4,
    ) -> pd.DataFrame:
        """Scores of the impressions of a log, as `Client.score_frame`."""
        positive(batch=batch, parallel=parallel)
        signature = chosen(await self.signatures(), self._signature)
        log = LogRows(self._encoder, events, signature, target, max_history, delay)
        rows: list[np.ndarray] = []

        def calls() -> Iterator[tuple[Tensors, str]]:
            for tensors, of in log.batches(batch):
                rows.append(of)
                yield tensors, ""

        replies = await self._all(signature, calls(), None, parallel)
        return log.frame(list(zip(replies, rows, strict=True)))

    async def predict(self, inputs: Mapping[str, Any], signature: str | None = None, timeout: float | None = None) -> Tensors:
        """Outputs of any signature for given tensors, as `Client.predict`."""
        signature_used = chosen(await self.signatures(), signature or self._signature)
        return await self._send(signature_used, checked_inputs(signature_used, inputs), timeout)

    async def signatures(self, refresh: bool = False) -> dict[str, Signature]:
        """The signatures of the served model by name, read from the server once."""
        if self._signatures is None or refresh:
            response = await self._call(self._metadata, self._parts.metadata_request(), self._timeout)
            self._signatures = self._parts.codec.signatures(response)
        return self._signatures

    async def close(self) -> None:
        """Close the connection."""
        self._parts.closed = True
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _send(self, signature: Signature, inputs: Tensors, timeout: float | None, ids: str = "") -> Tensors:
        request = self._parts.predict_request(signature, inputs)
        response = await self._call(self._predict, request, self._timeout if timeout is None else timeout, self._parts.with_ids(ids))
        outputs: Tensors = self._parts.codec.read_tensors(response.outputs)
        return outputs

    async def _call(self, method: Any, request: Any, timeout: float, metadata: Any = None) -> Any:
        if os.getpid() != self._process:  # its channel would wait for ever
            raise RuntimeError("an AsyncClient cannot be used in a forked process: make one in the process that uses it")
        deadline = time.monotonic() + timeout
        self._budget.earn()
        attempt = 1
        while True:
            try:
                return await method(request, timeout=deadline - time.monotonic(), metadata=metadata or self._parts.metadata)
            except self._parts.grpc.RpcError as failure:
                error = self._parts.error(failure)
                wait = self._budget.wait(error, attempt, deadline)
                if wait is None:
                    raise error from failure
            await asyncio.sleep(wait)
            attempt += 1
