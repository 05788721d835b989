"""The pairs of surfaces of `transfer.py`: two that are simulated, and two screens of KuaiRand-Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import keras_ranking as kr
from keras_ranking.data import Log

ROWS, MEMBERS = 1_700, 500


@dataclass(frozen=True)
class Surfaces:
    """A surface that a source is trained on, and one with few rows to learn from.

    Attributes:
        first: seed -> the log of the source.
        second: seed, rows to learn from -> the log of the second surface, whose `train` rows are learned from.
        tasks: of the second surface; the source learns the first of them.
        split: of the second surface, that is scored.
        options: of the source's model and training.
        impression_auc: whether requests have several rows.
    """

    first: Callable[[int], Log]
    second: Callable[[int, int], Log]
    tasks: tuple[str, ...]
    split: str
    options: dict[str, Any]
    impression_auc: bool = True


def simulated(members: int = MEMBERS) -> Surfaces:
    """Other members, items and authors on each, and the same topics."""
    return Surfaces(lambda seed: first_surface(seed, members), second_surface, ("click", "like"), "new_members", {})


def first_surface(seed: int, members: int = MEMBERS) -> Log:
    """The feed that the source is trained on."""
    return kr.data.simulate(members=members, seed=seed)


def second_surface(seed: int, rows: int = ROWS, members: int = 600) -> Log:
    """A surface with few rows to learn from: those of some members; the later rows of all others are the split `new_members`."""
    other = {"list_size": (5, 7), "examination": (1.0, 0.4, 0.3), "freshness": 0.6}
    log = kr.data.simulate(members=members, seed=10_000 + seed, **other)
    events, learned = log.events, log.events["split"] == "train"
    own = _members_with(events, learned, rows, seed)
    split = np.where(own, events["split"], np.where(learned, "history", "new_members"))
    return Log(events.assign(split=split), log.schema, "second surface")


# The two screens with the most rows. No column says which one a row is of: a source that has seen one screen has no use for it.
FIRST_TAB, SECOND_TAB = 1, 0
_SMALL: dict[str, Any] = {
    "dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "tower_hidden": (32,),
    "row_length": 256,
    "batch_size": 4,
    "pairwise_weight": 0.0,
    "validation": 0.2,
    "early_stopping": 2,
    "epochs": 6,
}


def kuairand(folder: str | Path) -> Surfaces:
    """Screens of one app: the same members and videos, and other rates of clicks.

    The lists of impressions before the log are left out; the reader's counts know them. A member's rows of the first screen are history on
    the second one, and so are the earlier rows of members that are not learned from. Scored are all later rows of the second screen.
    """

    @cache
    def whole() -> Log:
        log = kr.data.read_kuairand(folder, release="pure")
        features = tuple(feature for feature in log.schema.features if feature.name != "tab")
        events = log.events[log.events["tab"].notna()].reset_index(drop=True)
        return Log(events, log.schema.model_copy(update={"features": features}), "kuairand")

    def first(_: int) -> Log:
        log = whole()
        return Log(log.events[log.events["tab"] == FIRST_TAB].reset_index(drop=True), log.schema, f"tab {FIRST_TAB}")

    def second(seed: int, rows: int) -> Log:
        log = whole()
        events = log.events[log.events["tab"].isin([FIRST_TAB, SECOND_TAB])]
        here = events["tab"] == SECOND_TAB
        events = events[events["user_id"].isin(events.loc[here, "user_id"])]
        here = events["tab"] == SECOND_TAB
        learned = here & (events["split"] == "train")
        own = _members_with(events, learned, rows, seed)
        split = np.where(learned & own, "train", np.where(here & ~learned, events["split"], "history"))
        return Log(events.assign(split=split).reset_index(drop=True), log.schema, f"tab {SECOND_TAB}")

    return Surfaces(first, second, ("is_click", "long_view"), "validation", _SMALL, impression_auc=False)


def _members_with(events: pd.DataFrame, learned: pd.Series, rows: int, seed: int) -> pd.Series:
    """Whether a row is of one of the members, drawn at random, that have about so many rows to learn from; of all, where all have fewer."""
    member = "member_id" if "member_id" in events else "user_id"
    order = np.random.default_rng(seed).permutation(events[member].unique())
    sizes = events[learned].groupby(member).size().reindex(order).fillna(0).cumsum()
    return events[member].isin(sizes.index[: int(np.searchsorted(sizes.to_numpy(), rows)) + 1])
