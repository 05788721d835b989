"""A study of a ranker on a log in shards: its trials are trainings on shards, and every worker opens them by the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.commands import tuning
from keras_ranking.tuning import Float, Study, tune
from keras_ranking.tuning.running import work
from keras_ranking.tuning.studies import objective_of

pytestmark = pytest.mark.quickest

OPTIONS: dict[str, Any] = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1, "epochs": 1}
SPACE = {"learning_rate": Float(1e-3, 1e-2, log=True)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> kr.data.ShardedLog:
    log = kr.data.simulate(members=20, days=4, seed=0)
    return kr.data.prepare(log, tmp_path_factory.mktemp("log") / "shards", shards=3)


def test_a_trial_is_a_training_on_shards(shards: kr.data.ShardedLog, tmp_path: Path) -> None:
    study = tune(shards, "lirank", tmp_path / "study", SPACE, trials=2, options=OPTIONS, sampler="random", verbose=False)
    for trial in study.trials.to_dict("records"):
        rate = trial["learning_rate"]
        options = {**OPTIONS, "learning_rate": rate, "validation": "last_day", "monitor": "log_loss"}
        _, history = kr.training.train(shards, "lirank", options=options, verbose=False)
        assert trial["value"] == history["epochs"]["val_log_loss"][0]
    assert study.trials["value"].nunique() == 2, "control: another setting, another value"
    report = study.confirm(1, 2, verbose=False, log=shards)
    assert "fresh" in str(report)
    with pytest.raises(ValueError, match="`log` must be given"):
        Study(tmp_path / "study").join()
    assert Study(tmp_path / "study").join(shards, verbose=False) == 0


def test_bins_are_measured_before_the_first_trial(shards: kr.data.ShardedLog, tmp_path: Path) -> None:
    space = {"number_bins": [4, 8]}
    study = tune(
        shards,
        "lirank",
        tmp_path / "study",
        space,
        trials=2,
        options={**OPTIONS, "number_embedding": "piecewise_linear"},
        sampler="grid",
        verbose=False,
    )
    assert np.isfinite(study.trials["value"]).all() and study.trials["value"].nunique() == 2


def test_what_shards_do_not_take(shards: kr.data.ShardedLog, tmp_path: Path) -> None:
    for more, message in (
        ({"on_error": "drop"}, "`on_error` is that of `prepare`, where the log is in shards"),
        ({"schema": shards.schema}, "`schema` goes with a DataFrame"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(shards, "lirank", tmp_path / "no", SPACE, trials=1, options=OPTIONS, verbose=False, **more)
        assert not (tmp_path / "no").exists()


def test_command(shards: kr.data.ShardedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The study keeps the place of the shards, from which each worker reads them."""
    (tmp_path / "space.json").write_text('{"learning_rate": {"type": "float", "low": 0.001, "high": 0.01, "log": true}}')

    def here(args: Any, store: Any) -> int:
        work(store, objective_of(store), verbose=False)
        return 0

    monkeypatch.setattr(tuning, "_run", here)
    monkeypatch.chdir(shards.folder.parent)
    ask = ["tune", "--model", "lirank", "--data", f"shards:{shards.folder.name}", "--space", str(tmp_path / "space.json"), "--trials", "1"]
    sets = [part for name, value in OPTIONS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    assert main([*ask, "--out", str(tmp_path / "study"), *sets]) == 0, capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert Study(tmp_path / "study").store.settings.data == {"source": f"shards:{shards.folder}"}
    assert Study(tmp_path / "study").trials["state"].tolist() == ["COMPLETE"]
    assert main(["train", "--from-study", str(tmp_path / "study"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history["train_events"] == shards.splits["train"] and history["shards"]["digest"] == shards.digest
    assert main([*ask, "--out", str(tmp_path / "other"), "--holdout-members", "0.2"]) == 2
    assert "`--holdout-members` is that of `keras-ranking prepare`" in capsys.readouterr().err
