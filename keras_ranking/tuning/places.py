"""The planned trials of a study: who takes the next one, what becomes of those whose worker died, and which were cancelled."""

from __future__ import annotations

import itertools
import os
import random
import socket
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from keras_ranking.tuning.spaces import distributions, grid_of, params_of
from keras_ranking.tuning.store import Store, import_optuna

ATTEMPTS = 3
"""How often a trial is begun whose worker dies each time."""
SLOT, ATTEMPT, SEED, WORKER, ERROR, CANCELLED = "slot", "attempt", "seed", "worker", "error", "cancelled"


def plan(store: Store, trials: int) -> int:
    """Add places for trials until there are as many; returns how many there are."""
    optuna = import_optuna()
    with store.lock():
        study = store.study()
        begin = len({slot_of(trial) for trial in study.get_trials(deepcopy=False)})
        rows: Sequence[Mapping[str, Any] | None] = [None] * trials
        if store.settings.search.sampler == "grid":
            grid = grid_of(store.settings.space)
            rows = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
            random.Random(store.settings.seed).shuffle(rows)
            rows = rows[:trials]
        kinds = distributions(store.settings.space)
        for slot in range(begin, len(rows)):
            params = rows[slot]
            fixed: dict[str, Any] = {} if params is None else {"params": dict(params), "distributions": kinds}
            study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs={SLOT: slot, ATTEMPT: 1}, **fixed))
        return max(begin, len(rows))


def plan_fresh(store: Store, settings: Sequence[tuple[int, Mapping[str, Any]]], seeds: Sequence[int]) -> None:
    """Add places for runs of given settings with given seeds, to the study of fresh seeds; those that are there are not added again."""
    optuna = import_optuna()
    study = store.made(store.confirmed)
    kinds = distributions(store.settings.space)
    with store.lock():
        there = {(trial.user_attrs["of"], trial.user_attrs[SEED]) for trial in study.get_trials(deepcopy=False)}
        slot = len({slot_of(trial) for trial in study.get_trials(deepcopy=False)})
        for of, options in settings:
            for seed in seeds:
                if (of, seed) in there:
                    continue
                attributes = {SLOT: slot, ATTEMPT: 1, SEED: seed, "of": of}
                params = params_of(store.settings.space, options)
                state = optuna.trial.TrialState.WAITING
                study.add_trial(optuna.create_trial(state=state, user_attrs=attributes, params=params, distributions=kinds))
                slot += 1


def slot_of(trial: Any) -> int:
    """Number of the planned trial that a trial is an attempt of."""
    return int(trial.user_attrs.get(SLOT, trial.number))


def latest(trials: Sequence[Any]) -> dict[int, Any]:
    """Slot -> its last attempt."""
    found: dict[int, Any] = {}
    for trial in sorted(trials, key=lambda one: (slot_of(one), one.user_attrs.get(ATTEMPT, 1), one.number)):
        found[slot_of(trial)] = trial
    return found


def claim(store: Store, name: str) -> Any | None:
    """Take the next waiting trial, with its parameters; None: none waits.

    Trials whose worker has died are ended first, and wait anew, to be taken up from their checkpoints.
    """
    optuna = import_optuna()
    states = optuna.trial.TrialState
    with store.lock():
        end_stale(store, name)
        study = store.study(name)
        for waiting in study.get_trials(deepcopy=False, states=(states.WAITING,)):
            identity = waiting._trial_id
            # First the sign of life: of a trial without any, nobody could tell that its worker died.
            store.storage.record_heartbeat(identity)
            try:
                taken = store.storage.set_trial_state_values(identity, state=states.RUNNING)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
            if taken:
                drawing = store.study(name, waiting.number)
                drawing.get_trials(deepcopy=False)  # Optuna's cache of a study writes to trials alone that it has read
                trial = optuna.trial.Trial(drawing, identity)
                trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
                return trial
    return None


def end_stale(store: Store, name: str) -> None:
    """End trials whose worker has given no sign of life; they wait anew, at most `ATTEMPTS` times. To be called inside the lock."""
    optuna = import_optuna()
    store.on_stale = _again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(store.study(name))


def _again(study: Any, trial: Any) -> None:
    attempt = int(trial.user_attrs.get(ATTEMPT, 1))
    if attempt >= ATTEMPTS:
        study.set_user_attr(f"ended {trial.number}", f"its worker died, {attempt} times")
        return
    _wait_anew(study, trial, attempt + 1)


def give_back(store: Store, name: str, trial: Any) -> None:
    """End a running trial that is stopped by Ctrl-C, and let it wait for another worker; it is no failed attempt."""
    optuna = import_optuna()
    study = store.study(name)
    frozen = next(one for one in study.get_trials(deepcopy=False) if one.number == trial.number)
    if frozen.state.is_finished():
        return
    store.storage.set_trial_state_values(frozen._trial_id, state=optuna.trial.TrialState.FAIL)
    _wait_anew(study, frozen, int(frozen.user_attrs.get(ATTEMPT, 1)))


def _wait_anew(study: Any, trial: Any, attempt: int) -> None:
    optuna = import_optuna()
    drop = (WORKER, ERROR)
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={name: value for name, value in trial.user_attrs.items() if name not in drop} | {ATTEMPT: attempt},
            system_attrs=trial.system_attrs,
            intermediate_values=trial.intermediate_values,
        )
    )


def cancel(store: Store, number: int) -> None:
    """End a waiting or running trial; its worker stops training and goes on with the next one.

    Raises:
        ValueError: no such trial, or one that has ended.
    """
    optuna = import_optuna()
    study = store.study()
    trial = latest(study.get_trials(deepcopy=False)).get(number)
    if trial is None:
        raise ValueError(f"no trial {number} in the study '{store.name}', which has {len(latest(study.get_trials(deepcopy=False)))}")
    identity = trial._trial_id
    try:
        store.storage.set_trial_user_attr(identity, CANCELLED, True)
        store.storage.set_trial_state_values(identity, state=optuna.trial.TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        raise ValueError(f"trial {number} of the study '{store.name}' has ended: {told(study, trial)}") from None


def told(study: Any, trial: Any) -> str:
    """What became of a trial, in a few words."""
    state = trial.state.name
    if state == "COMPLETE":
        return f"finished, {trial.value:.6g}"
    if state == "PRUNED":
        return f"ended early after {len(trial.intermediate_values)} epochs"
    if state == "RUNNING":
        return f"running, {len(trial.intermediate_values)} epochs done"
    if state == "WAITING":
        return "waiting" if trial.user_attrs.get(ATTEMPT, 1) == 1 else "waiting to be taken up, its worker died"
    if ERROR in trial.user_attrs:
        return f"failed: {trial.user_attrs[ERROR]}"
    if trial.user_attrs.get(CANCELLED):
        return "cancelled"
    return str(study.user_attrs.get(f"ended {trial.number}", "cancelled"))


def left(store: Store, name: str) -> tuple[int, int]:
    """Numbers of waiting and of running trials."""
    states = [trial.state.name for trial in latest(store.study(name).get_trials(deepcopy=False)).values()]
    return states.count("WAITING"), states.count("RUNNING")
