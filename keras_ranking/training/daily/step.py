"""The daily step as an operator takes it: measured before, trained, effects and exploration refreshed, one report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import models
from keras_ranking.configuration import is_integer
from keras_ranking.data import Log, saved_counts
from keras_ranking.data.counted import counted_log
from keras_ranking.data.readers.log import as_log
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.schema import Schema
from keras_ranking.training.checkpoint import write_whole
from keras_ranking.training.daily.penalty import FisherPenalty
from keras_ranking.training.post_training.fits import fit_exploration, fit_random_effects
from keras_ranking.training.record import stamps
from keras_ranking.training.run import warm_start
from keras_ranking.training.scoring.events import metrics_of, rows_to_score

REPORT = "daily.json"
DAY = 86_400
_OF_STEP = ("seed", "verbose", "callbacks", "on_error", "learning_rate")


@dataclass(frozen=True)
class RefreshEffects:
    """When and on what `daily_step` fits the random effects of ids anew.

    LiRank (2402.06859): every 8 hours on the newest data (stated). How far back that data reaches is not stated; a week is our choice.

    Args:
        every: seconds from the newest event of one fit to that of the next; a step that comes earlier keeps the effects.
        window: seconds before the newest event from which training rows and new events are read.
        l2: precision of the prior around 0.

    Raises:
        ValueError: a number of seconds that is not positive.

    Example:
        >>> kr.training.RefreshEffects(every=3600).window
        604800
    """

    every: int = 8 * 3600
    window: int = 7 * DAY
    l2: float = 1.0

    def __post_init__(self) -> None:
        for name in ("every", "window"):
            value = getattr(self, name)
            if not (is_integer(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number of seconds. Received: {name}={value!r}")


def daily_step(
    log: Log | pd.DataFrame,
    folder: str | Path,
    new: Any,
    out: str | Path,
    epochs: int = 1,
    penalty: FisherPenalty | str | None = None,
    effects: RefreshEffects | None = None,
    explore: bool = False,
    **settings: Any,
) -> tuple[models.RankingModel, dict[str, Any]]:
    """One day of a model in operation: the new events are scored by the model that has not seen them, and then learned.

    1. Metrics of the model in `folder` on the new events: what it was worth on the day.
    2. `warm_start` on them, with `penalty`.
    3. The posterior for exploration takes in the new events (`fit_exploration`).
    4. The random effects of ids are fitted anew, where their time has come (`fit_random_effects`).
    5. `out` has the model with all this, as `warm_start` writes it, and `daily.json`, the report.

    Args:
        log, folder, new, epochs, penalty: as `warm_start`. `epochs=0`: no training, only what follows.
        out: folder to write; it may be `folder`.
        effects: None: they stay as they are.
        explore: whether to update the posterior.
        **settings: `seed`, `verbose`, `callbacks`, `on_error`, `learning_rate`, as of `warm_start`.

    Returns:
        The model, and the report: `new_events`, `span` (first and last of the new events), `before` (metrics by task), `loss` (of each
        epoch), `penalty`, `effects` and `explored`, and `seconds` of each part.

    Raises:
        ValueError: as `warm_start`; `effects` or `explore` for a model that was made without, before anything is trained.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1, "explore": ("click",)}
        >>> model, history = kr.training.train(log, "lirank", "runs/monday", epochs=1, options=options, verbose=False)
        >>> new = (log.events["split"] == "validation").to_numpy()
        >>> settings = {"penalty": "fisher", "explore": True, "verbose": False}
        >>> model, report = kr.training.daily_step(log, "runs/monday", new, "runs/tuesday", **settings)
        >>> report["new_events"] == int(new.sum()), "log_loss" in report["before"]["click"]
        (True, True)
    """
    if unknown := sorted(set(settings) - set(_OF_STEP)):
        raise TypeError(f"daily_step() has no argument '{unknown[0]}'. Of `warm_start` it takes {', '.join(_OF_STEP)}, epochs and penalty")
    on_error = settings.get("on_error", "raise")
    log = as_log(log, Schema.load(Path(folder) / "schema.json") if isinstance(log, pd.DataFrame) else None, "train")
    seconds: dict[str, float] = {}
    earlier = models.load(folder)
    _check(earlier, effects, explore)
    marks = np.asarray(new)
    with _Clock(seconds, "before"):
        counted = counted_log(log, saved_counts(folder), on_error, earlier.schema, marks)
        before = metrics_of(earlier, rows_to_score(earlier, counted, marks, "new row", on_error=on_error), ranked=True)
    with _Clock(seconds, "training"):
        model, history = warm_start(log, folder, marks, out, epochs, penalty=penalty, **settings)
    day = _Day(model, counted, marks, on_error)
    done = {name: value for name in ("effects", "explored") if (value := _recorded(folder).get(name)) is not None}
    if explore:
        with _Clock(seconds, "exploration"):
            spread = fit_exploration(model, day.sequences(marks))
            done["explored"] = {task: float(np.nanmean(values)) for task, values in spread.items()}
    if effects is not None:
        with _Clock(seconds, "effects"):
            done["effects"] = _refreshed(model, day, effects, done.get("effects"))
    report = {
        "folder": str(folder),
        "new_events": int(marks.sum()),
        "span": stamps(model.schema, day.time[marks].min(), day.time[marks].max()),
        "before": before,
        "loss": history["epochs"].get("loss", []),
        "penalty": history.get("penalty"),
        "effects": done.get("effects"),
        "explored": done.get("explored"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    _write(Path(out), model, {**history, **done}, report)
    return model, report


class _Clock:
    """Writes how long its block took."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._begin


class _Day:
    """The rows of a step, as sequences with the targets that are asked for."""

    def __init__(self, model: models.RankingModel, log: Log, new: np.ndarray, on_error: str) -> None:
        self.kept = new | log.events["split"].isin(["train", "history"]).to_numpy()
        self.learned = new | (log.events["split"] == "train").to_numpy()
        self.time, _ = model.schema.model_seconds(log.events[model.schema.time], log.round)
        self._model, self._log, self._on_error = model, log, on_error

    def sequences(self, target: np.ndarray) -> Any:
        events, places = self._log.events[self.kept], np.flatnonzero(self.kept)
        return checked_sequences(events, self._model.schema, target[self.kept], self._on_error, self._log.round, places=places)


def _check(model: models.RankingModel, effects: RefreshEffects | None, explore: bool) -> None:
    for wanted, kind, option in ((effects is not None, "effects", "random_effects"), (explore, "posteriors", "explore")):
        has = hasattr(model, "last_layers") and bool(model.last_layers(kind))
        if wanted and not has:
            raise ValueError(f"the model must be made with `{option}`. Received: a model that has none")


def _refreshed(model: models.RankingModel, day: _Day, effects: RefreshEffects, last: Any) -> dict[str, Any]:
    """Fit the effects where their time has come; what `history.json` says of the last fit."""
    newest = int(day.time[day.learned].max())
    epoch = model.schema.epoch
    if last is not None and newest + epoch < last["newest"] + effects.every:
        return {**last, "fitted": False}
    fits = fit_random_effects(model, day.sequences(day.learned & (day.time > newest - effects.window)), l2=effects.l2)
    return {"newest": newest + epoch, "fitted": True, "ids": {task: len(fit.ids) for task, fit in fits.items()}}


def _recorded(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "history.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _write(out: Path, model: models.RankingModel, history: dict[str, Any], report: dict[str, Any]) -> None:
    def text(content: dict[str, Any]) -> Callable[[Path], Any]:
        return lambda path: path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    write_whole({out / "model.keras": model.save, out / "history.json": text(history), out / REPORT: text(report)})
