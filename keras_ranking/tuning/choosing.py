"""Which setting of a study to train with."""

from __future__ import annotations

from typing import Any

from keras_ranking.tuning.places import latest, slot_of, told
from keras_ranking.tuning.reporting import report_of
from keras_ranking.tuning.settings import training_options
from keras_ranking.tuning.spaces import options_of
from keras_ranking.tuning.store import Store


def ranked(store: Store) -> list[Any]:
    """Finished trials, the best first.

    Raises:
        ValueError: none has finished, with what became of the first ones.
    """
    study = store.study()
    trials = latest(study.get_trials(deepcopy=False))
    sign = 1 if store.settings.direction == "minimize" else -1
    found = sorted((one for one in trials.values() if one.state.name == "COMPLETE"), key=lambda one: (sign * one.value, slot_of(one)))
    if not found:
        first = "; ".join(f"trial {slot}: {told(study, one)}" for slot, one in list(trials.items())[:3])
        raise ValueError(f"no trial of the study '{store.name}' has finished. {first}")
    return found


def best(store: Store) -> dict[str, Any]:
    """See `Study.best`."""
    found = ranked(store)
    chosen = report_of(store).chosen
    trial = next((one for one in found if slot_of(one) == chosen), found[0])
    options = options_of(store.settings.space, trial.params)
    training = training_options(store.settings, options) if store.settings.model else options
    return {"trial": slot_of(trial), "value": trial.value, "options": options, "training": training}
