"""Small studies for tests: with functions for trainings, and with trainings that take a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_ranking.tuning import Choice, Float, Search
from keras_ranking.tuning.places import latest, plan
from keras_ranking.tuning.settings import Settings
from keras_ranking.tuning.store import Store, create

SPACE: dict[str, Any] = {"x": Float(0.0, 1.0), "kind": Choice(["a", "b"])}


def store_of(folder: Path, trials: int = 3, space: Any = None, **search: Any) -> Store:
    """A study of a model of the user's own, with planned trials."""
    store = create(folder, Settings("", Search(**{"metric": "loss", "heartbeat": 1, **search}), space or SPACE, trials))
    plan(store, trials)
    return store


def states(store: Store, name: str | None = None) -> list[str]:
    """State of each planned trial."""
    return [trial.state.name for _, trial in sorted(latest(store.study(name).get_trials(deepcopy=False)).items())]


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> float:
    """Seconds until a condition holds."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - begin
