"""One worker: it takes trials of a study, one after the other, until none is left; no trial that fails ends it."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_ranking.tuning.places import ERROR, SEED, claim, give_back, latest, left, slot_of, told
from keras_ranking.tuning.spaces import distributions, options_of
from keras_ranking.tuning.store import Store, import_optuna
from keras_ranking.tuning.watch import TrialEnded, Watch

WEIGHTS = ("model.keras", "checkpoint.npz")
_WAIT_SECONDS = 1.0


class TrialFailed(Exception):
    """A trial without a value, such as a loss that is no number; its text is shown."""


class TrialPruned(Exception):
    """A trial that the pruner ends early."""


@dataclass
class Run:
    """What an objective gets of a trial.

    Attributes:
        options: what the trial tries.
        folder: for its checkpoints; a trial that is taken up finds there what was written before.
        seeds: of its runs.
        report: report(value, step) tells a value after an epoch, and ends the trial early where the pruner says so.
        note: note(name, value) shows a value with the trial in the dashboard.
        check: raises where the trial was cancelled.
    """

    options: dict[str, Any]
    folder: Path
    seeds: list[int]
    report: Callable[[float, int], None]
    note: Callable[[str, Any], None]
    check: Callable[[], None]
    found: dict[str, float] = field(default_factory=dict)


Objective = Callable[[Run], float]


def work(store: Store, objective: Objective, name: str | None = None, verbose: bool = True, hard: bool = False) -> int:
    """Run trials until all planned ones have ended, also those of workers that die meanwhile; returns how many this worker ran.

    Args:
        store: of the study.
        objective: computes the value of a trial.
        name: of the study; None: that of the store.
        verbose: print a line for each trial.
        hard: see `Watch`.
    """
    name, ran = name or store.name, 0
    while True:
        trial = claim(store, name)
        if trial is None:
            if not any(left(store, name)):
                return ran
            time.sleep(_WAIT_SECONDS)  # trials of other workers, one of which may die
            continue
        ran += 1
        outcome = _one(store, name, trial, objective, hard)
        if verbose:
            frozen = store.study(name).get_trials(deepcopy=False)[trial.number]
            shown = ", ".join(f"{key}={_short(value)}" for key, value in frozen.params.items())
            of, seed = frozen.user_attrs.get("of"), frozen.user_attrs.get(SEED)
            who = f"trial {slot_of(frozen)}" if of is None else f"trial {of}, fresh seed {seed}"
            print(f"{who}: {outcome}; {shown}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _one(store: Store, name: str, trial: Any, objective: Objective, hard: bool) -> str:
    """Run a trial and tell the study its value; returns what became of it."""
    optuna = import_optuna()
    study, states, begin = trial.study, optuna.trial.TrialState, time.perf_counter()
    identity = trial._trial_id

    def ended() -> bool:
        return bool(store.storage.get_trial(identity).state.is_finished())

    watch = Watch(lambda: store.storage.record_heartbeat(identity), ended, store.settings.search.heartbeat, hard)
    state, value, error = states.FAIL, None, None
    try:
        with watch:
            run = _run_of(store, name, trial, watch)
            value = float(objective(run))
            if not math.isfinite(value):
                raise TrialFailed(f"{store.settings.search.metric} is {value}")
            state = states.COMPLETE
    except TrialEnded:
        return told(study, store.storage.get_trial(identity))
    except KeyboardInterrupt:
        with store.lock():
            give_back(store, name, trial)
        raise
    except TrialPruned:
        state, value = states.PRUNED, None
    except Exception as problem:
        error, value = _in_a_line(problem), None
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("seconds", round(time.perf_counter() - begin, 1))
        if error is not None:
            trial.set_user_attr(ERROR, error)
    study.tell(trial, value, state, skip_if_finished=True)
    _tidy(store, name)
    return told(study, store.storage.get_trial(identity))


def _run_of(store: Store, name: str, trial: Any, watch: Watch) -> Run:
    optuna = import_optuna()
    settings = store.settings
    with watch.shield():
        for key, kind in distributions(settings.space).items():
            _suggest(trial, key, kind)
        params, attributes = trial.params, trial.user_attrs
    optuna_study = trial.study

    def report(value: float, step: int) -> None:
        if not math.isfinite(value):
            raise TrialFailed(f"{settings.search.metric} is {value} after epoch {step + 1}")
        with watch.shield(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), _quiet():
            trial.report(value, step)
        if settings.search.pruner != "none" and name == store.name and trial.should_prune():
            raise TrialPruned

    def note(key: str, value: Any) -> None:
        with watch.shield(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr(key, value)

    slot = slot_of(optuna_study.get_trials(deepcopy=False)[trial.number])
    seeds = [attributes[SEED]] if SEED in attributes else settings.seeds()
    folder = store.trial_folder(name, slot)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(options_of(settings.space, params), folder, seeds, report, note, watch.check)


def _suggest(trial: Any, name: str, kind: Any) -> None:
    """Draw one parameter, or keep the one that the trial has."""
    if hasattr(kind, "choices"):
        trial.suggest_categorical(name, kind.choices)
    elif type(kind).__name__.startswith("Int"):
        trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
    else:
        trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that a trial that was taken up tells an epoch a second time."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _in_a_line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    kind = type(problem).__name__
    full = text if isinstance(problem, (TrialFailed, ValueError, TypeError)) and text else f"{kind}: {text}" if text else kind
    return full if len(full) <= 500 else f"{full[:500]} ..."


def _tidy(store: Store, name: str) -> None:
    """Remove the weights of trials that have ended, but for the best one."""
    if store.settings.search.keep == "all":
        return
    trials = latest(store.study(name).get_trials(deepcopy=False))
    finished = {slot: trial.value for slot, trial in trials.items() if trial.state.name == "COMPLETE"}
    sign = 1 if store.settings.direction == "minimize" else -1
    best = min(finished, key=lambda slot: (sign * finished[slot], slot), default=None)
    for slot, trial in trials.items():
        if trial.state.is_finished() and (slot != best or name == store.confirmed):
            for path in store.trial_folder(name, slot).glob("*/*"):
                if path.name in WEIGHTS:
                    path.unlink(missing_ok=True)
                elif path.name == "counts":
                    shutil.rmtree(path, ignore_errors=True)
