"""HistoryStore: the latest events of members, appended as they happen; in memory here, in Redis in `redis_store.py`."""

from __future__ import annotations

import bisect
import datetime
import hashlib
import itertools
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema


class History(NamedTuple):
    """Events of one member.

    Attributes:
        events: oldest first, those of one time in the order in which they were appended; the columns that a history has, and the time in
            Unix seconds. No rows: nothing is known of the member.
        mark: of these events: equal marks are equal events. A client keeps what it has encoded by it.
        marks: of each event, by which a client sees that later events follow those that it has encoded; (): it encodes all anew.

    Example:
        >>> kr.serving.History(pd.DataFrame({"item": [4, 9], "t": [10, 20]}), mark="a digest").mark
        'a digest'
    """

    events: pd.DataFrame
    mark: str
    marks: tuple[str, ...] = ()


@runtime_checkable
class HistoryStore(Protocol):
    """Where a service keeps the events of members: `append` as they happen, `latest` for a request.

    A class with these two methods can be given to `HistoryClient`. This package has `MemoryHistories` and `RedisHistories`.

    Attributes:
        append: adds events, a DataFrame with rows of any members.
        latest: (member, count, before) -> `History`, the newest events strictly before a time.

    Example:
        >>> schema = kr.Schema(member="m", time="t", request="r", features=[kr.Id("item")], actions=[], tasks=["click"])
        >>> isinstance(kr.serving.MemoryHistories(schema), kr.serving.HistoryStore)
        True
    """

    def append(self, events: pd.DataFrame) -> int:
        """Add events of any members, in any order; each event once. Returns how many there were."""

    def latest(self, member: Any, count: int, before: Any = None) -> History:
        """The newest `count` events of a member, strictly before a time (None: all that there are), oldest first."""


class Histories:
    """What all stores share: checks, and events as rows of JSON and back.

    Args:
        schema: of the model, fitted: the columns of items, contexts, actions and time are kept.
        most: events kept of a member, the newest; older ones are forgotten.
        keep_seconds: a member without a new event for so long is forgotten; None: never.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(self, schema: Schema, most: int = 1000, keep_seconds: float | None = None) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"`most` must be a positive integer. Received: most={most!r}")
        if keep_seconds is not None and not (0 < keep_seconds < math.inf):
            raise ValueError(f"`keep_seconds` must be positive, or None. Received: keep_seconds={keep_seconds!r}")
        self.schema, self.most, self.keep_seconds = schema, most, keep_seconds
        of_events = schema.features_known("item", "context")  # what describes the member is sent with a request
        self._columns = [column.name for column in (*of_events, *schema.actions)]
        self._optional: tuple[str, ...] = ()
        if schema.session is not None and schema.session not in self._columns:
            # The last, which events stored by earlier versions do not have. Not all models read it.
            self._columns.append(schema.session)
            self._optional = (schema.session,)

    def _rows(self, events: pd.DataFrame) -> list[tuple[str, int, str]]:
        """(member, Unix time, columns as JSON) of each event, after the checks that a request makes.

        Raises:
            TypeError: not a DataFrame.
            ValueError: a missing column, or a value that the schema refuses, naming it.
        """
        if not isinstance(events, pd.DataFrame):
            raise TypeError(f"`events` must be a DataFrame. Received: {type(events).__name__}")
        wanted = [self.schema.member, self.schema.time, *self._columns]
        missing = [name for name in wanted if name not in events.columns and name not in self._optional]
        if missing:
            raise ValueError(f"column '{missing[0]}' is missing in the events. There are: {sorted(map(str, events.columns))}")
        if not len(events):
            return []
        events = events.reindex(columns=wanted).reset_index(drop=True)
        times = self.schema.encode_time(events[self.schema.time]).astype(np.int64) + self.schema.epoch
        for column in (*self.schema.features_known("item", "context"), *self.schema.actions):
            column.encode(events[column.name])  # raises for what a request could not use
        columns = [[plain(value) for value in events[name].tolist()] for name in self._columns]
        texts = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in zip(*columns)] or ["[]"] * len(events)
        members = [self._key(member) for member in events[self.schema.member].tolist()]
        return list(zip(members, times.tolist(), texts, strict=True))

    def _key(self, member: Any) -> str:
        """A member as text: 7 and "7" are two members."""
        member = plain(member)
        if isinstance(member, bool) or not isinstance(member, (int, str)):
            raise ValueError(f"a member must be an integer or a text. Received: {member!r}")
        return json.dumps(member, ensure_ascii=False)

    def _before(self, before: Any) -> int | None:
        """A time as Unix seconds."""
        return None if before is None else int(self.schema.encode_time(pd.Series([before]))[0]) + self.schema.epoch

    def _count(self, count: int) -> int:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= self.most:
            raise ValueError(f"`count` must be from 1 to `most`, {self.most}. Received: count={count!r}")
        return count

    def _history(self, member: Any, found: Iterable[tuple[int, str]]) -> History:
        """A history of (Unix time, columns as JSON), oldest first."""
        found = list(found)
        digest, marks = hashlib.blake2b(digest_size=16), []
        for at, text in found:
            line = f"{at} {text}\n".encode()
            digest.update(line)
            marks.append(hashlib.blake2b(line, digest_size=16).hexdigest())
        rows = [json.loads(text) for _, text in found]
        frame = {self.schema.member: [member] * len(found), self.schema.time: np.array([at for at, _ in found], dtype=np.int64)}
        for number, name in enumerate(self._columns):
            frame[name] = _series([row[number] if number < len(row) else None for row in rows])
        return History(pd.DataFrame(frame), digest.hexdigest(), tuple(marks))


class MemoryHistories(Histories):
    """The latest events of members in the memory of this process; threads may share it.

    Args:
        schema, most, keep_seconds: as `RedisHistories`.
        most_members: members kept; beyond it the one whose last event was appended longest ago is forgotten.
        clock: seconds, for `keep_seconds`.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> store = kr.serving.MemoryHistories(log.schema.fit(log.events), most=200)
        >>> store.append(log.events) == len(log.events)
        True
        >>> member = log.events["member_id"].iloc[0]
        >>> len(store.latest(member, 5).events)
        5
    """

    def __init__(
        self,
        schema: Schema,
        most: int = 1000,
        keep_seconds: float | None = None,
        most_members: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(schema, most, keep_seconds)
        if isinstance(most_members, bool) or not isinstance(most_members, int) or most_members < 1:
            raise ValueError(f"`most_members` must be a positive integer. Received: most_members={most_members!r}")
        self.most_members, self._clock = most_members, clock
        # By member, the longest without an event first: (time, number of the event, its columns) in that order, and when the last came.
        self._held: OrderedDict[str, tuple[list[tuple[int, int, str]], float]] = OrderedDict()
        self._number, self._lock = itertools.count(), threading.Lock()

    def append(self, events: pd.DataFrame) -> int:
        """Add events of any members, in any order; those of one time keep the order of their rows.

        Args:
            events: rows of the log. Columns that a history does not have are ignored.

        Returns:
            How many there were.

        Raises:
            TypeError, ValueError: as a request with these events would; nothing is added.
        """
        rows = self._rows(events)
        with self._lock:
            now = self._clock()
            for member, at, text in rows:
                held = self._held.pop(member, ([], now))[0]
                bisect.insort(held, (at, next(self._number), text))
                del held[: -self.most]
                self._held[member] = held, now
            self._forget(now)
        return len(rows)

    def latest(self, member: Any, count: int, before: Any = None) -> History:
        """The newest events of a member.

        Args:
            member: its id, as in the log.
            count: most events, up to `most`.
            before: only events strictly before this time, as the model was trained; None: all.

        Returns:
            `History`, oldest first; no rows for a member of whom nothing is known.
        """
        key, count, limit = self._key(member), self._count(count), self._before(before)
        with self._lock:
            self._forget(self._clock())
            held = self._held.get(key, ([], 0.0))[0]
            end = len(held) if limit is None else bisect.bisect_left(held, (limit,))
            found = [(at, text) for at, _, text in held[max(0, end - count) : end]]
        return self._history(member, found)

    def __len__(self) -> int:
        """Number of members."""
        with self._lock:
            self._forget(self._clock())
            return len(self._held)

    def _forget(self, now: float) -> None:
        while self._held:
            member, (_, last) = next(iter(self._held.items()))
            old = self.keep_seconds is not None and now - last >= self.keep_seconds
            if not old and len(self._held) <= self.most_members:
                return
            del self._held[member]


def plain(value: Any) -> Any:
    """A value of a log as JSON has it: numbers, text, lists; None for a missing one."""
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return value


def _series(values: Sequence[Any]) -> pd.Series:
    """A column; integers stay integers next to a missing value."""
    mixed = any(value is None or isinstance(value, list) for value in values)
    if mixed and all(value is None or isinstance(value, float) for value in values):
        return pd.Series([math.nan if value is None else value for value in values], dtype=np.float64)
    return pd.Series(list(values), dtype=object) if mixed else pd.Series(list(values))
