"""A simulated log: its schema, and the planted parameters that produced it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from keras_ranking.columns import Category, Id, Number, Task
from keras_ranking.data.readers.log import Log
from keras_ranking.schema import Schema

DEVICES = ("mobile", "desktop", "tablet")


@dataclass(frozen=True)
class Truth:
    """The planted parameters, row by row of `SimulatedLog.events` where an array has n rows.

    Args:
        examination: (K,) probability that a position of bucket k is examined.
        boundaries: upper bounds of the position buckets: bucket = number of boundaries b with position > b.
        relevance: (n,) click probability once examined.
        click_probability: (n, K) click probability at a position of bucket k.
        like_given_click: (n,) probability of a like once clicked.
        bucket: (n,) bucket of the position shown.
        shuffled: (n,) whether the request was shuffled uniformly, by itself or with its session.
        mood: (n,) logit shift of the session.
        taste: (members, days, topics) logit.
        item_quality: (items,) logit; item_id is the place in this array.
    """

    examination: np.ndarray
    boundaries: tuple[int, ...]
    relevance: np.ndarray
    click_probability: np.ndarray
    like_given_click: np.ndarray
    bucket: np.ndarray
    shuffled: np.ndarray
    mood: np.ndarray
    taste: np.ndarray
    item_quality: np.ndarray

    @property
    def position_ratio(self) -> np.ndarray:
        """(K,) P(click | bucket k) / P(click | bucket 0), the same for every row."""
        return np.asarray(self.examination / self.examination[0])

    @property
    def click(self) -> np.ndarray:
        """(n,) true click probability at the position shown: no score has a higher expected AUC."""
        return np.asarray(self.click_probability[np.arange(len(self.bucket)), self.bucket])

    @property
    def like(self) -> np.ndarray:
        """(n,) true probability of a like at the position shown."""
        return np.asarray(self.click * self.like_given_click)


@dataclass(frozen=True)
class SimulatedLog(Log):
    """A simulated `Log` with its planted parameters, `truth`."""

    truth: Truth = field(kw_only=True)


def simulated_schema(topics: int = 6, feedback_delay: int = 600, is_shuffled: bool = False) -> Schema:
    """The schema of a simulated log with this number of topics and this feedback delay, and with or without `is_shuffled`."""
    # Known after scoring: the schema refuses it as an input of a score.
    replay = (Number(name="is_shuffled", known="after"),) if is_shuffled else ()
    return Schema(
        feedback_delay=feedback_delay,
        member="member_id",
        time="time",
        session="session_id",
        request="request_id",
        position="position",
        features=(
            Id(name="item_id", buckets=4096),
            Id(name="author_id", buckets=512),
            Category(name="topic", vocabulary=tuple(f"topic_{topic}" for topic in range(topics))),
            Number(name="age_hours", transform="log1p_standardise"),
            Number(name="editor_score", transform="standardise"),
            Category(name="device", vocabulary=DEVICES, known="context"),
            Category(name="hour", vocabulary=tuple(map(str, range(24))), known="context"),
            Number(name="item_views_24h", transform="log1p_standardise", known="context"),
            Number(name="item_click_rate_24h", transform="standardise", known="context"),
            Number(name="item_click_rate_all", transform="standardise", known="context"),
            *replay,
        ),
        actions=(Number(name="click"), Number(name="like"), Number(name="dwell_seconds", transform="log1p_standardise")),
        tasks=(Task(name="click"), Task(name="like")),
    )
