"""Histories in Redis, which several processes and machines share."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.serving.histories.store import Histories, History
from keras_ranking.serving.protocol.missing_extra import missing_extra

_DIGITS = 16  # of the number of an event, by which those of one time are in order


class RedisHistories(Histories):
    """The latest events of members in Redis: a sorted set for each member, by time. Processes and threads may share it.

    Needs the extra `redis`. A request costs one command, an `append` one call of a few commands a member.

    Args:
        redis: a URL, such as "redis://127.0.0.1:6379/0", or a `redis.Redis`.
        schema: of the model: the columns of items, contexts, actions and time are kept.
        most: events kept of a member, the newest; older ones are forgotten.
        keep_seconds: a member without a new event for so long is forgotten; None: never. It is set at each `append`.
        prefix: of the keys: PREFIX + the member, and PREFIX + "#", which numbers events.

    Raises:
        ModuleNotFoundError: without the package, naming the extra.
        ValueError: a number that is not positive.

    Example:
        >>> # store = kr.serving.RedisHistories("redis://127.0.0.1:6379/0", "saved_models/feed/1/...", most=500)
    """

    def __init__(self, redis: Any, schema: Schema, most: int = 1000, keep_seconds: float | None = None, prefix: str = "histories:") -> None:
        super().__init__(schema, most, keep_seconds)
        if isinstance(redis, str):
            try:
                from redis import Redis
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(missing_extra("kr.serving.RedisHistories", error, "redis"), name=error.name) from error
            redis = Redis.from_url(redis)
        self._redis, self._prefix = redis, prefix

    def append(self, events: pd.DataFrame) -> int:
        """Add events of any members, in any order; see `MemoryHistories.append`."""
        rows = self._rows(events)
        if not rows:
            return 0
        first = int(self._redis.incrby(f"{self._prefix}#", len(rows))) - len(rows)
        by_member: dict[str, dict[str, int]] = {}
        for number, (member, at, text) in enumerate(rows, first):
            by_member.setdefault(member, {})[f"{number:0{_DIGITS}d}{text}"] = at
        with self._redis.pipeline(transaction=True) as pipeline:
            for member, scored in by_member.items():
                key = self._prefix + member
                pipeline.zadd(key, scored)
                pipeline.zremrangebyrank(key, 0, -self.most - 1)
                if self.keep_seconds is not None:
                    pipeline.pexpire(key, math.ceil(1000 * self.keep_seconds))
            pipeline.execute()
        return len(rows)

    def latest(self, member: Any, count: int, before: Any = None) -> History:
        """The newest events of a member; see `MemoryHistories.latest`."""
        key, count, limit = self._prefix + self._key(member), self._count(count), self._before(before)
        highest = "+inf" if limit is None else f"({limit}"
        found = self._redis.zrevrangebyscore(key, highest, "-inf", start=0, num=count, withscores=True)
        texts = [(int(at), (text.decode() if isinstance(text, bytes) else text)[_DIGITS:]) for text, at in reversed(found)]
        return self._history(member, texts)
