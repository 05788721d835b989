"""evaluate: metrics of each task with known labels."""

from __future__ import annotations

from typing import Any

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


@pytest.mark.parametrize("make", [kr.models.CADET, kr.models.LiRank])
def test_evaluate_gives_the_metrics_of_the_events_scores_to_the_bit(make: Any) -> None:
    log = kr.data.simulate(members=20, days=3, seed=0)
    towers: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "tower_boundaries": (1, 4)}
    model = make(log.schema.fit(log.events), **(towers if make is kr.models.CADET else {"history_features": (), "hidden": (8,)}))
    wanted = log.is_split("validation")
    events = log.events[log.events["time"] <= log.events["time"][wanted].max()]
    sequences = kr.data.build_sequences(events, model.schema, target=wanted[events.index])
    data = kr.training.model_requests(model, sequences) if model.form == "requests" else kr.data.pack(sequences, 2048)
    chance = kr.training.predict_events(model, data)["click"][sequences.target]
    label, request = sequences.labels["click"][sequences.target], sequences.request[sequences.target]
    bucket = np.searchsorted(np.array(model.boundaries, dtype=int), sequences.position[sequences.target])
    shown = np.take_along_axis(chance, bucket[:, None], axis=1)[:, 0]
    served, logged = kr.metrics.summary(label, model.served(chance), request), kr.metrics.summary(label, shown, request)
    found = evaluate(model, log)["click"]
    ranked = ("auc", "impression_auc", "ndcg_at_10", "mrr")
    assert found == {name: (served if name in ranked else logged)[name] for name in found}
    assert make is kr.models.LiRank or served["auc"] != logged["auc"]  # control: the towers differ
