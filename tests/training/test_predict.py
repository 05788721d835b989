"""evaluate: metrics of each task with known labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.training import evaluate
from keras_ranking.training.scoring.events import scored_rows

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


HISTORIES: dict[str, Any] = {
    "LiGR": {"dim": 8, "num_heads": 2, "num_layers": 1, "setwise_layers": 1},
    "AmortizedDLRM": {"dim": 8, "num_layers": 1, "hidden": (8,), "rank": 4, "history_mask": "causal"},
    "AmortizedDLRM bidirectional": {"dim": 8, "num_layers": 1, "hidden": (8,), "rank": 4},
}


@pytest.mark.parametrize("name", list(HISTORIES))
def test_scores_of_shared_histories_are_those_of_a_history_for_each_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = kr.data.simulate(members=10, days=4, seed=1)
    dlrm = name.startswith("Amortized")
    fitted: dict[str, Any] = {"explore": ["click"], "random_effects": {"click": "author_id"}} if dlrm else {}
    kind = getattr(kr.models, name.split()[0])
    model = kind(log.schema.fit(log.events), max_history=9, id_dim=4, tasks=["click"], **fitted, **HISTORIES[name])
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.05, w.shape).astype(w.dtype) * (w.dtype.kind == "f") for w in model.get_weights()])
    kept, sequences = model.get_weights(), kr.data.build_sequences(log.events, model.schema)
    found = []
    for columns in (model.stream_columns, []):
        monkeypatch.setattr(type(model), "stream_columns", columns)
        dataset = scored_rows(model, kr.training.model_requests(model, sequences), 8, 64)
        tokens = next(x for name, x in dataset[0][0].items() if name in ("stream_time", "history_time"))
        results = [kr.training.predict_events(model, kr.training.model_requests(model, sequences))["click"][:, 0]]
        results += list(evaluate(model, log)["click"].values())
        if dlrm:
            results.append(kr.training.fit_exploration(model, sequences)["click"])
            results.append(kr.training.fit_random_effects(model, sequences)["click"].effects)
        found.append((tokens.size * len(dataset), results))
        model.set_weights(kept)
    assert found[0][0] < 0.7 * found[1][0], "events are read less often"
    for shared, copies in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(shared, copies, rtol=1e-4, atol=2e-6)


@pytest.mark.quickest
def test_a_frame_in_place_of_a_log(tmp_path: Any) -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
    model, _ = kr.training.train(log, "lirank", tmp_path / "run", epochs=1, options=options, verbose=False)
    assert kr.training.evaluate(model, log.events) == kr.training.evaluate(model, log)
    later = log.split("validation")
    want = kr.training.evaluate(tmp_path / "run", kr.data.Log(later.assign(split="validation"), log.schema))
    assert kr.training.evaluate(tmp_path / "run", later.assign(split="validation")) == want
    new = (log.events["split"] == "validation").to_numpy()
    steps = [kr.training.warm_start(given, tmp_path / "run", new, verbose=False)[0] for given in (log, log.events)]
    for one, other in zip(steps[0].get_weights(), steps[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError, match=r"Received: DataFrame with `schema=`, .*`keras_ranking.data.Log\(events, schema\)` makes one"):
        kr.training.train(log.events, "lirank")


@pytest.mark.quickest
def test_a_frame_with_a_schema_is_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1, "epochs": 1}

    def weights(data: Any, **settings: Any) -> list[np.ndarray]:
        made: list[np.ndarray] = kr.training.train(data, "lirank", options=options, **{"verbose": False, **settings})[0].get_weights()
        return made

    def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    plain = kr.data.Log(log.events, log.schema)
    assert same(weights(plain), weights(log.events, schema=log.schema))
    assert capsys.readouterr().out == ""
    bare = log.events.drop(columns="split")
    cut = kr.data.Log(kr.data.split_by_time(bare, log.schema), log.schema)
    found = weights(bare, schema=log.schema, verbose=True)
    assert same(weights(cut), found) and not same(weights(plain), found), "control: the cut is another one"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "split" in line]
    assert "no column 'split': requests before" in line and "(80% of them) are 'train', the rest 'validation'" in line
    with pytest.warns(UserWarning, match="no column 'split'"):
        weights(bare, schema=log.schema)
    model, _ = kr.training.train(cut, "lirank", options=options, verbose=False)
    with pytest.warns(UserWarning, match="no column 'split'"):  # the rows that the training had left
        assert kr.training.evaluate(model, bare) == kr.training.evaluate(model, cut)
    with pytest.raises(ValueError, match=r"`schema` goes with a DataFrame. Received: `schema`, and as `log` a SimulatedLog"):
        kr.training.train(log, "lirank", schema=log.schema)
    words = log.events.assign(split=log.events["split"].replace({"validation": "valid"}))
    with pytest.raises(ValueError, match=r"Received: 'valid' in .* rows; rename them: .*{'valid': 'validation'}"):
        kr.training.train(words, "lirank", schema=log.schema)
    with pytest.raises(TypeError, match=r"`schema` must be a Schema. Received: str; read a file with `Schema.load"):
        kr.training.train(bare, "lirank", schema="schema.json")


@pytest.mark.quickest
def test_a_frame_is_prepared_counted_and_divided_by_member(tmp_path: Path) -> None:
    """As the `Log` of the same rows, with and without a column `split`."""
    log = kr.data.simulate(members=30, days=2, seed=0)
    clicks = kr.Count("author_id", action="click", window=3600)
    schema = log.schema.model_copy(update={"features": (*log.schema.features, clicks)})
    plain = kr.data.Log(log.events, schema)
    counted = kr.data.with_counts(log.events, schema=schema)
    pd.testing.assert_frame_equal(counted.events, kr.data.with_counts(plain).events)
    held = kr.data.hold_out_members(log.events, schema=log.schema)
    assert held.events["split"].tolist() == kr.data.hold_out_members(log).events["split"].tolist()
    shards = kr.data.prepare(log.events, tmp_path / "frame", 2, schema=log.schema)
    want = kr.data.prepare(kr.data.Log(log.events, log.schema), tmp_path / "log", 2)
    assert shards.digest == want.digest
    bare = log.events.drop(columns="split")
    with pytest.warns(UserWarning, match="no column 'split'"):
        cut = kr.data.prepare(bare, tmp_path / "bare", 2, schema=log.schema)
    own = kr.data.Log(kr.data.split_by_time(bare, log.schema), log.schema)
    assert cut.digest == kr.data.prepare(own, tmp_path / "cut", 2).digest != want.digest, "control: another cut"
    for function in (
        kr.data.with_counts,
        kr.data.hold_out_members,
        lambda rows, **schema: kr.data.prepare(rows, tmp_path / "no", **schema),
    ):
        with pytest.raises(TypeError, match="Received: DataFrame with `schema=`"):
            function(log.events)
        with pytest.raises(ValueError, match="`schema` goes with a DataFrame"):
            function(log, schema=log.schema)


@pytest.mark.quickest
def test_a_frame_is_transferred_to_and_tuned_on() -> None:
    pytest.importorskip("optuna")
    log = kr.data.simulate(members=20, days=2, seed=0)
    options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1, "epochs": 1}
    source, _ = kr.training.train(log.events, "lirank", options=options, verbose=False, schema=log.schema)
    settings: dict[str, Any] = {"tasks": ["like"], "options": {"epochs": 1}, "verbose": False}
    ways = [(log, {}), (log.events, {}), (log.events, {"schema": log.schema})]
    models = [kr.training.transfer(data, source, **settings, **more)[0] for data, more in ways]
    for other in models[1:]:
        for a, b in zip(models[0].get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    report = kr.training.compare_transfer(log.events, source, ["like"], ways=("source",))
    assert report.rows["auc"].tolist() == kr.training.compare_transfer(log, source, ["like"], ways=("source",)).rows["auc"].tolist()
    space = {"learning_rate": [1e-3, 1e-2]}
    study = kr.tuning.tune(log.events, "lirank", None, space, trials=1, options=options, sampler="random", verbose=False, schema=log.schema)
    assert study.trials["state"].tolist() == ["COMPLETE"]
