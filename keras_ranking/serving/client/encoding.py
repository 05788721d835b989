"""DataFrames to tensors and back, for both clients: requests to batches, outputs to frames, scores to rows of a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.logged_requests import joined_ids
from keras_ranking.serving.protocol.marks import error_of, marked
from keras_ranking.serving.protocol.model_folder import RAW, RAW_VALUES, WEIGHTED
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.requests import Request, pad_requests, request_tensors
from keras_ranking.serving.protocol.signature import Signature, Tensor, kind_name
from keras_ranking.utility import SCORE, WEIGHT, checked_utility

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Encoder:
    """Frames to tensors and back, by one schema.

    Args:
        schema: of the served model.
        tasks: names of the tasks to return, and 'score'; None: all that the model scores, in schema order, and its `score`.
    """

    schema: Schema
    tasks: list[str] | None

    def batches(
        self, requests: Sequence[Request], places: Sequence[int], signature: Signature, batch: int
    ) -> list[tuple[Tensors, Sequence[int]]]:
        """Padded tensors of `batch` of the requests at some places, with these places.

        Raises:
            ValueError, TypeError: as `request_tensors`, with the number of the request.
        """
        encoded = []
        for place in places:
            try:
                encoded.append(self.tensors(requests[place], signature))
            except (ValueError, TypeError) as error:
                raise type(error)(f"request {place}: {error}") if len(requests) > 1 else error from None
        return [(pad_requests(encoded[at : at + batch]), places[at : at + batch]) for at in range(0, len(places), batch)]

    def tensors(self, request: Request, signature: Signature, without: Sequence[str] = ()) -> Tensors:
        """One request's tensors for a signature, except the inputs named in `without`."""
        arguments = self.schema, request.history, request.candidates, request.request_time
        inputs = {name: tensor for name, tensor in signature.inputs.items() if name not in without}
        weights = self._weights(request, signature) if signature.name in WEIGHTED.values() else {}
        inputs = {name: tensor for name, tensor in inputs.items() if name not in weights}
        if signature.name in RAW_VALUES:
            found = raw_request_tensors(*arguments, Signature(RAW, inputs, signature.outputs), request.session, request.member_values)
        else:
            found = request_tensors(*arguments, sorted(inputs), request.session, request.member_values)
        return {**found, **weights}

    def _weights(self, request: Request, signature: Signature) -> Tensors:
        """Weights of the request by input, 0 for tasks without one."""
        tasks = [name.removeprefix(WEIGHT) for name in signature.inputs if name.startswith(WEIGHT)]
        given = checked_utility(request.utility, tasks)
        return {WEIGHT + task: np.asarray(given.get(task, 0.0), dtype=np.float32) for task in tasks}

    def frame(self, outputs: Mapping[str, np.ndarray], row: int, candidates: pd.DataFrame, number: int = 0) -> pd.DataFrame:
        """Scores of the request in one row of the outputs, with the index of its candidates; `number` is that of the request in errors.

        Raises:
            ServingError: INVALID_ARGUMENT where the model has marked the request; see `checked_outputs`.
        """
        checked_outputs({name: values[row : row + 1] for name, values in outputs.items()}, number)
        columns = {task: np.asarray(outputs[task][row, : len(candidates)]) for task in self.scored(outputs)}
        return pd.DataFrame(columns, index=candidates.index)

    def scored(self, outputs: Mapping[str, Any]) -> list[str]:
        """The tasks to return.

        Raises:
            ServingError: NOT_FOUND where the model does not score them.
        """
        tasks = self.tasks
        if tasks is None:
            tasks = [task.name for task in self.schema.tasks if task.name in outputs]
            tasks += [SCORE] if tasks and SCORE in outputs and SCORE not in tasks else []
        missing = [task for task in tasks if task not in outputs]
        if missing or not tasks:
            raise ServingError("NOT_FOUND", f"the model does not score {missing or 'any task of the schema'}. It gives: {sorted(outputs)}")
        return tasks


class LogRows:
    """The requests of a log, and the rows of their scores.

    Args:
        encoder: of the client.
        events: the log, one row per impression.
        signature: the signature that scores.
        target: see `build_sequences`; None: all rows.
        max_history, delay: see `keras_ranking.data.requests`.

    Raises:
        ValueError: errors of `build_sequences`.
    """

    def __init__(
        self, encoder: Encoder, events: pd.DataFrame, signature: Signature, target: Any, max_history: int | None, delay: int | None
    ) -> None:
        from keras_ranking.data import build_sequences, requests

        self._encoder, self._events, self._signature = encoder, events, signature
        sequences = build_sequences(events, encoder.schema, target=target)
        self._target = sequences.target
        self._rows = sequences.rows
        self._requests = requests(sequences, max_history=max_history, delay=delay)

    def batches(self, batch: int) -> Iterator[tuple[Tensors, np.ndarray]]:
        """Tensors of `batch` requests of similar lengths, and the row of the log of each candidate cell, -1 for none."""
        found = self._requests
        history, shown = found.history_end - found.history_begin, found.candidate_end - found.candidate_begin
        order = np.lexsort((shown, history))
        for at in range(0, len(order), batch):
            which = order[at : at + batch]
            events = found.candidate_index(which)
            rows = np.where((events >= 0) & self._target[events], self._rows[events], -1)
            if self._signature.name in RAW_VALUES:
                yield pad_requests([self._encoder.tensors(self._request(number), self._signature) for number in which]), rows
            else:
                yield found.tensors(which, sorted(self._signature.inputs)), rows

    def frame(self, parts: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]]) -> pd.DataFrame:
        """Scores by task at the rows of the log; NaN for rows that are not scored."""
        tasks = self._encoder.scored(parts[0][0]) if parts else self._encoder.tasks or [task.name for task in self._encoder.schema.tasks]
        columns = {task: np.full(len(self._events), np.nan, dtype=np.float32) for task in tasks}
        for outputs, rows in parts:
            checked_outputs(outputs)
            cells = rows >= 0
            for task in tasks:
                columns[task][rows[cells]] = outputs[task][:, : rows.shape[1]][cells]
        return pd.DataFrame(columns, index=self._events.index)

    def _request(self, number: int) -> Request:
        found = self._requests
        events = self._rows[found.history_begin[number] : found.history_end[number]]
        shown = self._rows[found.candidate_begin[number] : found.candidate_end[number]]
        time = int(found.time[number]) + self._encoder.schema.epoch
        return Request(self._events.iloc[events], self._events.iloc[shown], time)  # whose session is in the candidates


def task_of(schema: Schema, name: str) -> str:
    """Name of a task, or 'score'."""
    return SCORE if name == SCORE else schema.task(name).name


def weighted_name(name: str) -> str:
    """The signature that takes weights of the request, for the one without.

    Raises:
        ValueError: there is none, such as for `explore`.
    """
    if name not in WEIGHTED:
        raise ValueError(f"a `utility` of the request goes with the signatures {list(WEIGHTED)}. Received: signature='{name}'")
    return WEIGHTED[name]


def in_groups(requests: Sequence[Request]) -> list[tuple[bool, list[int]]]:
    """Places of the requests with weights of their own (True) and without, each group in order."""
    found = [(own, [place for place, request in enumerate(requests) if (request.utility is not None) == own]) for own in (False, True)]
    return [group for group in found if group[1]]


def ids_of(requests: Iterable[Request]) -> str:
    """The ids of requests, to be sent along; nothing where one has none."""
    ids = [request.request_id for request in requests]
    return "" if any(one is None for one in ids) else joined_ids(ids)


def as_requests(requests: Sequence[Request | tuple[Any, Any, Any]]) -> list[Request]:
    """Tuples as `Request`s."""
    return [request if isinstance(request, Request) else Request(*request) for request in requests]


def positive(**settings: Any) -> None:
    """Raise ValueError unless each is a positive integer."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def chosen(signatures: Mapping[str, Signature], name: str) -> Signature:
    """One signature of a model.

    Raises:
        ServingError: FAILED_PRECONDITION, as on a server.
    """
    if name not in signatures:
        raise ServingError("FAILED_PRECONDITION", f'signature "{name}" not found. The model has: {sorted(signatures)}')
    return signatures[name]


def checked_outputs(outputs: Mapping[str, np.ndarray], first: int = 0) -> Mapping[str, np.ndarray]:
    """The outputs of a call whose first request has the number `first`.

    Raises:
        ServingError: INVALID_ARGUMENT where the model has marked a request instead of scoring it, which servers do that batch calls.
    """
    rows = marked(outputs)
    if rows.any():
        raise error_of(rows, first=first)
    return outputs


def checked_inputs(signature: Signature, inputs: Mapping[str, Any]) -> Tensors:
    """A user's arrays for a signature.

    Raises:
        ValueError: an unknown or missing name, or an array of another type, naming the input.
    """
    wrong = sorted(inputs.keys() ^ signature.inputs.keys())
    if wrong:
        what = "missing" if wrong[0] in signature.inputs else "unknown"
        raise ValueError(f"{what} input '{wrong[0]}': signature '{signature.name}' takes {sorted(signature.inputs)}")
    return {name: _checked(name, tensor, inputs[name]) for name, tensor in signature.inputs.items()}


def _checked(name: str, tensor: Tensor, value: Any) -> np.ndarray:
    array: np.ndarray = np.asarray(value)
    text = tensor.dtype.kind == "O"
    if (array.dtype.kind not in "SUO") if text else (array.dtype != tensor.dtype):
        raise ValueError(f"input '{name}' must be {kind_name(tensor.dtype)}. Received: {kind_name(array.dtype)}")
    if tensor.shape is not None and array.ndim != len(tensor.shape):
        raise ValueError(f"input '{name}' must have rank {len(tensor.shape)}. Received: shape {array.shape}")
    return np.asarray(value, dtype=object) if text else array
