"""On a simulated feed the truth is known: does a trained CADET find it?"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking import metrics, training

pytestmark = [pytest.mark.slow, pytest.mark.quickest]


def quickstart() -> Any:
    """The baselines and the per-tower predictions that tools/quickstart shows."""
    path = Path(__file__).resolve().parents[2] / "tools" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.release
def test_cadet_recovers_the_position_curve_and_beats_the_baselines() -> None:
    # A seed that the preset was not chosen on.
    log = kr.data.simulate(members=1200, seed=1)
    model, _ = training.train(log, seed=1, verbose=False)
    shown = quickstart()
    rows = np.flatnonzero((log.events["split"] == "test").to_numpy())
    label, request = log.events["click"].to_numpy()[rows], log.events["request_id"].to_numpy()[rows]
    figures = {
        "popularity": metrics.summary(label, shown.popularity(log, rows), request),
        "regression": metrics.summary(label, shown.logistic_regression(log, rows), request),
        "truth": metrics.summary(label, log.truth.click[rows], request),
    }
    cadet = training.evaluate(model, log, split="test")["click"]
    for name in ("popularity", "regression"):
        assert cadet["impression_auc"] > figures[name]["impression_auc"] + 0.05, name
        assert cadet["log_loss"] < figures[name]["log_loss"], name
    assert cadet["impression_auc"] < figures["truth"]["impression_auc"], "better than the truth: a leak"

    towers, bucket, clicked = shown.towers_of_clicks(model, log, "test")
    recovered = towers.mean(axis=0) / towers[:, 0].mean()
    np.testing.assert_allclose(recovered, log.truth.position_ratio, rtol=0.10)
    # Control: the plain click rate by position also carries what the old ranker put there.
    plain = np.array([clicked[bucket == k].mean() for k in range(3)])
    assert np.abs(plain / plain[0] / log.truth.position_ratio - 1).max() > 0.10


def test_a_feedsr_that_knows_of_positions_brings_up_what_was_shown_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relevant items that the policy put below others. Control: the same model without a word of positions.

    On a log this small the order of all pairs does not move yet; tools/benchmarks/debias.py has larger ones.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools" / "benchmarks"))
    debias = importlib.import_module("debias")
    found = {way: debias.run(way, 350, seed=5) for way in ("plain", "offsets")}
    assert found["offsets"]["lower"] > found["plain"]["lower"] + 0.03
    assert found["offsets"]["gap"] < found["plain"]["gap"] - 0.06
