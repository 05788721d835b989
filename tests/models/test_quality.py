"""Bounds on the quality of a CADET with `Past` and point-in-time counts, on MovieLens-100K and on the simulated feed.

A model that learns less than it did is below the lower bound of the AUC or above the upper bound of the log loss. One that knows what it
cannot know when it is served is beyond the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr

pytestmark = [pytest.mark.slow, pytest.mark.quickest]

TRUNK: dict[str, Any] = {"dim": 16, "num_layers": 1, "num_heads": 2, "past_heads": 2, "row_length": 512, "learning_rate": 4e-3}
OF_RATINGS: dict[str, Any] = {
    **TRUNK,
    "past_linear": 1,
    "past_numbers": ("known_like", "liked_residual"),
    "id_dim": 16,
    "tower_hidden": (32,),
    "batch_size": 8,
    "epochs": 2,
    "pairwise_weight": 0.0,
}
OF_FEED: dict[str, Any] = {
    **TRUNK,
    "past_matches": ("author_id", "topic"),
    "past_dim": 8,
    "id_dim": 8,
    "tower_hidden": (16,),
    "batch_size": 4,
    "epochs": 3,
    "tasks": ("click",),
}


@dataclass(frozen=True)
class Bounds:
    """Least and largest AUC and log loss, both inside."""

    auc: tuple[float, float]
    log_loss: tuple[float, float]

    def broken(self, figures: dict[str, Any]) -> list[str]:
        """What is outside, and on which side."""
        found = []
        for name in ("auc", "log_loss"):
            low, high = getattr(self, name)
            found += [f"{name} below"] * (not figures[name] >= low) + [f"{name} above"] * (not figures[name] <= high)
        return found


# Of three seeds the AUC is 0.7015 to 0.7096 and the log loss 0.6147 to 0.6208; with the history cut 0.6450 to 0.6647 and 0.6430 to 0.6621,
# and with counts of films that see the future 0.7225 to 0.7299 and 0.6009 to 0.6058.
RATINGS = Bounds(auc=(0.685, 0.716), log_loss=(0.610, 0.632))
# Of three seeds the AUC is 0.7245 to 0.7368 and the log loss 0.3332 to 0.3488; of two with the history cut 0.4794 to
# 0.5377 and 0.3674 to 0.3728; with counts of items that see the future 0.7671 to 0.7700 and 0.3294 to 0.3347.
FEED = Bounds(auc=(0.69, 0.752), log_loss=(0.3, 0.36))


def late_counts(state: Any, events: pd.DataFrame, delay: int) -> pd.DataFrame:
    """A broken delay rule: every row gets the counts that are known when the log has ended, its own outcome among them."""
    return state.features(events, time=int(events["time"].max()) + delay)


def ratings(folder: Path, future: bool = False) -> kr.data.Log:
    """Each third member of MovieLens-100K, with counts of films, and each rating's label and residual as actions of the past."""
    log = kr.data.read_movielens(folder, release="100k")
    events = log.events[log.events["user_id"] % 3 == 0].reset_index(drop=True)
    delay = log.schema.feedback_delay
    state = kr.data.RunningCounts("item_id", [None], actions=["liked"], delay=delay, prior=(3.0, 5.0))
    counts = state.update(events)
    expected = kr.data.RunningExpectation(["item_id", "user_id"], "liked", delay=delay).update(events)
    counts = late_counts(state, events, delay) if future else counts
    numbers = [
        kr.Number("item_id_views_all", transform="log1p_standardise", known="context"),
        kr.Number("item_id_liked_rate_all", transform="standardise", known="context"),
    ]
    actions = [*log.schema.actions, *(kr.Number(name, known="after") for name in ("known_like", "liked_residual"))]
    kept = [feature for feature in log.schema.features if feature.name == "item_id"]
    schema = log.schema.model_copy(update={"features": (*kept, *numbers), "actions": tuple(actions)})
    made = {**{number.name: counts[number.name] for number in numbers}, "liked_residual": expected["liked_residual"]}
    return replace(log, events=events.assign(known_like=events["liked"].astype(float), **made), schema=schema)


def feed(future: bool = False) -> kr.data.Log:
    """A simulated feed, whose schema has point-in-time counts."""
    log = kr.data.simulate(members=150, seed=5)
    state = kr.data.RunningCounts("item_id", [None], delay=log.schema.feedback_delay)
    counts = state.update(log.events)
    counts = late_counts(state, log.events, log.schema.feedback_delay) if future else counts
    return replace(log, events=log.events.assign(item_click_rate_all=counts["item_id_click_rate_all"]), preset=None)


def shuffled(log: kr.data.Log, label: str) -> kr.data.Log:
    """The labels of training in random order; what the history knows of them stays."""
    events = log.events.copy()
    train = (events["split"] == "train").to_numpy()
    events.loc[train, label] = np.random.default_rng(0).permutation(events.loc[train, label])
    return replace(log, events=events)


def figures(log: kr.data.Log, options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    task = options.get("tasks", ("liked",))[0]
    model, _ = kr.training.train(log, "cadet", options={**options, **changes}, verbose=False)
    return kr.training.evaluate(model, log, split="validation")[task]


def test_ratings(data_folder: Path) -> None:
    found = figures(ratings(data_folder), OF_RATINGS)
    assert RATINGS.broken(found) == [], found


def test_control_ratings_without_a_history(data_folder: Path) -> None:
    assert RATINGS.broken(figures(ratings(data_folder), OF_RATINGS, max_history=0)) == ["auc below", "log_loss above"]


def test_control_ratings_with_shuffled_labels(data_folder: Path) -> None:
    assert RATINGS.broken(figures(shuffled(ratings(data_folder), "liked"), OF_RATINGS)) == ["auc below", "log_loss above"]


def test_control_ratings_whose_counts_see_the_future(data_folder: Path) -> None:
    assert RATINGS.broken(figures(ratings(data_folder, future=True), OF_RATINGS)) == ["auc above", "log_loss below"]


def test_a_feed() -> None:
    found = figures(feed(), OF_FEED)
    assert FEED.broken(found) == [], found


def test_control_a_feed_whose_counts_see_the_future() -> None:
    assert FEED.broken(figures(feed(future=True), OF_FEED)) == ["auc above"]
