"""evaluate: metrics of each task with known labels."""

from __future__ import annotations

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import evaluate

pytestmark = pytest.mark.one_backend


def test_a_task_without_labels_in_the_split_does_not_affect_the_others() -> None:
    log = kr.data.simulate(members=20, days=3, seed=0)
    log.events["liked"] = log.events["like"].astype("float64")
    schema = log.schema.fit(log.events)
    tasks = [task.model_copy(update={"label": "liked", "missing": "unknown"}) if task.name == "like" else task for task in schema.tasks]
    model = kr.models.CADET(schema.model_copy(update={"tasks": tuple(tasks)}), dim=8, num_heads=2, num_layers=1)
    whole = evaluate(model, log)
    known = (log.events["split"] == "train").to_numpy()
    log.events["liked"] = log.events["liked"].where(known)
    found = evaluate(model, log)
    assert found["click"] == whole["click"] and list(found["like"]) == list(found["click"])
    assert np.isnan(list(found["like"].values())).all() and np.isfinite(list(whole["like"].values())).any()
