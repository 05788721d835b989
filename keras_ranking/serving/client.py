"""Client: frames in, scores out, from any server that speaks TensorFlow Serving's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.serving.errors import ServingError
from keras_ranking.serving.layout import SIGNATURE
from keras_ranking.serving.requests import Request, pad_requests, request_tensors
from keras_ranking.serving.transport import GrpcTransport, RestTransport, Tensors, Transport


class Client:
    """Scores requests on a server. May be shared by threads; a context manager that closes its connections.

    Args:
        address: HOST:PORT of the gRPC or the REST port; for REST also http://HOST:PORT.
        schema: of the served model, or the path of its `schema.json`.
        model: name of the model on the server.
        protocol: 'grpc' (smaller and faster) or 'rest' (needs no TensorFlow in this process).
        timeout: seconds a call may take.
        tasks: names of the tasks to return; None: all that the model scores, in schema order.
        signature: of the model.

    Raises:
        ValueError: an unknown task or protocol, an address that is none, a timeout that is not positive.

    Example:
        >>> with Client("127.0.0.1:8500", schema, model="cadet") as client:
        ...     scores = client.score(history, candidates, request_time=1_790_000_000)
        >>> scores.sort_values("click", ascending=False)
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
    ) -> None:
        if protocol not in ("grpc", "rest"):
            raise ValueError(f"`protocol` must be 'grpc' or 'rest'. Received: protocol={protocol!r}")
        if not timeout > 0:
            raise ValueError(f"`timeout` must be positive. Received: timeout={timeout}")
        if not address:
            raise ValueError(f"`address` must be HOST:PORT. Received: address={address!r}")
        self.schema = schema if isinstance(schema, Schema) else Schema.load(schema)
        self._tasks = None if tasks is None else [self.schema.task(task).name for task in tasks]
        make = GrpcTransport if protocol == "grpc" else RestTransport
        self._transport: Transport = make(address, model, signature, timeout)
        self._names: list[str] | None = None

    def score(self, history: pd.DataFrame | None, candidates: pd.DataFrame, request_time: Any) -> pd.DataFrame:
        """Scores of one request.

        Args:
            history, candidates, request_time: see `Request`.

        Returns:
            One float32 column per task with probabilities, rows and index those of `candidates`.

        Raises:
            ValueError: what `request_tensors` refuses; nothing was sent.
            ServingError: what the server refused or could not do; `.code` is the gRPC status.
        """
        return self.score_many([Request(history, candidates, request_time)])[0]

    def score_many(self, requests: Sequence[Request | tuple[Any, Any, Any]], batch: int = 32) -> list[pd.DataFrame]:
        """Scores of several requests, in their order, `batch` of them in a call.

        Args:
            requests: `Request`s, or tuples (history, candidates, request_time).
            batch: requests padded to one size and sent together; at most what the server takes.

        Raises:
            ValueError: as `score`, saying which request; nothing was sent.
            ServingError: as `score`.
        """
        if isinstance(batch, bool) or batch < 1:
            raise ValueError(f"`batch` must be a positive integer. Received: batch={batch}")
        asked = [request if isinstance(request, Request) else Request(*request) for request in requests]
        if not asked:
            return []
        names = self.input_names()
        try:
            outputs = self._score(asked, names, batch)
        except ServingError as error:
            # A version with other inputs may have taken over since the names were read.
            if error.code != "INVALID_ARGUMENT" or self.input_names(refresh=True) == names:
                raise
            outputs = self._score(asked, self.input_names(), batch)
        return outputs

    def input_names(self, refresh: bool = False) -> list[str]:
        """Names of the served model's inputs, asked for once."""
        if self._names is None or refresh:
            self._names = self._transport.input_names()
        return self._names

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _score(self, asked: list[Request], names: list[str], batch: int) -> list[pd.DataFrame]:
        tensors = []
        for number, request in enumerate(asked):
            try:
                tensors.append(request_tensors(self.schema, request.history, request.candidates, request.request_time, names))
            except (ValueError, TypeError) as error:
                raise type(error)(f"request {number}: {error}") if len(asked) > 1 else error from None
        frames: list[pd.DataFrame] = []
        for start in range(0, len(asked), batch):
            outputs = self._transport.predict(pad_requests(tensors[start : start + batch]))
            for row, request in enumerate(asked[start : start + batch]):
                frames.append(self._frame(outputs, row, request.candidates))
        return frames

    def _frame(self, outputs: Tensors, row: int, candidates: pd.DataFrame) -> pd.DataFrame:
        tasks = self._tasks if self._tasks is not None else [task.name for task in self.schema.tasks if task.name in outputs]
        missing = [task for task in tasks if task not in outputs]
        if missing or not tasks:
            raise ServingError("NOT_FOUND", f"the model does not score {missing or 'any task of the schema'}. It gives: {sorted(outputs)}")
        count = len(candidates)
        return pd.DataFrame({task: np.asarray(outputs[task][row, :count]) for task in tasks}, index=candidates.index)
