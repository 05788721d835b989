"""Client: scores of DataFrames from any server with the protocol of TensorFlow Serving."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.serving.client.encoding import (
    Encoder,
    LogRows,
    as_requests,
    checked_inputs,
    checked_outputs,
    chosen,
    ids_of,
    in_groups,
    positive,
    task_of,
    weighted_name,
)
from keras_ranking.serving.client.grpc_transport import ClientTls, GrpcTransport, Target, Tensors, Transport
from keras_ranking.serving.client.rest_transport import RestTransport
from keras_ranking.serving.client.retry import Retry
from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.model_folder import CACHE_LENGTH, CACHE_TIME, EXTEND, SIGNATURE
from keras_ranking.serving.protocol.requests import Request, pad_requests
from keras_ranking.serving.protocol.signature import Signature

ENCODE, SCORE = "encode_history", "score_candidates"


class Client:
    """Scores requests on a server. Threads may share a client, and a forked process may use its parent's: it opens its own connections.
    As a context manager it closes its connections.

    Args:
        address: HOST:PORT of the gRPC or the REST port; for REST also http(s)://HOST:PORT.
        schema: of the served model, or the path of its `schema.json`.
        model: name of the model on the server.
        protocol: 'grpc' (smaller messages and faster; needs grpcio and protobuf) or 'rest' (needs neither). TensorFlow is not imported.
        timeout: seconds of a call with all its attempts; sent to the server, which drops calls that are too late.
        tasks: names of the tasks to return, and 'score', the utility; None: all that the model scores, in schema order, and its `score`.
        signature: of the model: 'serving_default', or 'raw' to send the values of the log as they are.
        version, label: the version that scores, at most one of them; None: the server's default.
        token: bearer token of the server.
        tls: True: TLS with the certificate authorities of the system; a `ClientTls`: other authorities, or a client certificate.
        retry: rules for repeating a call; see `Retry`.

    Raises:
        ValueError: an unknown task or protocol, an invalid address, a timeout that is not positive, a version and a label.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> rows = log.events[log.events["request_id"] == 0]
        >>> with kr.serving.serve("saved_models/feed", rest_port=0, grpc_port=0) as server:
        ...     with kr.serving.Client(f"127.0.0.1:{server.grpc_port}", schema, model="feed") as client:
        ...         scores = client.score(None, rows, request_time=int(rows["time"].iloc[0]))
        >>> scores.columns.tolist(), len(scores) == len(rows)
        (['click', 'like'], True)
    """

    def __init__(
        self,
        address: str,
        schema: Schema | str | Path,
        model: str,
        protocol: str = "grpc",
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
        if protocol not in ("grpc", "rest"):
            raise ValueError(f"`protocol` must be 'grpc' or 'rest'. Received: protocol={protocol!r}")
        target = make_target(address, model, version, label, timeout, token, tls, retry)
        self.schema = schema if isinstance(schema, Schema) else Schema.load(schema)
        self._tasks = None if tasks is None else [task_of(self.schema, task) for task in tasks]
        self._signature, self._timeout, self.version, self.label = signature, timeout, version, label
        self._made_with: dict[str, Any] = {"address": address, "model": model, "protocol": protocol, "timeout": timeout}
        self._made_with |= {"tasks": tasks, "signature": signature, "token": token, "tls": tls, "retry": retry}
        self._transport: Transport = GrpcTransport(target) if protocol == "grpc" else RestTransport(target)
        self._signatures: dict[str, Signature] | None = None

    def score(
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
        """Scores of one request.

        Args:
            history, candidates, request_time, session, utility, request_id, member_values: see `Request`.
            timeout: seconds of this call; None: the client's.

        Returns:
            One float32 column per task with probabilities, and `score` of a model with a utility; rows and index those of `candidates`.

        Raises:
            ValueError: errors of `request_tensors`; nothing was sent.
            ServingError: an error of the server; `.code` is the gRPC status.
        """
        request = Request(history, candidates, request_time, session, utility, request_id, member_values)
        return self.score_many([request], timeout=timeout)[0]

    def score_many(
        self, requests: Sequence[Request | tuple[Any, Any, Any]], batch: int = 32, timeout: float | None = None
    ) -> list[pd.DataFrame]:
        """Scores of several requests, in their order, `batch` requests per call.

        Args:
            requests: `Request`s, or tuples (history, candidates, request_time).
            batch: requests padded to one size and sent together; at most the limit of the server.
            timeout: seconds of each call; None: the client's.

        Raises:
            ValueError: as `score`, with the number of the request; nothing was sent.
            ServingError: as `score`.
        """
        positive(batch=batch)
        wanted = as_requests(requests)
        frames: dict[int, pd.DataFrame] = {}
        for own, places in in_groups(wanted):
            name = weighted_name(self._signature) if own else self._signature
            signature = chosen(self.signatures(), name)
            try:
                frames |= self._score(wanted, places, signature, batch, timeout)
            except ServingError as error:
                # A new version with other inputs may have been loaded since the signatures were read.
                if error.code != "INVALID_ARGUMENT" or self.signatures(refresh=True).get(name) == signature:
                    raise
                frames |= self._score(wanted, places, chosen(self.signatures(), name), batch, timeout)
        return [frames[place] for place in range(len(wanted))]

    def score_frame(
        self,
        events: pd.DataFrame,
        *,
        target: Any = None,
        max_history: int | None = None,
        delay: int | None = None,
        batch: int = 32,
        parallel: int = 4,
    ) -> pd.DataFrame:
        """Scores of the impressions of a log, each request with its member's events strictly before it.

        Args:
            events: the log, one row per impression, in any order.
            target: one bool per row: whether it is scored; the others are history only. None: all rows.
            max_history: number of newest events in a request; None: all.
            delay: leave out events younger than this number of seconds; None: keep them. See `keras_ranking.data.requests`.
            batch: requests per call.
            parallel: concurrent calls.

        Returns:
            One float32 column per task, rows and index those of `events`; NaN where `target` is False.

        Raises:
            ValueError: errors of `build_sequences` and `requests` of `keras_ranking.data`; nothing was sent.
            ServingError: as `score`.
        """
        positive(batch=batch, parallel=parallel)
        signature = self._chosen()
        log = LogRows(self._encoder, events, signature, target, max_history, delay)
        parts: list[tuple[Tensors, np.ndarray]] = []
        waiting: deque[tuple[Future[Tensors], np.ndarray]] = deque()
        with ThreadPoolExecutor(parallel) as pool:
            try:
                for tensors, rows in log.batches(batch):
                    if len(waiting) > parallel:
                        future, of = waiting.popleft()
                        parts.append((future.result(), of))
                    waiting.append((pool.submit(self._transport.predict, signature, tensors, self._timeout), rows))
                parts += [(future.result(), rows) for future, rows in waiting]
            finally:
                for future, _ in waiting:
                    future.cancel()
        return log.frame(parts)

    def predict(self, inputs: Mapping[str, Any], signature: str | None = None, timeout: float | None = None) -> Tensors:
        """Outputs of any signature for given tensors, batch first; text as `str` or `bytes`.

        A server that batches calls replies to an invalid request (such as one with an id outside its table) with the score -1 for all
        its candidates. `predict` returns it as it is; the other methods raise INVALID_ARGUMENT.

        Args:
            inputs: name -> array.
            signature: None: the client's.
            timeout: seconds of this call; None: the client's.

        Raises:
            ValueError: names, types or ranks that differ from the signature; nothing was sent.
            ServingError: as `score`.
        """
        used = chosen(self.signatures(), signature or self._signature)
        return self._transport.predict(used, checked_inputs(used, inputs), self._timeout if timeout is None else timeout)

    def encode(self, history: pd.DataFrame | None, request_time: Any) -> Tensors:
        """The cache of a history, by the signature `encode_history`; reuse it in `score_cached` while the history does not change.

        Raises:
            ValueError, ServingError: as `score`.
        """
        request = Request(history, pd.DataFrame(index=[0]), request_time)
        signature = chosen(self.signatures(), ENCODE)
        cache = self._transport.predict(signature, pad_requests([self._encoder.tensors(request, signature)]), self._timeout)
        return dict(checked_outputs(cache))

    def extend(self, cache: Tensors, history: pd.DataFrame) -> Tensors:
        """The cache of a history with later events behind it, by the signature `extend_history`.

        It equals that of `encode` of all events, at the cost of the new ones.

        Args:
            cache: of one history, from `encode` or `extend`.
            history: the later events, oldest first; none is earlier than those in the cache.

        Raises:
            ValueError: no event, an event that is too early, or as `score`.
            ServingError: as `score`; FAILED_PRECONDITION for a model whose cache cannot grow.
        """
        signature = chosen(self.signatures(), EXTEND)
        if history is None or not len(history):
            raise ValueError("`history` must have at least one later event. Received: none")
        request = Request(history, pd.DataFrame(index=[0]), history[self.schema.time].iloc[-1])
        kept = {name: values for name, values in cache.items() if name in signature.inputs}
        new = pad_requests([self._encoder.tensors(request, signature, without=list(kept))])
        length = int(cache[CACHE_LENGTH][0]) if CACHE_LENGTH in cache else 0
        if length and CACHE_TIME in cache and new["history_time"][0, 0] < cache[CACHE_TIME][0, length - 1]:
            early = int(cache[CACHE_TIME][0, length - 1]) - int(new["history_time"][0, 0])
            raise ValueError(f"`history` must not be earlier than the events in the cache. Received: an event {early} s before their last")
        return dict(checked_outputs(self._transport.predict(signature, {**kept, **new}, self._timeout)))

    def score_cached(
        self,
        cache: Tensors,
        candidates: pd.DataFrame,
        request_time: Any,
        session: Any = None,
        utility: Mapping[str, float] | None = None,
        member_values: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Scores of candidates after a cached history, by the signature `score_candidates`; as `score` returns them.

        Raises:
            ValueError, ServingError: as `score`.
        """
        signature = chosen(self.signatures(), SCORE if utility is None else weighted_name(SCORE))
        kept = {name: values for name, values in cache.items() if name in signature.inputs}
        request = Request(None, candidates, request_time, session, utility, member_values=member_values)
        rest = pad_requests([self._encoder.tensors(request, signature, without=list(kept))])
        return self._encoder.frame(self._transport.predict(signature, {**kept, **rest}, self._timeout), 0, candidates)

    def signatures(self, refresh: bool = False) -> dict[str, Signature]:
        """The signatures of the served model by name, read from the server once."""
        if self._signatures is None or refresh:
            self._signatures = self._transport.signatures()
        return self._signatures

    def input_names(self, refresh: bool = False) -> list[str]:
        """Names of the inputs of the client's signature, read from the server once."""
        return sorted(chosen(self.signatures(refresh), self._signature).inputs)

    def versions(self) -> dict[int, tuple[str, str]]:
        """The versions that the server knows: number -> state ('AVAILABLE', 'LOADING', 'END', ...) and error message.

        Raises:
            ServingError: NOT_FOUND for an unknown model.
        """
        return self._transport.versions()

    def version_of(self, label: str) -> int | None:
        """The version that has a label on the server; None: no such label.

        Raises:
            ServingError: a server that cannot be reached.
        """
        try:
            return self._transport.version_of(label)
        except ServingError as error:
            if error.code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"):
                return None
            raise

    def of_version(self, version: int) -> Client:
        """A client with the same settings for one version, with connections of its own."""
        return Client(schema=self.schema, version=version, **self._made_with)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.schema, self._tasks)

    def _chosen(self) -> Signature:
        return chosen(self.signatures(), self._signature)

    def _score(
        self, requests: list[Request], places: list[int], signature: Signature, batch: int, timeout: float | None
    ) -> dict[int, pd.DataFrame]:
        frames: dict[int, pd.DataFrame] = {}
        for tensors, part in self._encoder.batches(requests, places, signature, batch):
            ids = ids_of(requests[place] for place in part)
            outputs = self._transport.predict(signature, tensors, self._timeout if timeout is None else timeout, ids)
            frames |= {place: self._encoder.frame(outputs, row, requests[place].candidates, place) for row, place in enumerate(part)}
        return frames


def make_target(
    address: str,
    model: str,
    version: int | None,
    label: str | None,
    timeout: float,
    token: str | None,
    tls: bool | ClientTls,
    retry: Retry | None,
) -> Target:
    """Check the arguments that both clients share.

    Raises:
        ValueError: see `Client`.
    """
    if not timeout > 0:
        raise ValueError(f"`timeout` must be positive. Received: timeout={timeout}")
    if not address:
        raise ValueError(f"`address` must be HOST:PORT. Received: address={address!r}")
    if version is not None and label is not None:
        raise ValueError(f"`version` and `label` must not both be given. Received: version={version}, label={label!r}")
    secure = tls if isinstance(tls, ClientTls) else ClientTls() if tls else None
    return Target(address, model, version, label, timeout, token, secure, retry or Retry())
