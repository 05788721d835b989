"""Training-serving skew: none in a sound export, and each planted one found and named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import keras
import pytest

from keras_ranking import cli, id_columns, models
from keras_ranking.serving import check_skew, export
from keras_ranking.serving.checking import saved_model
from keras_ranking.serving.checking.worker_process import ExportError
from keras_ranking.serving.protocol.model_folder import read_card

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.one_backend, pytest.mark.slow]  # an export with all its checks


@pytest.fixture(scope="module", autouse=True)
def one_session_per_version():
    """A version is opened once: the first run of each signature in a session takes longer than all its checks."""
    opened = {}
    whole = saved_model.SavedModel

    def load(version):
        if version not in opened:
            opened[version] = whole(version)
        return SimpleNamespace(signature=opened[version].signature, run=opened[version].run, close=lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "SavedModel", load)
        yield
    for model in opened.values():
        model.close()


def planted(small, **changes):
    """The small model with features of its schema changed, its weights kept."""
    features = tuple(f.model_copy(update=changes.get(f.name, {})) for f in small.model.schema.features)
    changed = small.model.schema.model_copy(update={"features": features})
    model = models.CADET(changed, **small.model.arguments)
    for new, old in zip(model.weights, small.model.weights, strict=True):
        new.assign(old)
    return model


def another_hash(monkeypatch):
    """The data pipeline of this process hashes other texts than the graph."""
    whole = id_columns.hash_buckets

    def other(values, buckets, name="values"):
        return whole([f"{value}." for value in values], buckets, name)

    monkeypatch.setattr(id_columns, "hash_buckets", other)


def named(report):
    return {name for name, entry in report.features.items() if entry.differ}


def test_none_in_a_sound_export(small, logged):
    report = check_skew(small.version.parent, small.run, logged.events, sample=30, seed=5)
    assert not report.found and report.same_schema and report.requests == 30 and report.summary() == "30 requests: no difference"
    assert {name.split()[0] for name in report.scores} == {"serving_default", "raw", "training"}
    assert {"time", "item_id", "topic", "age_hours", "dwell_seconds", "device"} <= set(report.features)
    assert all(entry.compared > 100 for entry in report.features.values())
    assert all(entry.largest <= 1e-5 for entry in report.scores.values())


@pytest.mark.release
def test_none_in_a_mixture_of_towers_or_in_int8(logged, tmp_path):
    """Training's scores are mixed as served ones are, and the Keras model is quantised as the version was."""
    arguments = {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (8,), "id_dim": 4, "action_hidden": 8}
    model = models.CADET(logged.schema, **arguments, serving="mixture", tower_prior=(0.5, 0.3, 0.2))
    version = export(model, tmp_path / "ranker", quantize="int8", verify=False)
    assert read_card(version).quantized
    report = check_skew(version, model, logged.events, sample=20)
    assert not report.found and report.bound == 1e-5 and {name.split()[0] for name in report.scores} >= {"training"}


def test_planted_in_the_schema(small, logged):
    words = small.model.schema.inputs(["topic"])[0].vocabulary
    mean = small.model.schema.inputs(["age_hours"])[0].mean
    model = planted(small, topic={"vocabulary": words[::-1]}, age_hours={"mean": mean + 0.1})
    report = check_skew(small.version, model, logged.events, sample=20)
    assert report.found and not report.same_schema and named(report) == {"topic", "age_hours"}
    worst = report.features["age_hours"].worst
    assert {"request", "row", "exported", "expected"} == set(worst)
    row = logged.events.loc[worst["row"]]
    got = small.model.schema.inputs(["age_hours"])[0].encode([row["age_hours"]])[0]
    assert worst["exported"] == pytest.approx(float(got)) and worst["request"] in set(logged.events["request_id"])
    assert report.scores["raw click"].differ and not report.scores["serving_default click"].differ
    assert "feature 'topic'" in report.summary() and "score 'raw click'" in report.summary()


def test_planted_in_the_hash(small, logged, monkeypatch):
    another_hash(monkeypatch)
    report = check_skew(small.version, small.model, logged.events, sample=10)
    assert named(report) == {"item_id", "author_id"} and report.same_schema


def test_planted_in_the_weights(small, logged):
    model = planted(small)
    (bias,) = [v for v in model.weights if v.path.endswith("towers_like/tower_0_logit/bias")]
    bias.assign(bias + 0.5)
    report = check_skew(small.version, model, logged.events, sample=10)
    assert report.found and not named(report)
    assert {name for name, entry in report.scores.items() if entry.differ} == {"serving_default like", "raw like"}


def test_it_is_a_gate(small, logged, tmp_path, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the hash is planted in this process")
    another_hash(monkeypatch)
    with pytest.raises(ExportError, match="differs from the pipeline on logged requests: 64 requests: feature 'item_id'"):
        export(small.model, tmp_path / "ranker", verify=False, events=logged.events)
    assert list((tmp_path / "ranker").iterdir()) == []


def test_command(small, logged, tmp_path, capsys):
    log = tmp_path / "log.csv"
    logged.events.to_csv(log, index=False)
    arguments = ["skew", "--model", str(small.version), "--events", str(log), "--sample", "12"]
    assert cli.main([*arguments, "--keras", str(small.run), "--json", str(tmp_path / "report.json")]) == 0
    assert "no skew: 12 requests: no difference" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["requests"] == 12
    words = small.model.schema.inputs(["topic"])[0].vocabulary
    (tmp_path / "other").mkdir()
    planted(small, topic={"vocabulary": words[::-1]}).save(tmp_path / "other/model.keras")
    assert cli.main([*arguments, "--keras", str(tmp_path / "other")]) == 1
    assert "SKEW: 12 requests: feature 'topic'" in capsys.readouterr().out


def test_errors(small, logged, tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported version"):
        check_skew(tmp_path, small.model, logged.events)
    with pytest.raises(ValueError, match="`sample` must be a positive integer"):
        check_skew(small.version, small.model, logged.events, sample=0)
