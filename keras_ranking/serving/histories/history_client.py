"""HistoryClient: scores of a member's candidates, whose history is in a store and is encoded once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keras_ranking.serving.client.client import ENCODE, SCORE, Client
from keras_ranking.serving.client.encoding import chosen, positive
from keras_ranking.serving.histories.store import History, HistoryStore
from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.model_folder import EXTEND
from keras_ranking.serving.protocol.requests import Request

_Key = tuple[int, Any, str, Any]


class _Encoded(NamedTuple):
    """A cache, the marks of its events, and when it was made."""

    cache: dict[str, np.ndarray]
    marks: tuple[str, ...]
    at: float


class HistoryClient:
    """Scores candidates after the history that a store has of their member.

    The history is encoded by the signature `encode_history`, and what that returns is kept by version of the model, member and events. As
    long as these stay the same, a request sends and computes the candidates alone (`score_candidates`). The result is that of the whole
    request. A model whose encoded history depends on the time of the request (`AmortizedDLRM` with a summary that looks ahead) is encoded
    anew for each time. Threads may share a client.

    A history that begins with the events of one that is kept, and goes on with later ones, is extended by the signature `extend_history`,
    where the model has it: at the cost of the new events. With `growth`, it is also extended where it is full: the oldest events stay
    until it has `events` + `growth`, and is then encoded anew from the newest `events`. Scores are those of a request with the events that
    are in it.

    Encoding and scoring are calls of one version: the one that the client names, or the newest that the server has, asked for every
    `poll_seconds`. A version that is gone is noticed at once.

    Args:
        client: of the served model, with the signatures `encode_history` and `score_candidates`.
        store: where the events are.
        events: newest events of a history, such as the model's `max_history`, strictly before the request.
        growth: later events by which a full history may grow before it is encoded anew; 0: each event beyond `events` has the newest
            `events` encoded anew, as a request in one piece has them. Not for an encoder that keeps the latest `max_history` events alone
            (`AmortizedDLRM`), unless that is at least `events` + `growth`.
        delay: leave out events younger than this number of seconds at the request, as `score_frame` does; None: keep them. The model masks
            what it may not see in any case; but of one whose encoded history serves later requests (`AmortizedDLRM` with
            history_mask='causal'), events that it may not see take the places of others.
        most_kept: encoded histories kept; beyond it the one not used for longest is dropped.
        keep_seconds: an encoded history is dropped after this time; None: never.
        poll_seconds: between two questions for the version.
        clock: seconds.

    Attributes:
        found, extended, encoded: how many requests found their history encoded, or a shorter one that was extended, or neither.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.CADET(schema, dim=16, num_layers=1, num_heads=2)
        >>> version = kr.serving.export(model, "saved_models/cadet", verify=False)
        >>> store = kr.serving.MemoryHistories(schema)
        >>> _ = store.append(log.events)
        >>> with kr.serving.serve("saved_models/cadet", rest_port=0, grpc_port=0) as server:
        ...     with kr.serving.Client(f"127.0.0.1:{server.grpc_port}", schema, model="cadet") as client:
        ...         scorer = kr.serving.HistoryClient(client, store, events=64)
        ...         last = log.events.iloc[-1]
        ...         shown = log.events[log.events["request_id"] == last["request_id"]]
        ...         scores = [scorer.score(last["member_id"], shown, int(last["time"])) for _ in range(2)]
        >>> scorer.encoded, scorer.found
        (1, 1)
    """

    def __init__(
        self,
        client: Client,
        store: HistoryStore,
        events: int = 512,
        delay: int | None = None,
        most_kept: int = 10_000,
        keep_seconds: float | None = None,
        poll_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        growth: int = 0,
    ) -> None:
        positive(events=events, most_kept=most_kept)
        if isinstance(growth, bool) or not isinstance(growth, int) or growth < 0:
            raise ValueError(f"`growth` must be a number of events, at least 0. Received: growth={growth!r}")
        for name, value in (("keep_seconds", keep_seconds), ("poll_seconds", poll_seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value!r}")
        self.client, self.store, self.events, self.most_kept = client, store, events, most_kept
        if delay is not None and (isinstance(delay, bool) or not isinstance(delay, int) or delay < 0):
            raise ValueError(f"`delay` must be a number of seconds, at least 0, or None. Received: delay={delay!r}")
        self.delay, self.growth = delay, growth
        self.keep_seconds, self.poll_seconds, self._clock = keep_seconds, poll_seconds, clock
        self.found = self.extended = self.encoded = 0
        self._kept: OrderedDict[_Key, _Encoded] = OrderedDict()
        self._last: dict[tuple[int, Any], _Key] = {}  # of each member, the history encoded last
        self._lock = threading.Lock()
        self._pinned: tuple[Client, int, float] | None = None

    def score(
        self,
        member: Any,
        candidates: pd.DataFrame,
        request_time: Any,
        session: Any = None,
        utility: Mapping[str, float] | None = None,
        member_values: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Scores of candidates for a member.

        Args:
            member: its id, as in the log. One of whom nothing is known has an empty history.
            candidates, request_time, session, utility, member_values: see `Request`. What describes the member is sent with the candidates,
                and is no part of an encoded history.

        Returns:
            As `Client.score`.

        Raises:
            ValueError: errors of `request_tensors`; nothing was sent.
            ServingError: as `Client.score`; FAILED_PRECONDITION for a model without the two signatures, NOT_FOUND without a version.
        """
        request = Request(None, candidates, request_time, session, utility, member_values=member_values)
        try:
            return self._score(member, request)
        except ServingError as error:
            # The version may have been unloaded since it was asked for.
            if error.code != "NOT_FOUND" or self._pinned is None:
                raise
            self._pinned = None
            return self._score(member, request)

    def forget(self) -> None:
        """Drop all encoded histories."""
        with self._lock:
            self._kept.clear()
            self._last.clear()

    def __len__(self) -> int:
        """Number of encoded histories kept."""
        with self._lock:
            return len(self._kept)

    def _score(self, member: Any, request: Request) -> pd.DataFrame:
        request_time = request.request_time
        client, version = self._of_version()
        signature = chosen(client.signatures(), ENCODE)
        chosen(client.signatures(), SCORE)
        history = self.store.latest(member, self.events + self.growth, before=self._end(request_time))
        moment = request_time if "request_time" in signature.inputs else None
        grows = EXTEND in client.signatures() and moment is None
        begun, at = self._begun((version, member), history) if grows else (None, None)
        if at is None and len(history.events) > self.events:  # no history that is kept goes on in it
            history = self.store.latest(member, self.events, before=self._end(request_time))
        key = version, member, f"{history.mark} from {at}" if at else history.mark, moment
        encoded = self._known(key)
        if encoded is None and begun is not None and at is not None:
            encoded = begun.cache
            later = history.events.iloc[at + len(begun.marks) :]
            if len(later):
                encoded = client.extend(encoded, later)
            self._keep(key, encoded, history.marks[at:], "extended" if len(later) else "found")
        if encoded is None:
            encoded = client.encode(history.events if len(history.events) else None, request_time)
            self._keep(key, encoded, history.marks, "encoded")
        settings = {name: getattr(request, name) for name in ("session", "utility", "member_values")}
        return client.score_cached(encoded, request.candidates, request_time, **settings)

    def _end(self, request_time: Any) -> Any:
        """The time before which events are read."""
        if not self.delay:
            return request_time
        schema = self.client.schema
        return int(schema.encode_time(pd.Series([request_time]))[0]) + schema.epoch - self.delay + 1

    def _of_version(self) -> tuple[Client, int]:
        """A client of the version that scores now, and its number."""
        with self._lock:
            now, pinned = self._clock(), self._pinned
            if pinned is not None and now < pinned[2]:
                return pinned[0], pinned[1]
        version = self._current()
        with self._lock:
            before = self._pinned
            client = before[0] if before is not None and before[1] == version else self.client.of_version(version)
            self._pinned = client, version, now + self.poll_seconds
            return client, version

    def _current(self) -> int:
        label, version = self.client.label, self.client.version
        if version is not None:
            return version
        if label is not None:
            found = self.client.version_of(label)
            if found is None:
                raise ServingError("NOT_FOUND", f"no version has the label '{label}'")
            return found
        ready = [number for number, (state, _) in self.client.versions().items() if state == "AVAILABLE"]
        if not ready:
            raise ServingError("NOT_FOUND", "no version of the model is available")
        return max(ready)

    def _begun(self, member: tuple[int, Any], history: History) -> tuple[_Encoded | None, int | None]:
        """The encoded history that this one goes on, and the place of its first event in this one; None, None: there is none."""
        with self._lock:
            begun = self._kept.get(self._last.get(member, (0, None, "", None)))
        if begun is None or not begun.marks or begun.marks[0] not in history.marks or self._old(begun):
            return None, None
        at = history.marks.index(begun.marks[0])
        if at and len(begun.marks) < self.events:  # an earlier event came late: one that was not full had all
            return None, None
        same = history.marks[at : at + len(begun.marks)] == begun.marks
        return (begun, at) if same and len(history.marks) - at <= self.events + self.growth else (None, None)

    def _old(self, encoded: _Encoded) -> bool:
        return self.keep_seconds is not None and self._clock() - encoded.at >= self.keep_seconds

    def _known(self, key: _Key) -> dict[str, np.ndarray] | None:
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None or self._old(kept):
                return None
            self._kept[key] = kept  # the last to be dropped
            self.found += 1
            return kept.cache

    def _keep(self, key: _Key, encoded: dict[str, np.ndarray], marks: tuple[str, ...], how: str) -> None:
        with self._lock:
            setattr(self, how, getattr(self, how) + 1)
            self._kept[key] = _Encoded(encoded, marks, self._clock())
            self._kept.move_to_end(key)
            self._last[key[:2]] = key
            while len(self._kept) > self.most_kept:
                dropped, _ = self._kept.popitem(last=False)
                if self._last.get(dropped[:2]) == dropped:
                    del self._last[dropped[:2]]
